"""The embedded samples, so that everything can be tried without any data.

`config.data.path = "sample"` and `--data sample` name short push-table episodes as step shards. Made by the command in
docs/reference/data_formats.md; using them needs neither mujoco nor a GL driver. "sample_features" names feature vectors
with planted categories, made by tools/make_planted_features.py --rows 640 --categories 4 --val_fraction 0.2.
"sample_latents" names labels of "sample", by launch/label.py with a run of configs/laq.py:tiny.

`python tools/sample_videos.py FOLDER` writes 800 other push-table episodes as users have theirs, as mp4 files. They are
enough for latent actions that mean something, which "sample" with its 42 training episodes is not.
"""

import pathlib

VIDEOS = pathlib.Path(__file__).parent / "mp4" / "videos.tar.gz"
"""Of tools/record_sim.py, see docs/reference/data_formats.md."""

FOLDERS = {"sample": ".", "sample_features": "features", "sample_latents": "latents"}


def path(name: str = "sample") -> str:
    """The folder of a sample's step shards; names are those of `FOLDERS`."""
    return str((pathlib.Path(__file__).resolve().parent / FOLDERS[name]).resolve())
