"""What every format gives the converter: a listing of the episodes, and each episode in the standard form.

A format is one module of this package with

  FEATURES     {member: what it holds in this format, with units}; the members of a step shard that it can fill
  detect       (source) -> bool: whether a file or folder is of this format; reads no more than names and headers
  find         (source, options, exclude) -> Listing: every episode, without decoding it
  standardize  (source, item, options) -> Episode: one episode in the standard form

`source` is the path that the user gave, a file or a folder. A module is found by its name: `--format NAME` imports
`lapa_jax.data.formats.NAME`, and `NAMES` gives the order in which `--format auto` asks.
"""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import did_you_mean
from lapa_jax.data import modalities

COLUMNS = {"action": np.float32, "state": np.float32, "feature": np.float32, "latent": np.int32}
"""Numeric members of step shards and their dtypes."""

MAIN = "image"
"""Member name of the main camera; the others are `image_<name>`."""


class Item(NamedTuple):
    """One episode to be, as the listing knows it.

    Attributes:
      name: unique in the source and stable; the episode's id is made from it.
      path: the file or folder it comes from, relative to the source; for reports.
      at: where in that file, as JSON that only the format understands; {} where the file is the episode.
      size: bytes of what is read; tells whether the episode has changed since.
      split: "train" or "val" where the source itself says so, "" where it does not.
      text: the instruction where the listing knows it, else "".
    """

    name: str
    path: str
    at: dict
    size: int
    split: str = ""
    text: str = ""


@dataclasses.dataclass
class Listing:
    """All episodes of a source.

    Attributes:
      items: sorted, so that the same source gives the same shards.
      missing: (path, why) of episodes that the source's own tables list but whose files are not there.
      left_out: {what: how many} of things that give no episode: files of another kind, captions without a video.
      notes: anything else for the report, as JSON.
      unread: as `Episode.unread`, of what lies beside the episodes.
    """

    items: list[Item]
    missing: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: dict = dataclasses.field(default_factory=dict)
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Episode:
    """One episode in the standard form. Whatever cannot be read is a ValueError, here or while frames are taken.

    Attributes:
      cameras: {"image": frames, "image_wrist": frames, ...}; each an iterable that is read once, a frame at a time:
        an array or the bytes of an image file, as `image_files.open_frame` takes it. None stands for a frame that the
        source leaves blank. Empty for data without images.
      columns: {"action": [T or T - 1, A], "state": [T, S], ...}, see `COLUMNS`; row t belongs to frame t.
      text: the instruction, one for the episode or one a step; "" where there is none.
      task: what episodes of the same task share; the instruction where the source knows nothing better ("").
      fps: steps per second, None where the source has no clock.
      names: {"action": ["x", "y", ...], ...}: what the dimensions are, where the source says so.
      left_out: fields of the source that the shards do not carry.
      dropped: {why: how many} steps of the source that are left out on purpose.
      unread: {"images", "actions" or "instructions": what the source holds of them that is in none of the above, and
        the remedy}. Conversion refuses a source whose shards would have none of what it clearly holds.
      remarks: {what: how many} things that were done or noticed, for the report; complete once the frames are read.
    """

    cameras: Mapping[str, Iterable[np.ndarray | bytes | None]] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    text: str | Sequence[str] = ""
    task: str = ""
    fps: float | None = None
    names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    left_out: Sequence[str] = ()
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: Counter = dataclasses.field(default_factory=Counter)


def folder_of(source: pathlib.Path) -> pathlib.Path:
    """The folder that item paths are relative to: the source, or where the source file lies."""
    return source.parent if source.is_file() else source


def choose_cameras(names: Sequence[str], wanted: str, main: str | None = None) -> dict[str, str]:
    """Which of a source's cameras become which members.

    Args:
      names: of the source's cameras, in its order.
      wanted: option `--cameras`: "all" (but depth and masks, by their names, beside colour), "none", or names separated
        by commas; the first of them is the main camera.
      main: the main camera where `wanted` is "all"; the first where None.

    Returns:
      {camera: member}, the main camera first; its member is "image", the others' are "image_<camera>". {} of none.

    Raises:
      ValueError: a wanted camera is not there.
    """
    if wanted == "none":
        return {}
    if wanted == "all":
        colour = [name for name in names if not modalities.is_depth(name)] or names
        first = main if main in colour else next(iter(colour), None)
        chosen = [name for name in (first, *colour) if name is not None]
    else:
        chosen = [name.strip() for name in wanted.split(",")]
    chosen = list(dict.fromkeys(chosen))
    for name in chosen:
        if name not in names:
            raise ValueError(f"it has no camera '{name}' (--cameras); it has {', '.join(names) or 'none'}")
    return {name: MAIN if i == 0 else f"{MAIN}_{member_name(name)}" for i, name in enumerate(chosen)}


def choose_vectors(names: Sequence[str], wanted: str, option: str, standard: Sequence[str] = ()) -> list[str]:
    """Which of a source's vectors make up a column, in this order.

    Args:
      names: of the vectors. They may be paths: the last part is enough where it is the only one of its name.
      wanted: "all", "none", or names separated by commas; `name[a:b]` is a part of a vector, see `parse_key`.
      option: "--state" or "--action", for errors.
      standard: those of "all".

    Raises:
      ValueError: a wanted vector is not there.
    """
    if wanted in ("all", "none"):
        return list(standard) if wanted == "all" else []
    chosen = []
    for key in (part.strip() for part in wanted.split(",")):
        word = parse_key(key)[0]
        fits = [name for name in names if word in (name, name.removeprefix("observation."))]
        fits = fits or [name for name in names if name.rpartition("/")[2] == word]
        if len(fits) != 1:
            short = [name.removeprefix("observation.") for name in names]
            many = f": it has {' and '.join(fits)}" if fits else did_you_mean(word, short)
            raise ValueError(f"it has no vector '{word}' ({option}){many}")
        chosen.append(fits[0] + key.removeprefix(word))
    return list(dict.fromkeys(chosen))


def parse_key(key: str) -> tuple[str, slice]:
    """`key[a:b]` as (key, slice(a, b)); without brackets everything."""
    match = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", key)
    return (match[1], slice(int(match[2]), int(match[3]))) if match else (key, slice(None))


def take_part(rows: np.ndarray, key: str) -> np.ndarray:
    """The columns of [T, A] that a key asks for; those that do not exist are a ValueError."""
    part = parse_key(key)[1]
    if part.stop is not None and not part.start < part.stop <= rows.shape[1]:
        raise ValueError(f"'{key}' is outside of its {rows.shape[1]} values")
    return rows[:, part]


def member_name(camera: str) -> str:
    """A camera's name as part of a member name: letters, digits and single underscores."""
    plain = camera.removeprefix("observation.").removeprefix("images.").removeprefix("image_")
    return "_".join("".join(c if c.isalnum() else " " for c in plain).split()) or "camera"
