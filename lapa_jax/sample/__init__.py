"""The embedded sample: short push-table episodes as step shards, so that everything can be tried without any data.

`config.data.path = "sample"` and `--data sample` name it. Made by the command in docs/data_formats.md; using it needs
neither mujoco nor a GL driver.
"""

import pathlib


def path() -> str:
    """The folder of the sample's step shards."""
    return str(pathlib.Path(__file__).resolve().parent)
