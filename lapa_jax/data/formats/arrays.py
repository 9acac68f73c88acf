"""Numbers without pictures: trajectories of actions and states, and tables of feature vectors, in npz, npy or HDF5.

A trajectory is the arrays `action`, `state` or both, [T, A] each: an npz file, or a group of an HDF5 file. It may say
what it is with the texts `instruction` and `task` and the number `fps` (HDF5: attributes or datasets). A table is an
array `feature` [N, F], or the only array of a file; it is cut into episodes of 4096 rows, since rows of a table follow
each other without meaning.
"""

import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import hdf5, npz
from lapa_jax.data.formats.base import Episode, Item, Listing, folder_of
from lapa_jax.data.formats.reading import numeric_rows, reading, whole_source
from lapa_jax.data.formats.robomimic import is_robomimic
from lapa_jax.data.formats.video import natural_key

FEATURES = {
    "action": "f32[A] array action, what was done at a step, in the recorder's units",
    "state": "f32[S] array state, in the recorder's units",
    "feature": "f32[F] array feature, or the only array of a file: a row a step",
    "instruction": "text instruction",
}
ENDINGS = (".npz", ".npy", *hdf5.ENDINGS)
TABLE_ROWS = 4096
"""Rows of a table that make an episode."""

_NAMES = {"action": "action", "actions": "action", "state": "state", "states": "state"}
_TABLES = ("feature", "features")
_ABOUT = ("instruction", "task", "fps")
_END_TO_END = ("terminals", "timeouts", "episode_ends")


class Place(NamedTuple):
    """Where arrays lie together: the group of an HDF5 file ("" for other files), and {name: shape}."""

    group: str
    shapes: dict[str, tuple[int, ...]]


def detect(source: pathlib.Path) -> bool:
    """Whether a file, or any in a folder, ends in npz, npy or an ending of HDF5 and is no robomimic file."""
    paths = [source] if source.is_file() else (source / name for name in _walk(source, None, {}))
    for path in paths:
        ending = path.suffix.lower()
        if ending in ENDINGS and not (ending in hdf5.ENDINGS and is_robomimic(path)):
            return True
    return False


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """All trajectories, and the tables in pieces of `TABLE_ROWS`.

    Raises:
      UserError: a file is damaged, is robomimic's, or holds nothing that makes an episode.
    """
    others: dict[str, int] = {}
    names = [source.name] if source.is_file() else list(_walk(source, exclude, others))
    listing = Listing([], left_out=dict(sorted(others.items())))
    stems = [pathlib.PurePath(name).with_suffix("").as_posix() for name in names]
    counts = Counter(stems)
    for name, stem in zip(names, stems):
        path = folder_of(source) / name
        stem = stem if counts[stem] == 1 else name
        with whole_source(path), reading():
            size = path.stat().st_size
            for place in _places(path):
                full = "/".join(part for part in (stem, place.group.strip("/")) if part)
                listing.items += [Item(full + tail, name, at, size) for tail, at in _pieces(place)]
    return listing


def _walk(root: pathlib.Path, exclude: pathlib.Path | None, others: dict[str, int]) -> Iterator[str]:
    """The files of arrays under a folder, in natural order; other files are counted."""
    for folder, folders, names in os.walk(root, followlinks=True):
        here = pathlib.Path(folder)
        folders[:] = sorted(
            (n for n in folders if not n.startswith(".") and (here / n).resolve() != exclude), key=natural_key
        )
        for name in sorted((n for n in names if not n.startswith(".")), key=natural_key):
            ending = pathlib.PurePath(name).suffix.lower()
            if ending in ENDINGS:
                yield (here / name).relative_to(root).as_posix()
            else:
                what = f"files {ending or 'without ending'}"
                others[what] = others.get(what, 0) + 1


def _places(path: pathlib.Path) -> list[Place]:
    """Where in a file there are arrays that make episodes."""
    if path.suffix.lower() not in hdf5.ENDINGS:
        found = npz.headers(path)
        shapes = {name: header.shape for name, header in found.items() if name not in _ABOUT}
        return [_judged(Place("", shapes))]
    if is_robomimic(path):
        raise UserError(f"{path} is a robomimic file: convert it with --format robomimic")
    with hdf5.open_hdf5(path) as file:
        places = [Place(group, shapes) for group, shapes in _groups(file, set())]
    if len(places) > 1:  # beside trajectories in groups, what lies elsewhere in the file is no episode
        places = [place for place in places if set(place.shapes) & {*_NAMES, *_TABLES}]
    if not places:
        raise ValueError("it has no arrays action, state or feature")
    return [_judged(place) for place in places]


