import json
import pathlib

import h5py
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import robomimic
from tests.data.formats import make_robomimic

OPTIONS = {"fps": None, "size": None, "cameras": "all", "action": "all", "state": "all", "captions": None}


def read(source: pathlib.Path, **options) -> dict:
    options = OPTIONS | options
    return {i.name: robomimic.standardize(source, i, options) for i in robomimic.find(source, options).items}


def change(folder: pathlib.Path):
    return h5py.File(folder / "demos.hdf5", "r+")


def test_what_was_written_is_read(tmp_path):
    made = make_robomimic.make(tmp_path)
    for source in (tmp_path, tmp_path / "demos.hdf5"):
        assert robomimic.detect(source)
        found = read(source)
        assert list(found) == list(made)
        for name, episode in found.items():
            for column in ("action", "state"):
                assert episode.columns[column].dtype == np.float32
                np.testing.assert_array_equal(episode.columns[column], made[name][column])
            np.testing.assert_array_equal(list(episode.cameras["image"]), made[name]["frames"])
            assert (episode.text, episode.task, episode.fps) == (made[name]["text"], "", 20)
            arm = [f"robot0_arm.{i}" for i in range(3)]
            assert episode.names == {"state": [*arm, "robot0_gripper.0"]} and episode.left_out == ["rewards"]
    items = robomimic.find(tmp_path, OPTIONS).items
    assert [item.split for item in items] == ["train", "val", "train"]


@pytest.mark.parametrize("name", ["lift_human_low_dim", "lift_human_image84", "metaworld_mt10_low_dim"])
def test_real_files_agree_with_h5py(shared, name):
    source = shared / f"data/robomimic/{name}.hdf5"
    items = {item.at["demo"]: item for item in robomimic.find(source, OPTIONS).items}
    with h5py.File(source) as file:
        assert set(items) == set(file["data"])
        valid = {demo.decode() for demo in file["mask/valid"][()]}
        assert {demo for demo, item in items.items() if item.split == "val"} == valid
        for demo in list(items)[::23]:
            episode, group = robomimic.standardize(source, items[demo], OPTIONS), file["data"][demo]
            np.testing.assert_array_equal(episode.columns["action"], group["actions"][()].astype(np.float32))
            column = 0
            for key in sorted(key for key in group["obs"] if not key.endswith("_image")):
                rows = group["obs"][key][()].astype(np.float32)
                state = episode.columns["state"][:, column : column + rows.shape[1]]
                np.testing.assert_array_equal(state, rows)
                assert episode.names["state"][column] == f"{key}.0"
                column += rows.shape[1]
            assert column == episode.columns["state"].shape[1]
            if "agentview_image" in group["obs"]:
                for frame, row in zip(episode.cameras["image"], group["obs/agentview_image"], strict=True):
                    np.testing.assert_array_equal(frame, row)
            assert episode.text == group.attrs.get("instruction", "")
            assert episode.task == group.attrs.get("task", "Lift")
    numbers = [int(demo.split("_")[1]) for demo in items]
    assert numbers == list(range(len(numbers))), "demo_2 comes before demo_10"


def test_raw_robosuite_is_refused_with_the_reason(shared):
    for source in (shared / "data/robosuite_raw", shared / "data/robosuite_raw/lift_demo.hdf5"):
        assert robomimic.detect(source)
        with pytest.raises(UserError, match="lift_demo.hdf5: .*no observations.*dataset_states_to_obs.py"):
            robomimic.find(source, OPTIONS)


def test_masks_become_splits(tmp_path):
    make_robomimic.make(tmp_path)

    def splits(**masks):
        with change(tmp_path) as file:
            del file["mask"]
            for name, demos in masks.items():
                file[f"mask/{name}"] = np.array([f"demo_{demo}".encode() for demo in demos], "S8")
            file.require_group("mask")
        listing = robomimic.find(tmp_path, OPTIONS)
        return [item.split for item in listing.items], listing

    assert splits(train=[0, 1])[0] == ["train", "train", "val"]
    assert splits(valid=[0])[0] == ["val", "train", "train"]
    assert splits(test=[0], val=[2], train=[1])[0] == ["val", "train", "val"]
    assert splits(train=[0, 1, 2])[0] == splits()[0] == splits(better=[0])[0] == splits(valid=[])[0] == ["", "", ""]
    found, listing = splits(train=[1], valid=[2])
    assert found == ["train", "train", "val"]
    assert listing.notes == {"demonstrations in no mask, taken for training": 1}
    found, listing = splits(train=[0, 1, 7], valid=[2])
    assert listing.missing == [("demos.hdf5", "mask 'train' lists demo_7, the file does not have it")]
    with pytest.raises(UserError, match="demos.hdf5: its masks put demo_1"):
        splits(train=[0, 1], valid=[1, 2])


