import io
import pathlib
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import arrays, robomimic
from tests.data.formats import make_arrays, make_robomimic

OPTIONS = {"fps": None, "size": None, "cameras": "all", "action": "all", "state": "all", "captions": None}


def read(source: pathlib.Path, **options) -> dict:
    options = OPTIONS | options
    return {i.name: arrays.standardize(source, i, options) for i in arrays.find(source, options).items}


def refused(path: pathlib.Path, message: str, **members) -> None:
    np.savez(path, **members)
    with pytest.raises((UserError, ValueError), match=message):
        read(path)


def test_what_was_written_is_read(tmp_path):
    made = make_arrays.make(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert arrays.detect(tmp_path) and not arrays.detect(tmp_path / "notes.txt")
    assert arrays.find(tmp_path, OPTIONS).left_out == {"files .txt": 1}
    found = read(tmp_path)
    assert list(found) == list(made)
    for name, episode in found.items():
        for column in ("action", "state"):
            assert episode.columns[column].dtype == np.float32
            np.testing.assert_array_equal(episode.columns[column], made[name][column])
        assert (episode.text, episode.task, episode.fps) == (made[name]["text"], "", 20)
        assert episode.cameras == {} and episode.left_out == []


def test_hdf5_trajectories_in_groups(tmp_path):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        for number in (0, 2, 10):
            group = file.create_group(f"runs/{number}")
            group["actions"] = np.full((4, 2), number, "f8")
            group["states"] = np.full((5, 3), number, "i4")
            group["reward"] = np.zeros(4)
            group.attrs["instruction"], group.attrs["fps"] = f"go to {number}", 50
            group["task"] = f"task {number}"
        file["constants"] = np.zeros(3)
    found = read(path)
    assert list(found) == ["set/runs/0", "set/runs/2", "set/runs/10"], "natural order"
    for number, episode in zip((0, 2, 10), found.values()):
        assert episode.columns["action"].tolist() == [[number] * 2] * 4
        assert episode.columns["state"].tolist() == [[number] * 3] * 5
        assert (episode.text, episode.task, episode.fps) == (f"go to {number}", f"task {number}", 50.0)
        assert episode.left_out == ["reward"]
    with h5py.File(path, "r+") as file:
        file["runs/0/loop"] = file["runs"]
    with pytest.raises(UserError, match="contained in itself"):
        read(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "packed", "columns", "alone", "h5"])
def test_tables_are_cut_into_episodes(tmp_path, kind):
    table = np.random.default_rng(0).normal(size=(2 * arrays.TABLE_ROWS + 5, 3))
    path = tmp_path / f"table.{ {'npy': 'npy', 'h5': 'h5'}.get(kind, 'npz') }"
    labels = np.arange(len(table))
    if kind == "npy":
        np.save(path, table)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=table, chunks=(1000, 2))
    elif kind == "alone":
        np.savez(path, embedding=table)
    elif kind == "columns":
        np.savez(path, features=np.asfortranarray(table), labels=labels)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, feature=table, labels=labels)
    assert arrays.detect(path)
    found = read(path)
    assert list(found) == [f"table/rows_{k:06d}" for k in range(3)]
    columns = [episode.columns["feature"] for episode in found.values()]
    assert [len(column) for column in columns] == [4096, 4096, 5]
    np.testing.assert_array_equal(np.concatenate(columns), table.astype(np.float32))
    if kind in ("npz", "packed", "columns"):
        assert found["table/rows_000000"].left_out == ["labels"]
    np.savez(tmp_path / "short.npz", feature=table[:7])
    assert list(read(tmp_path / "short.npz")) == ["short"], "one piece needs no number"


def test_metaworld_arrays_agree_with_numpy(shared):
    source = next((shared / "data/metaworld_mt10").rglob("*.npz")).parent
    found = read(source)
    assert len(found) == len(list(source.glob("*.npz")))
    for name in list(found)[::37]:
        with np.load(source / f"{name}.npz") as members:
            for column in ("action", "state"):
                np.testing.assert_array_equal(found[name].columns[column], members[column])
            assert set(found[name].left_out) == set(members.files) - {"action", "state"}


