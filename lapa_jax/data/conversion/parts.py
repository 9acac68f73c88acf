"""One episode becomes one part: its samples as tar members in a file, and a small JSON that says it is whole."""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lapa_jax.core.files import atomic_path, write_json
from lapa_jax.data import images, shards
from lapa_jax.data.conversion.plan import COLUMNS, arrays_path, read_arrays
from lapa_jax.data.datasets.video import Frames

_IN_MEMORY = 64 << 20


class Job(NamedTuple):
    """What a worker needs to make a part: the input folder, the parts folder, the options and the plan's entry."""

    root: str
    parts: str
    options: dict
    columns: dict
    episode: dict


class Failure(NamedTuple):
    """An episode that could not be converted, and why."""

    id: str
    error: str


def make_part(job: Job) -> Failure | None:
    """Converts one episode; a file that cannot be read is a `Failure`, not an exception."""
    try:
        _write(job)
    except ValueError as error:
        return Failure(job.episode["id"], " ".join(str(error).split()))
    return None


def _write(job: Job) -> None:
    """Frames go to a spool first: each sample's `.json` tells the episode's length, known only at the end."""
    episode, options = job.episode, job.options
    arrays, left_out = _arrays(job)
    frames = Frames(pathlib.Path(job.root) / episode["path"], episode["kind"], options["fps"])
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=job.parts) as spool:
        sizes = []
        for frame in frames:
            picture = images.resize(frame, options["size"], options["resize"])
            sizes.append(spool.write(images.encode(picture, options["quality"])))
        _check_lengths(arrays, len(sizes))
        meta = {"episode": episode["id"], "length": len(sizes), "fps": frames.fps, "source": episode["path"]}
        spool.seek(0)
        with atomic_path(pathlib.Path(job.parts) / f"{episode['id']}.part") as path, open(path, "wb") as file:
            for step, size in enumerate(sizes):
                members = {"image.jpg": spool.read(size), "json": shards.json_bytes({**meta, "step": step})}
                if episode["text"]:
                    members["txt"] = episode["text"].encode()
                for name, rows in arrays.items():
                    if step < len(rows):
                        members[f"{name}.npy"] = shards.array_bytes(rows[step])
                file.write(shards.sample_bytes(shards.step_key(episode["id"], step), members))
            size = file.tell()
    summary = {"steps": len(sizes), "bytes": size, "fps": frames.fps, "left_out": left_out}
    write_json(meta_path(job.parts, episode["id"]), summary)


def _arrays(job: Job) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns of an episode as f32[T, ...], and the names of the arrays that stay behind."""
    if not job.columns:
        return {}, []
    name = job.episode["arrays"]
    if not name:
        raise ValueError("the captions file gives it no arrays, while other episodes have them")
    found = read_arrays(arrays_path(job.options["captions"], name))
    arrays = {}
    for column, shape in job.columns.items():
        if column not in found:
            raise ValueError(f"its arrays have no '{column}', the first episode has it")
        rows = found[column]
        if list(rows.shape[1:]) != shape or rows.ndim < 1:
            raise ValueError(f"its '{column}' has rows of shape {list(rows.shape[1:])}, the first episode has {shape}")
        rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            raise ValueError(f"its '{column}' holds numbers that are not finite")
        arrays[column] = rows
    return arrays, sorted(set(found) - set(COLUMNS))


def _check_lengths(arrays: Mapping[str, np.ndarray], frames: int) -> None:
    if "action" in arrays and len(arrays["action"]) != frames - 1:
        rows = len(arrays["action"])
        raise ValueError(f"it has {frames} frames and {rows} actions; an episode has one frame more than actions")
    if "state" in arrays and len(arrays["state"]) not in (frames, frames - 1):
        raise ValueError(f"it has {frames} frames and {len(arrays['state'])} states; frames or frames - 1 are possible")


def meta_path(parts: str | os.PathLike, episode: str) -> pathlib.Path:
    """The file whose presence says that the part of an episode is whole."""
    return pathlib.Path(parts) / f"{episode}.json"


def read_part(parts: str | os.PathLike, episode: str) -> dict | None:
    """{"steps", "bytes", "fps", "left_out"} of a whole part, None where it is not there yet."""
    try:
        return json.loads(meta_path(parts, episode).read_text())
    except FileNotFoundError:
        return None


def remove_part(parts: str | os.PathLike, episode: str) -> None:
    """Deletes a part, first what says that it is whole."""
    meta_path(parts, episode).unlink(missing_ok=True)
    (pathlib.Path(parts) / f"{episode}.part").unlink(missing_ok=True)
