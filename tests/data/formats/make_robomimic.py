"""A small robomimic file for tests."""

import json
import pathlib

import h5py
import numpy as np

LENGTHS = (5, 7, 4)
_CHECKED = {"chunks": True, "fletcher32": True}


def make(folder: pathlib.Path, seed: int = 0) -> dict[str, dict]:
    """Writes `demos.hdf5`: three demonstrations, the second held out, one camera, two vectors.

    The layout is that of robomimic's writer. Unlike there the data and the headers have checksums.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    with h5py.File(folder / "demos.hdf5", "w", libver="latest") as file:
        data = file.create_group("data")
        settings = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}
        data.attrs["env_args"] = np.bytes_(json.dumps(settings))
        for number, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo.attrs["instruction"] = np.bytes_(f"lift block {number}")  # of fixed length: within the checksum
            grip, arm = random.normal(size=(length, 1)), random.normal(size=(length, 3))
            actions, images = random.normal(size=(length, 4)), random.integers(0, 255, (length, 16, 16, 3), np.uint8)
            demo.create_dataset("actions", data=actions, **_CHECKED)
            demo.create_dataset("rewards", data=np.zeros(length), **_CHECKED)
            demo.create_dataset("obs/robot0_gripper", data=grip, **_CHECKED)
            demo.create_dataset("obs/robot0_arm", data=arm, **_CHECKED)
            demo.create_dataset("obs/agentview_image", data=images, compression="gzip", **_CHECKED)
            made[f"demos/demo_{number}"] = {
                "action": actions.astype(np.float32),
                "state": np.concatenate([arm, grip], 1).astype(np.float32),
                "text": f"lift block {number}",
                "frames": images,
            }
        file.create_dataset("mask/train", data=np.array([b"demo_0", b"demo_2"]))
        file.create_dataset("mask/valid", data=np.array([b"demo_1"]))
    return made
