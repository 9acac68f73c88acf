"""RLDS datasets as TensorFlow Datasets writes them (Open X-Embodiment), read without TensorFlow.

A dataset is a folder with `features.json`, `dataset_info.json` and shards of TFRecord or ArrayRecord. Each record is
one episode, a serialised `tf.train.Example`. What its fields mean is the business of `conventions` and `oxe`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.base import Episode, Item, Listing, choose_cameras, folder_of
from lapa_jax.data.formats.reading import numeric_rows
from lapa_jax.data.formats.rlds import conventions
from lapa_jax.data.formats.rlds import features as rlds_features
from lapa_jax.data.formats.rlds import shards as rlds_shards
from lapa_jax.data.formats.rlds.conventions import Convention, openness
from lapa_jax.data.formats.rlds.oxe import CONVENTIONS
from lapa_jax.data.image_files import WHITE, open_frame

FEATURES = {
    "image": "the convention's first camera; the others are image_<name>",
    "action": "float32[A], names and units by convention; a gripper is 1 = open, 0 = closed",
    "state": "float32[S] as published, in the order of the convention or of --state",
    "txt": "the instruction",
}

_HELD_OUT = ("val", "valid", "validation", "test", "eval")
_ZERO = 1e-5
"""Bridge's first actions are zero up to rounding, below 1e-6 m and rad."""


def detect(source: pathlib.Path) -> bool:
    """Whether a folder, or a folder at most two levels below it, is a TensorFlow Datasets folder."""
    return source.is_dir() and bool(rlds_shards.folders(source, None))


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """Every episode that `dataset_info.json` lists, by the records of its shards.

    Raises:
      UserError: no dataset or several, an unknown convention, a shard that is damaged or holds another number of
        episodes than listed.
    """
    folder = rlds_shards.dataset_folder(source, exclude)
    info = rlds_shards.read_info(folder)
    plan = _plan(folder, *_choices(options), _stamp(folder, options))
    shards = rlds_shards.shards(folder, info)
    held_out = any(shard.split in _HELD_OUT for shard in shards)
    listing, problems = Listing([], notes=_notes(info, plan)), []
    for shard in shards:
        path = shard.path.relative_to(source).as_posix()
        side = ("val" if shard.split in _HELD_OUT else "train") if held_out else ""
        if not shard.path.exists():
            why = f"{rlds_shards.INFO} lists it with {shard.episodes} episodes, the file is not there"
            listing.missing.append((path, why))
            continue
        try:
            records = rlds_shards.records(shard, info["fileFormat"])
        except (ValueError, OSError) as error:
            problems.append(f"{shard.path}: {error}")
            continue
        name = f"{shard.split}-{shard.number:05d}"
        listing.items += [Item(f"{name}-{i:05d}", path, at, size, side) for i, (at, size) in enumerate(records)]
    if problems:
        more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; copy it again from the dataset")
    if not listing.items:
        raise UserError(
            f"{folder}: of {len(shards)} shards that {rlds_shards.INFO} lists none is there with an episode"
        )
    listing.items.sort()
    listing.left_out = rlds_shards.others(folder, shards)
    return listing


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One episode. Its record is in memory, its pictures stay encoded until they are taken.

    Raises:
      ValueError: the record is damaged, holds more than one episode, or the main camera is blank throughout.
    """
    path = folder_of(source) / item.path
    folder = rlds_shards.folder_above(path)
    plan = _plan(folder, *_choices(options), _stamp(folder, options))
    steps, beside = plan.parser(rlds_shards.payload(path, item.at))
    _check_flags(steps)
    wanted = {"action": plan.convention.action, "state": plan.state}
    columns = {name: _rows(steps, keys, name) for name, keys in wanted.items() if keys}
    start = 0
    if "action" in columns:
        start = _steps_to_drop(columns["action"], plan.convention)
        columns["action"] = _openness(columns["action"], plan.convention)
    dropped = {"first step, whose action is zero": start} if start else {}
    texts = [_text({**beside, **step}, plan.convention.language, t) for t, step in enumerate(steps)][start:]
    return Episode(
        cameras=_cameras(steps, plan.cameras, start),
        columns={name: rows[start:] for name, rows in columns.items()},
        text=texts[0] if len(set(texts)) == 1 else texts,
        fps=plan.convention.fps,
        names={name: words for name, words in plan.names.items() if words and name in columns},
        left_out=plan.left_out,
        dropped=dropped,
    )


class _Plan(NamedTuple):
    """How the episodes of one dataset are read: what `--convention`, `--cameras` and `--state` come to."""

    name: str
    convention: Convention
    cameras: dict[str, str]
    state: tuple[str, ...]
    names: dict[str, Sequence[str]]
    parser: rlds_features.Parser
    left_out: tuple[str, ...]


def _choices(options: Mapping) -> tuple[str | None, str, str]:
    return options["convention"], options["cameras"], options["state"]


def _stamp(folder: pathlib.Path, options: Mapping) -> tuple[int, ...]:
    """Changes when one of the files behind a plan does, so that a plan is not kept beyond them."""
    paths = [folder / rlds_shards.INFO, folder / rlds_features.FILE, pathlib.Path(options["convention"] or folder)]
    return tuple(path.stat().st_mtime_ns for path in paths if path.is_file())


def _notes(info: Mapping, plan: _Plan) -> dict:
    """What the report says of the dataset, as JSON: most of all, how it was read."""
    values = dataclasses.asdict(plan.convention)
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"dataset": info["name"], "version": info["version"], "convention": {"name": plan.name, **values}}


@functools.lru_cache(maxsize=8)
def _plan(folder: pathlib.Path, wanted: str | None, cameras: str, state: str, stamp: tuple[int, ...]) -> _Plan:
    features = rlds_features.Features(folder)
    fields = {**features.episode, **features.step}
    name, convention = conventions.load(wanted, rlds_shards.read_info(folder)["name"], fields, CONVENTIONS)
    pictures = _pictures(features, convention, cameras, folder)
    states, state_names = conventions.choose_state(convention, features.step, state)
    flags = [key for key in ("is_first", "is_last") if key in features.step]
    keys = {conventions.parse_key(key)[0] for key in (*convention.action, *states)}
    used = {*keys, *pictures, *convention.language, *flags}
    left_out = tuple(sorted(set(fields) - used))
    names = {"action": convention.action_names, "state": state_names}
    return _Plan(name, convention, pictures, states, names, features.parser(sorted(used)), left_out)


def _pictures(features: rlds_features.Features, convention: Convention, wanted: str, folder: pathlib.Path) -> dict:
    """{key of a picture field: member}. "all" are the convention's; by name any picture field can be had."""
    keys = list(convention.cameras)
    if wanted != "all":
        keys += [key for key, field in features.step.items() if field.kind == "image" and key not in keys]
    short = {key.removeprefix("observation/"): key for key in keys}
    try:
        return {short[name]: member for name, member in choose_cameras(list(short), wanted).items()}
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def _check_flags(steps: Sequence[Mapping]) -> None:
    """A record is one episode: no step but the first begins one, none but the last ends one."""
    if not steps:
        raise ValueError("the episode has no steps")
    for t, step in enumerate(steps):
        if (t and step.get("is_first")) or (t + 1 < len(steps) and step.get("is_last")):
            flag = "is_first" if t and step.get("is_first") else "is_last"
            raise ValueError(f"step {t} of {len(steps)} is marked {flag}: the record holds more than one episode")