def test_state_and_cameras_are_chosen(tmp_path):
    made = make_robomimic.make(tmp_path)["demos/demo_0"]
    with change(tmp_path) as file:
        for demo in file["data"].values():
            demo["obs/a_rgb"] = demo["obs/agentview_image"][()] // 2
            demo["obs/agentview_depth"] = np.zeros((len(demo["actions"]), 16, 16, 1), np.float32)
    episode = read(tmp_path, state="robot0_gripper")["demos/demo_0"]
    np.testing.assert_array_equal(episode.columns["state"], made["state"][:, 3:])
    assert list(episode.cameras) == ["image", "image_a"], "agentview is the main camera wherever it stands"
    np.testing.assert_array_equal(list(episode.cameras["image_a"]), made["frames"] // 2)
    assert episode.left_out == ["obs/agentview_depth", "obs/robot0_arm", "rewards"]
    episode = read(tmp_path, cameras="a")["demos/demo_0"]
    assert list(episode.cameras) == ["image"] and "obs/agentview_image" in episode.left_out
    with pytest.raises(UserError, match="no camera 'wrist'.*it has a, agentview"):
        robomimic.find(tmp_path, OPTIONS | {"cameras": "wrist"})
    with pytest.raises(UserError, match="no vector 'robot0_grip'.*did you mean 'robot0_gripper'"):
        robomimic.find(tmp_path, OPTIONS | {"state": "robot0_grip"})


def test_instructions_of_other_writers(tmp_path):
    make_robomimic.make(tmp_path)
    with change(tmp_path) as file:
        for demo in file["data"].values():
            del demo.attrs["instruction"]
    episode = read(tmp_path)["demos/demo_0"]
    assert (episode.text, episode.task) == ("", "Lift")
    with change(tmp_path) as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "close it"})
        file["data/demo_2"].attrs["task"] = "drawers"
    found = [(e.text, e.task) for e in read(tmp_path).values()]
    assert found == [("open the drawer", ""), ("close it", ""), ("open the drawer", "drawers")]


def test_nothing_leaves_the_file(tmp_path):
    make_robomimic.make(tmp_path)
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(5 * 4 * 8))
    layout = h5py.VirtualLayout((5, 4), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "demos.hdf5", "data/demo_0/actions", (5, 4))
    for place, make in (
        ("data/demo_0/actions", lambda g, n: g.__setitem__(n, h5py.ExternalLink("other.hdf5", "/actions"))),
        ("data/demo_0/obs/robot0_arm", lambda g, n: g.__setitem__(n, h5py.SoftLink("/data/demo_1/obs/robot0_arm"))),
        ("data/demo_0/actions", lambda g, n: g.create_dataset(n, (5, 4), "f8", external=[(str(secret), 0, 160)])),
        ("data/demo_0/actions", lambda g, n: g.create_virtual_dataset(n, layout)),
    ):
        with change(tmp_path) as file:
            group, name = file[place.rsplit("/", 1)[0]], place.rsplit("/", 1)[1]
            del group[name]
            make(group, name)
        with pytest.raises((ValueError, UserError), match="is a link to somewhere else|keeps its data in other files"):
            read(tmp_path)
        make_robomimic.make(tmp_path)


def test_lengths_and_what_was_never_written(tmp_path):
    make_robomimic.make(tmp_path)
    with change(tmp_path) as file:
        file["data/demo_1"].attrs["num_samples"] = 8
    with pytest.raises(ValueError, match="data/demo_1: it has 7 actions, num_samples says 8"):
        read(tmp_path)
    with change(tmp_path) as file:
        file["data/demo_1"].attrs["num_samples"] = 7
        del file["data/demo_1/obs/robot0_arm"]
        file["data/demo_1/obs/robot0_arm"] = np.zeros((6, 3))
    with pytest.raises(ValueError, match="robot0_arm has 6 rows, there are 7 actions"):
        read(tmp_path)
    with change(tmp_path) as file:
        del file["data/demo_1/obs/robot0_arm"]
        arm = file["data/demo_1/obs"].create_dataset("robot0_arm", (7, 3), "f4", chunks=(2, 3))
        arm[:4] = 1
    with pytest.raises(ValueError, match="robot0_arm: 2 of 4 parts were never written"):
        read(tmp_path)


def test_files_of_a_folder(tmp_path):
    make_robomimic.make(tmp_path / "b")
    make_robomimic.make(tmp_path / "a", seed=1)
    with h5py.File(tmp_path / "a/demos.hdf5", "r+") as file:
        del file["mask"]
    (tmp_path / "a/notes.txt").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.hdf5").write_text("x")
    listing = robomimic.find(tmp_path, OPTIONS, exclude=(tmp_path / "out").resolve())
    assert [i.name for i in listing.items] == [f"{f}/demos/demo_{k}" for f in "ab" for k in range(3)]
    assert [i.split for i in listing.items] == ["train", "train", "train", "train", "val", "train"]
    assert listing.left_out == {"files .txt": 1}
    (tmp_path / "out/x.hdf5").rename(tmp_path / "a/x.h5")
    with pytest.raises(UserError, match="a/x.h5: it cannot be opened as HDF5"):
        robomimic.find(tmp_path, OPTIONS)
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["action"] = np.zeros((3, 2))
    assert not robomimic.detect(tmp_path / "plain.h5")
    with pytest.raises(UserError, match="plain.h5: it has no groups data/demo_N"):
        robomimic.find(tmp_path / "plain.h5", OPTIONS)
