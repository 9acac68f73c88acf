"""A source with images, actions or instructions that the shards would have none of ends with what it saw."""

import io
import json
import tarfile

import h5py
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import StepShards
from tests.data import videos
from tests.data.formats import make_lerobot, make_robomimic, make_webdataset
from tests.data.formats.test_lerobot import change_info


def go(source, out, **options) -> StepShards:
    convert(source, out, Options(size=16, split="train", **options))
    return StepShards(out, "train")


def robomimic(folder, images=None, text=None):
    make_robomimic.make(folder)
    with h5py.File(folder / "demos.hdf5", "r+") as file:
        for demo in file["data"].values():
            if images is not None:
                del demo["obs/agentview_image"]
                demo["obs/agentview_image"] = np.broadcast_to(images, (len(demo["actions"]), *images.shape))
            if text is not None:
                del demo.attrs["instruction"]
                demo.attrs["lang"] = text


def lerobot(folder, **features):
    make_lerobot.make(folder)
    info = json.loads((folder / "meta/info.json").read_text())["features"]
    changed = {key: features.get(key, {}) for key in info}
    change_info(folder, features={key: info[key] | new for key, new in changed.items() if new is not None})


def renamed_action(folder, name):
    make_lerobot.make(folder)
    import pyarrow.parquet as pq

    for path in folder.rglob("episode_*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([{"action": name}.get(old, old) for old in table.column_names]), path)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features={{"action": name}.get(old, old): feature for old, feature in features.items()})


def split_actions(folder):
    make_lerobot.make(folder)
    import pyarrow.parquet as pq

    for path in folder.rglob("episode_*.parquet"):
        table = pq.read_table(path)
        names = [{"action": "action.arm"}.get(name, name) for name in table.column_names]
        pq.write_table(table.rename_columns(names).append_column("action.grip", table["action"]), path)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    action = features.pop("action")
    change_info(folder, features=features | {"action.arm": action, "action.grip": action})


def tar(folder, **members):
    """A tar of three steps; of each member a function of the step."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "a.tar", "w") as file:
        for step in range(3):
            for field, data in members.items():
                data = data(step)
                member = tarfile.TarInfo(f"ep_{step:04d}.{field.replace('__', '.')}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


def jpg(step):
    return make_webdataset.jpeg(videos.frame(step))


def clips(folder, **beside):
    for name in ("a", "b"):
        videos.write(folder / f"{name}.mp4", 4)
        for ending, data in beside.items():
            (folder / f"{name}.{ending}").write_bytes(data)


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def hdf5(folder, **datasets):
    folder.mkdir()
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, values in datasets.items():
            file[name] = values


SIGNED = np.linspace(-1, 1, 16 * 16 * 3).reshape(16, 16, 3).astype(np.float32)
ALOHA = {"observations/qpos": np.zeros((5, 2)), "observations/images/top": np.zeros((5, 16, 16, 3), np.uint8)}
SOURCES = {
    "robomimic, floats of -1 to 1": (
        lambda f: robomimic(f, SIGNED), "images", "agentview_image float32.* from -1 to 1", {"cameras": "none"}
    ),
    "robomimic, grey": (
        lambda f: robomimic(f, np.zeros((16, 16), np.uint8)), "images", r"uint8\[5, 16, 16\]", {"cameras": "none"}
    ),
    "robomimic, another attribute": (
        lambda f: robomimic(f, text="lift it"), "instructions", "attribute lang", {"captions": "none"}
    ),
    "LeRobot, two actions": (
        split_actions, "actions", "--action action.arm,action.grip joins them", {"action": "none"}
    ),
    "LeRobot, actions of chunks": (
        lambda f: lerobot(f, action={"shape": [2, 3]}), "actions", r"'action' float32\[2, 3\]", {"action": "none"}
    ),
    "LeRobot, cameras as arrays": (
        lambda f: lerobot(f, **{make_lerobot.VIDEO: None, make_lerobot.PICTURE: {"dtype": "uint8"}}),
        "images", r"'observation.images.wrist' uint8\[16, 16, 3\]; cameras are", {"cameras": "none"},
    ),
    "WebDataset, pickled actions": (
        lambda f: tar(f, jpg=jpg, actions__pyd=lambda i: b"x"), "actions", ".actions.pyd", {"action": "none"}
    ),
    "WebDataset, a prompt": (
        lambda f: tar(f, jpg=jpg, json=lambda i: b'{"prompt": "push it"}'),
        "instructions", "prompt .json.; they are read from .txt", {"captions": "none"},
    ),
    "WebDataset, texts in folders": (
        lambda f: make_webdataset.write_tar(f / "a.tar", [("a/instruction.txt", b"push it")]
                                            + [(f"a/step_{i:03d}.jpg", jpg(i)) for i in range(3)]),
        "instructions", "1 texts that belong to no step, the first a/instruction.txt", {"captions": "none"},
    ),
    "LeRobot, actions of another name": (
        lambda f: renamed_action(f, "robot_action"), "actions", "--action robot_action joins", {"action": "none"}
    ),
    "videos and a table": (
        lambda f: (clips(f), (f / "labels.csv").write_text("video,caption\na.mp4,push it\n")),
        "instructions", "table labels.csv of 1 of 2 videos; --captions .*labels.csv takes it", {"captions": "none"},
    ),
    "videos and arrays": (
        lambda f: clips(f, npz=npz(action=np.zeros((3, 2)))),
        "actions", "a.npz with action; a table", {"action": "none"},
    ),
    "videos and actions in tables": (
        lambda f: clips(f, csv=b"time,action_x,action_y\n0,1,2\n"),
        "actions", "a.csv with action_x; a table", {"action": "none"},
    ),
    "videos and one array each": (
        lambda f: (clips(f), np.save(f / "a_actions.npy", np.zeros((3, 2)))),
        "actions", "a_actions.npy with action; a table", {"action": "none"},
    ),
    "ALOHA, actions of another name": (
        lambda f: hdf5(f, action_eef=np.zeros((5, 2)), **ALOHA),
        "actions", "action_eef .*; --action action_eef takes it", {"action": "none"},
    ),
    "ALOHA, actions in parts": (
        lambda f: hdf5(f, **{"action/arm": np.zeros((5, 2)), "action/hand": np.zeros((5, 1))}, **ALOHA),
        "actions", "action/arm .*; --action action/arm takes it", {"action": "none"},
    ),
    "robomimic, images in rows": (
        lambda f: robomimic(f, np.zeros(16 * 16 * 3, np.uint8)), "images", r"uint8\[5, 768\]", {"cameras": "none"}
    ),
    "HDF5, images of floats elsewhere": (
        lambda f: hdf5(f, action=np.zeros((5, 2)), **{"obs/cam": np.broadcast_to(SIGNED, (5, 16, 16, 3))}),
        "images", "obs/cam float32.* from -1 to 1", {"cameras": "none"},
    ),
    "HDF5, another action": (
        lambda f: hdf5(f, state=np.zeros((5, 2)), joint_action=np.zeros((5, 2))),
        "actions", "--action joint_action takes it", {"action": "none"},
    ),
    "npz, another text": (
        lambda f: (f.mkdir(), (f / "a.npz").write_bytes(npz(action=np.zeros((5, 2)), prompt="push it"))),
        "instructions", "the text prompt", {"captions": "none"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_essential_is_not_left_out_silently(tmp_path, name):
    make, kind, message, without = SOURCES[name]
    make(tmp_path / "source")
    with pytest.raises(UserError, match=f"has {kind}, and the shards would hold none .*{message}") as error:
        go(tmp_path / "source", tmp_path / "out")
    (option, value), = without.items()
    assert str(error.value).endswith(f"or convert without them, --{option} {value}")
    assert not (tmp_path / "out").exists(), "nothing is written before"
    shards = go(tmp_path / "source", tmp_path / "out", **without)
    absent = {"images": "image", "actions": "action", "instructions": "instruction"}[kind]
    assert absent not in shards.features and len(shards)


def test_named_actions_and_none_of_them(tmp_path):
    split_actions(tmp_path / "lerobot")
    made = make_lerobot.content()["episode_000000"]["action"]
    shards = go(tmp_path / "lerobot", tmp_path / "a", action="action.grip,action.arm")
    np.testing.assert_array_equal(shards.array(0, "action"), np.concatenate([made[0], made[0]]))
    assert shards.features["action"]["names"][0] == "action.grip.x"
    with pytest.raises(UserError, match="no vector 'action.gripp' .--action.; did you mean 'action.grip'"):
        go(tmp_path / "lerobot", tmp_path / "b", action="action.gripp")
    with pytest.raises(UserError, match="--action arm: video data have one action"):
        clips(tmp_path / "clips")
        go(tmp_path / "clips", tmp_path / "b", action="arm")
    shards = go(tmp_path / "lerobot", tmp_path / "parts", action="action.arm[1:3],action.grip[0:1]")
    np.testing.assert_array_equal(shards.array(0, "action"), made[0][[1, 2, 0]])
    names = shards.features["action"]["names"]
    assert [name.rpartition(".")[2] for name in names] == ["y", "grip", "x"]
    robomimic(tmp_path / "robomimic")
    with h5py.File(tmp_path / "robomimic/demos.hdf5", "r+") as file:
        expected = file["data/demo_0/rewards"][()]
    shards = go(tmp_path / "robomimic", tmp_path / "part", action="actions[1:3]", state="robot0_arm[2:3]")
    assert shards.features["action"]["shape"] == [2] and shards.features["state"]["names"] == ["robot0_arm.2"]
    shards = go(tmp_path / "robomimic", tmp_path / "c", action="rewards", cameras="none", state="none")
    assert set(shards.features) == {"action", "instruction"}
    assert [float(shards.array(i, "action")[0]) for i in range(5)] == expected.tolist()


def test_actions_of_another_name_are_taken_where_they_are_named(tmp_path):
    action = np.arange(10, dtype=np.float32).reshape(5, 2)
    parts = {"action/arm": action, "action/hand": action[:, :1] + 50, "action_mean": np.zeros(2)}
    hdf5(tmp_path / "aloha", **parts, **ALOHA)
    shards = go(tmp_path / "aloha", tmp_path / "a", action="action/arm,action/hand")
    assert {"image", "action", "state"} <= set(shards.features)
    np.testing.assert_array_equal(shards.array(3, "action"), [6, 7, 56])
    # several episodes in groups of one file, with statistics of their actions beside them
    episodes = {f"ep_{e}": ALOHA | {"action_eef": action + e} for e in range(2)}
    parts = {f"{name}/{part}": values for name, own in episodes.items() for part, values in own.items()}
    hdf5(tmp_path / "groups", **parts, action_mean=np.zeros(2))
    shards = go(tmp_path / "groups", tmp_path / "b", action="action_eef")
    assert [float(shards.array(episode.start, "action")[0]) for episode in shards.episodes] == [0, 1]


def test_robomimic_images_in_groups_are_cameras(tmp_path):
    robomimic(tmp_path / "robomimic")
    with h5py.File(tmp_path / "robomimic/demos.hdf5", "r+") as file:
        for demo in file["data"].values():
            demo.move("obs/agentview_image", "obs/cameras/front")
            demo["obs/cameras/intrinsics"] = np.eye(3)
            demo["action_dict/pose"] = demo["actions"][:, :2]
    shards = go(tmp_path / "robomimic", tmp_path / "out", action="action_dict/pose")
    assert "image" in shards.features and shards.features["action"]["shape"] == [2]
    assert not [name for name in shards.features["state"]["names"] if "intrinsics" in name]
    left_out = json.loads((tmp_path / "out/report.json").read_text())["fields_left_out"]
    assert "obs/cameras/intrinsics" in left_out


def test_a_caption_of_nothing_is_no_caption(tmp_path):
    tar(tmp_path / "source", jpg=jpg, json=lambda i: b'{"caption": null, "text": ""}')
    assert "instruction" not in go(tmp_path / "source", tmp_path / "out").features


def test_texts_beside_their_videos(tmp_path):
    clips(tmp_path / "clips", txt="\ufeffpush it\n".encode())
    shards = go(tmp_path / "clips", tmp_path / "out")
    assert shards.instructions() == ["push it"]
    assert json.loads((tmp_path / "out/report.json").read_text())["left_out"] == {}
    assert "instruction" not in go(tmp_path / "clips", tmp_path / "none", captions="none").features
