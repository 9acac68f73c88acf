"""The formats that users' data come in, one module each; see `lapa_jax.data.formats.base`."""

import dataclasses
import importlib
import pathlib
import types
from collections.abc import Mapping

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.base import Episode, Item
from lapa_jax.data.formats.instructions import as_instruction

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


def read_episode(name: str, source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One episode of a format in the standard form, without what the options leave out with "none".

    Args:
      name: of the format. source: the path that the user gave. item: of the format's listing.
      options: `Options.for_readers()`.

    Raises:
      ValueError: the episode cannot be read.
    """
    episode: Episode = open_format(name).standardize(source, item, options)
    text = episode.text
    text = as_instruction(text) if isinstance(text, str) else [as_instruction(step) for step in text]
    columns = {column: rows for column, rows in episode.columns.items() if options.get(column) != "none"}
    return dataclasses.replace(
        episode,
        cameras={} if options.get("cameras") == "none" else episode.cameras,
        columns=columns,
        names={column: names for column, names in episode.names.items() if column in columns},
        text="" if options.get("captions") == "none" else text,
    )