def test_errors_say_what_is_wrong(tmp_path):
    path, fine = tmp_path / "x.npz", np.zeros((5, 2))
    ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)
    refused(path, "'action' is an array of Python objects, which is never read", action=ragged)
    refused(path, "'action' holds <U1, which are no real numbers", action=np.array([["a"]]))
    refused(path, "'action' holds complex128", action=fine * 1j)
    refused(path, r"'action' has shape \[5\], a column is \[steps, dimensions\]", action=fine[:, 0])
    refused(path, r"'action' has shape \[0, 2\]: there is nothing in it", action=fine[:0])
    holes = fine.copy()
    holes[2:4, 1] = np.nan, np.inf
    refused(path, "'state' holds 2 numbers that are not finite, the first in row 2", action=fine, state=holes)
    refused(path, r"'state' holds 1 numbers beyond float32, the first, 1e\+39, in row 4", state=[*fine[:4], [0, 1e39]])
    refused(path, "it has 5 actions and 7 states: as many, or one less", action=fine, state=np.zeros((7, 1)))
    refused(path, "both 'action' and 'actions'", action=fine, actions=fine)
    refused(path, "both a trajectory and a table", action=fine, features=fine)
    refused(path, "many trajectories end to end .'terminals'.", actions=fine, terminals=fine[:, 0])
    refused(path, r"it has a \[5, 2\], b \[5, 2\]; a trajectory has", a=fine, b=fine)
    refused(path, "its fps is 'fast'", action=fine, fps="fast")
    refused(path, "its task is 3.0, it should be text", action=fine, task=3)
    table = np.zeros((arrays.TABLE_ROWS + 9, 1))
    table[arrays.TABLE_ROWS + 2] = np.nan
    refused(path, r"first in row 2 \(counted from row 4096\)", feature=table)
    np.save(tmp_path / "y.npy", fine[0])
    with pytest.raises(UserError, match=r"y.npy: it has an array \[2\]"):
        read(tmp_path / "y.npy")


def test_damage_is_found(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, feature=np.zeros((5000, 4)), labels=np.zeros(5000))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("feature.npy").header_offset
    path.write_bytes(whole[: offset + 3000] + b"\1" + whole[offset + 3001 :])
    for item in arrays.find(path, OPTIONS).items:
        with pytest.raises(ValueError, match="CRC.*feature"):
            arrays.standardize(path, item, OPTIONS)
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="x.npz"):
        read(path)
    np.save(tmp_path / "y.npy", np.zeros((5000, 4)))
    (tmp_path / "y.npy").write_bytes((tmp_path / "y.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="it is truncated"):
        read(tmp_path / "y.npy")


def test_robomimic_files_are_sent_to_their_own_format(tmp_path):
    make_robomimic.make(tmp_path)
    assert not arrays.detect(tmp_path)
    with pytest.raises(UserError, match="demos.hdf5 is a robomimic file: convert it with --format robomimic"):
        arrays.find(tmp_path, OPTIONS)


def aloha(path: pathlib.Path, images, length: int = 5) -> dict[str, np.ndarray]:
    """An episode as ACT's recorder lays it out; images(length) gives {camera: array}."""
    random = np.random.default_rng(length)
    arrays = {name: random.normal(size=(length, 14)).astype(np.float32) for name in ("action", "qpos", "qvel")}
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, True
        file["action"] = arrays["action"]
        for name in ("qpos", "qvel"):
            file[f"observations/{name}"] = arrays[name]
        for camera, values in images(length).items():
            file[f"observations/images/{camera}"] = values
            file[f"compress_len/{camera}"] = np.full(length, 9)
    return arrays


def test_aloha_episodes(tmp_path):
    """Pixels and padded JPEG files, as h5py and Pillow read them."""
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    files = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    padded = np.zeros((5, 2000), np.uint8)
    for row, data in zip(padded, files):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    made = aloha(tmp_path / "episode_0.hdf5", lambda n: {"cam_high": frames, "cam_low": padded})
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        file["language_raw"] = np.array([b"fold the shirt"])
    assert arrays.detect(tmp_path) and not robomimic.detect(tmp_path)
    (episode,) = read(tmp_path).values()
    assert list(episode.cameras) == ["image", "image_cam_low"] and episode.text == "fold the shirt"
    np.testing.assert_array_equal(list(episode.cameras["image"]), frames)
    assert list(episode.cameras["image_cam_low"]) == files
    np.testing.assert_array_equal(episode.columns["action"], made["action"])
    np.testing.assert_array_equal(episode.columns["state"], made["qpos"])
    assert episode.left_out == ["compress_len/cam_high", "compress_len/cam_low", "observations/qvel"]
    (episode,) = read(tmp_path, state="qvel,observations/qpos", cameras="cam_low").values()
    np.testing.assert_array_equal(episode.columns["state"], np.concatenate([made["qvel"], made["qpos"]], 1))
    assert list(episode.cameras) == ["image"] and list(episode.cameras["image"]) == files
    with pytest.raises(ValueError, match="no vector 'qpo'.*--state"):
        read(tmp_path, state="qpo")


def test_images_beside_actions_in_npz(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    action, reward = np.ones((4, 2)), np.ones(4)
    np.savez_compressed(tmp_path / "a.npz", action=action, wrist=frames, front=frames[:, ::-1], reward=reward)
    np.savez(tmp_path / "b.npz", rgb=frames / 255)
    np.save(tmp_path / "c.npy", frames)
    found = read(tmp_path)
    assert list(found["a"].cameras) == ["image", "image_front"], "in the order of the file"
    np.testing.assert_array_equal(list(found["a"].cameras["image"]), frames)
    assert found["a"].left_out == ["reward"]
    for name in "bc":
        np.testing.assert_array_equal(list(found[name].cameras["image"]), frames)
        assert not found[name].columns
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["runs/0/action"], file["images/0"] = np.ones((5, 2)), frames
    (episode,) = [episode for name, episode in read(tmp_path).items() if name.startswith("d")]
    assert "images/0" in episode.unread["images"], "images that belong to no trajectory are told of"