def _rows(steps: Sequence[Mapping], keys: Sequence[str], name: str) -> np.ndarray:
    """float32[T, D] of number fields, side by side."""
    parts = [conventions.parse_key(key) for key in keys]
    rows = [np.concatenate([np.asarray(step[key]).reshape(-1)[part] for key, part in parts]) for step in steps]
    return numeric_rows(np.stack(rows), name)


def _steps_to_drop(action: np.ndarray, convention: Convention) -> int:
    """1 where the convention drops a first step whose action, the gripper aside, is zero, else 0."""
    moving = [d for d in range(action.shape[1]) if d != convention.gripper]
    return int(convention.drop_first and len(action) > 1 and (np.abs(action[0, moving]) < _ZERO).all())


def _openness(action: np.ndarray, convention: Convention) -> np.ndarray:
    if convention.gripper is not None:
        action[:, convention.gripper] = openness(action[:, convention.gripper], convention.gripper_means)
    return action


def _text(values: Mapping, keys: Sequence[str], t: int) -> str:
    for key in keys:
        try:
            text = _as_text(values[key])
        except (UnicodeDecodeError, ValueError):
            raise ValueError(f"step {t}: '{key}' is no UTF-8 text") from None
        if text:
            return text
    return ""


def _as_text(value) -> str:
    """Text from a string, an array of strings (the first that is not empty), or UTF-8 as integers padded with 0."""
    if isinstance(value, bytes):
        return value.decode().strip()
    if isinstance(value, str):
        return value.strip()
    value = np.asarray(value).reshape(-1)
    if value.dtype.kind in "iu":
        return bytes(value[value != 0].tolist()).decode().strip()
    if value.dtype.kind not in "OSU":
        raise ValueError("neither text nor integers")
    return next((text for text in map(_as_text, value.tolist()) if text), "")


def _cameras(steps: Sequence[Mapping], cameras: Mapping[str, str], start: int) -> dict[str, Iterator]:
    taken = {}
    for i, (key, member) in enumerate(cameras.items()):
        frames = [step[key] for step in steps[start:]]
        if i == 0 and all(_blank(frame, key, start + t) for t, frame in enumerate(frames)):
            raise ValueError(f"every frame of the main camera '{key}' is blank")
        taken[member] = iter(frames) if i == 0 else _without_blanks(frames, key, start)
    return taken


def _without_blanks(frames: Sequence, key: str, start: int) -> Iterator[np.ndarray | bytes | None]:
    for t, frame in enumerate(frames):
        yield None if _blank(frame, key, start + t) else frame


def _blank(frame: np.ndarray | bytes, key: str, t: int) -> bool:
    """Whether a picture has one value throughout: what datasets store where a camera was not there."""
    try:
        pixels = open_frame(frame, white=WHITE)
    except ValueError as error:
        raise ValueError(f"step {t}: the picture '{key}' cannot be decoded ({error})") from None
    return bool((pixels == pixels[0, 0]).all())