def _groups(group, seen: set) -> Iterator[tuple[str, dict]]:
    """(name, {array: shape}) of a group and of those within that have arrays, in natural order."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        raise ValueError(f"group {group.name} is contained in itself, or twice")
    seen.add(address)
    arrays = {name: data.shape or () for name, data in hdf5.datasets(group).items() if name not in _ABOUT}
    if arrays:
        yield group.name, arrays
    for name in sorted(hdf5.members(group), key=natural_key):
        if isinstance(group[name], h5py.Group):
            yield from _groups(group[name], seen)


def _judged(place: Place) -> Place:
    """A place whose arrays make a trajectory or a table; anything else is a ValueError."""
    where = f"group {place.group}" if place.group.strip("/") else "it"
    shapes = place.shapes
    ends = [name for name in _END_TO_END if name in shapes]
    if ends:
        raise ValueError(f"{where} holds many trajectories end to end ('{ends[0]}'): save each in a file or group")
    twice = [name for name in ("action", "state", "feature") if {name, f"{name}s"} <= set(shapes)]
    if twice:
        raise ValueError(f"{where} has both '{twice[0]}' and '{twice[0]}s': remove one")
    if any(name in shapes for name in _NAMES):
        if any(name in shapes for name in _TABLES):
            raise ValueError(f"{where} has both a trajectory and a table of features: save them in two files")
        return place
    if _table(shapes) is None:
        known = ", ".join(f"{name or 'an array'} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
        raise ValueError(
            f"{where} has {known}; a trajectory has arrays 'action' and 'state' [steps, dimensions], a table one "
            "array 'feature' [rows, dimensions]"
        )
    return place


def _table(shapes: Mapping[str, tuple]) -> str | None:
    """The name of the array that is the table; None where there is none. The name "" is that of an npy's array."""
    named = [name for name in _TABLES if name in shapes]
    if named:
        return named[0]
    return next(iter(shapes)) if len(shapes) == 1 and len(next(iter(shapes.values()))) == 2 else None


def _pieces(place: Place) -> Iterator[tuple[str, dict]]:
    """(what is added to the name, where it is) of the episodes at a place."""
    at = {"group": place.group}
    table = None if any(name in place.shapes for name in _NAMES) else _table(place.shapes)
    if table is None:
        yield "", at
        return
    shape = place.shapes[table]
    rows = shape[0] if shape else 0
    for number, start in enumerate(range(0, max(rows, 1), TABLE_ROWS)):
        tail = f"/rows_{number:06d}" if rows > TABLE_ROWS else ""
        yield tail, {**at, "table": table, "rows": [start, min(start + TABLE_ROWS, rows)]}


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One trajectory, or one piece of a table."""
    path, group = folder_of(source) / item.path, item.at["group"]
    with reading(f"group {group}" if group.strip("/") else ""):
        if path.suffix.lower() not in hdf5.ENDINGS:
            names = list(npz.headers(path))
            return _episode(item, names, lambda *a: npz.read_rows(path, *a), lambda name: _about_npz(path, names, name))
        with hdf5.open_hdf5(path) as file:
            root = _descend(file, group)
            arrays = hdf5.datasets(root)
            return _episode(
                item,
                sorted(hdf5.members(root)),
                lambda name, *span: hdf5.read_values(arrays[name], *span),
                lambda name: _about_hdf5(root, arrays, name),
            )


def _descend(file, group: str):
    """The group of a name, step by step, so that no link is followed."""
    for part in group.strip("/").split("/"):
        file = hdf5.subgroup(file, part) if part else file
        if file is None:
            raise ValueError("there is no such group")
    return file


def _episode(item: Item, names: list[str], rows: Callable, about: Callable) -> Episode:
    """The standard form, given how to read rows of an array and the texts of an episode."""
    columns, used = {}, {*_ABOUT}
    if "table" in item.at:
        table = item.at["table"]
        columns["feature"] = _numbers(rows, table, *item.at["rows"])
        used.add(table)
    else:
        for name in names:
            if name in _NAMES:
                columns[_NAMES[name]] = _numbers(rows, name)
                used.add(name)
        if not columns:
            raise ValueError("it has no arrays action or state")
        counts = {name: len(column) for name, column in columns.items()}
        if max(counts.values()) - min(counts.values()) > 1:
            raise ValueError(f"it has {counts['action']} actions and {counts['state']} states: as many, or one less")
    fps = about("fps")
    if fps is not None and not (isinstance(fps, float) and 0 < fps < 1e6):
        raise ValueError(f"its fps is {fps!r}, it should be a positive number")
    text, task = (_string(about(name), name) for name in ("instruction", "task"))
    return Episode({}, columns, text, task, fps, left_out=[name for name in names if name not in used])


def _numbers(rows: Callable, name: str, *span: int) -> np.ndarray:
    """float32[T, A] of an array."""
    values = rows(name, *span)
    try:
        return numeric_rows(values, name or "the array")
    except ValueError as error:
        raise ValueError(f"{error} (counted from row {span[0]})" if span and span[0] else str(error)) from None


def _string(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"its {name} is {value!r}, it should be text")
    return value


def _about_npz(path: pathlib.Path, names: list[str], name: str) -> str | float | None:
    if name not in names or path.suffix.lower() == ".npy":
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return _plain(arrays[name], name)


def _about_hdf5(group, arrays: Mapping, name: str) -> str | float | None:
    if name in group.attrs:
        return _plain(group.attrs[name], name)
    return _plain(arrays[name][()], name) if name in arrays else None


def _plain(value: object, name: str) -> str | float:
    """A scalar in any of its dresses, as text or a number."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise ValueError(f"'{name}' should be one text or one number")
    return str(value)
