"""The formats that users' data come in, one module each; see `lapa_jax.data.formats.base`."""

import importlib
import pathlib
import types

from lapa_jax.core.errors import UserError

NAMES = ("rlds", "lerobot", "robomimic", "lapa", "webdataset", "video", "arrays")
"""All formats, in the order in which `--format auto` asks them: those that name themselves before those that do not."""


def open_format(name: str) -> types.ModuleType:
    """The module of a format."""
    return importlib.import_module(f"lapa_jax.data.formats.{name}")


def detect(source: pathlib.Path) -> str:
    """The name of the first format that recognises a file or folder."""
    for name in NAMES:
        if open_format(name).detect(source):
            return name
    raise UserError(
        f"{source} holds nothing that is recognised as {', '.join(NAMES)}; give its format with --format, or see "
        "docs/reference/data_formats.md for what each looks like"
    )
