"""Arrays in npz, npy or HDF5: trajectories of actions, states and images, and tables of feature vectors.

A trajectory is the arrays `action`, `state` or both, [T, A] each: an npz file, or a group of an HDF5 file. Arrays of
images beside them, in HDF5 also in groups within, are its cameras. It may say what it is with the texts `instruction`
and `task` and the number `fps` (HDF5: attributes or datasets). ALOHA's and ACT's files are of this kind: `action`,
`observations/qpos`, `observations/images/<camera>`, the images as pixels or as padded JPEG files.

A table is an array `feature` [N, F], or the only array of a file; it is cut into episodes of 4096 rows, since rows of a
table follow each other without meaning.
"""

import contextlib
import functools
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import array_images, hdf5, npz
from lapa_jax.data.formats.base import (
    Episode,
    Item,
    Listing,
    choose_cameras,
    choose_vectors,
    folder_of,
    parse_key,
    take_part,
)
from lapa_jax.data.formats.instructions import like_instruction
from lapa_jax.data.formats.reading import natural_key, numeric_rows, reading, walk, whole_source
from lapa_jax.data.formats.robomimic import is_robomimic

FEATURES = {
    "image": "arrays of images, [T, H, W, 3] or files of JPEG or PNG; the first by name is the main camera",
    "action": "f32[A] array action, or those that --action names, what was done at a step, in the recorder's units",
    "state": "f32[S] array state, or observations/qpos, or those that --state names, in the recorder's units",
    "feature": "f32[F] array feature, or the only array of a file: a row a step",
    "instruction": "text instruction",
}
ENDINGS = (".npz", ".npy", *hdf5.ENDINGS)
TABLE_ROWS = 4096
"""Rows of a table that make an episode."""

_NAMES = {"action": "action", "actions": "action", "state": "state", "states": "state"}
_NESTED_STATES = ("qpos", "state", "states", "proprio")
"""In groups within a trajectory, where it has no state of its own."""
_TABLES = ("feature", "features")
_TEXTS = ("instruction", "language_instruction", "language_raw")
_ABOUT = (*_TEXTS, "task", "fps")
_END_TO_END = ("terminals", "timeouts", "episode_ends")


class Place(NamedTuple):
    """Where arrays lie together.

    Attributes:
      group: of an HDF5 file; "" for other files.
      shapes: {name: shape} of the arrays; in a group with an action also those of the groups within, by their paths.
      images: the names of those that hold images.
    """

    group: str
    shapes: dict[str, tuple[int, ...]]
    images: tuple[str, ...]

    @property
    def is_named(self) -> bool:
        """Whether a name says what the arrays are."""
        return not {*_NAMES, *_TABLES}.isdisjoint(self.shapes)


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
            places, elsewhere = _places(path)
            for place in places:
                full = "/".join(part for part in (stem, place.group.strip("/")) if part)
                listing.items += [Item(full + tail, name, at | elsewhere, size) for tail, at in _pieces(place)]
    return listing


def _walk(root: pathlib.Path, exclude: pathlib.Path | None, others: dict[str, int]) -> Iterator[str]:
    """The files of arrays under a folder, in natural order; other files are counted."""
    for here, names in walk(root, exclude):
        for name in names:
            ending = pathlib.PurePath(name).suffix.lower()
            if ending in ENDINGS:
                yield (here / name).relative_to(root).as_posix()
            else:
                what = f"files {ending or 'without ending'}"
                others[what] = others.get(what, 0) + 1


def _places(path: pathlib.Path) -> tuple[list[Place], dict]:
    """Where in a file there are arrays that make episodes, and {"elsewhere": images that belong to none of them}."""
    if path.suffix.lower() not in hdf5.ENDINGS:
        arrays = {name: array for name, array in npz.arrays(path).items() if name not in _ABOUT}
        return [_judged(_place("", arrays))], {}
    if is_robomimic(path):
        raise UserError(f"{path} is a robomimic file: convert it with --format robomimic")
    with hdf5.open_hdf5(path) as file:
        places = list(_groups(file, set()))
        if not any({"action", "actions"} & set(place.shapes) for place in places):
            places = list(_with_other_actions(file)) or places
    named = [place for place in places if place.is_named]
    if named and len(places) > 1:  # beside trajectories in groups, what lies elsewhere in the file is no episode
        images = [f"{place.group.strip('/')}/{name}" for place in places if not place.is_named for name in place.images]
        return [_judged(place) for place in named], {"elsewhere": images} if images else {}
    whole = [place for place in places if place.images] or places
    if len(whole) > 1 and not whole[0].images or not whole:
        held = ", ".join(f"{place.group.strip('/')}/{name}" for place in whole for name in place.shapes)
        raise ValueError(f"it has no arrays action, state or feature{f'; it has {held:.300}' if held else ''}")
    return [_judged(place) for place in whole], {}


def _place(group: str, arrays: Mapping) -> Place:
    images = tuple(name for name, array in arrays.items() if array_images.layout(name, array))
    return Place(group, {name: array.shape or () for name, array in arrays.items()}, images)


def _groups(group, visited: set) -> Iterator[Place]:
    """A group and those within that have arrays, in natural order. A group with an action owns all that is within."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in visited:
        raise ValueError(f"group {group.name} is contained in itself, or twice")
    visited.add(address)
    arrays = {name: data for name, data in hdf5.datasets(group).items() if name not in _ABOUT}
    if {"action", "actions"} & set(arrays):
        yield _place(group.name, {name: data for name, data in hdf5.walk(group).items() if name not in _ABOUT})
        return
    if arrays:
        yield _place(group.name, arrays)
    for name in sorted(hdf5.members(group), key=natural_key):
        if isinstance(group[name], h5py.Group):
            yield from _groups(group[name], visited)


def _with_other_actions(group) -> Iterator[Place]:
    """The innermost groups that hold images and what is called an action otherwise, such as `action_eef` or
    `action/arm`: which of them is meant is for --action to say."""
    inner = [hdf5.subgroup(group, name) for name in sorted(hdf5.members(group), key=natural_key)]
    places = [place for member in inner if member is not None for place in _with_other_actions(member)]
    if places:
        yield from places
        return
    arrays = {name: data for name, data in hdf5.walk(group).items() if name not in _ABOUT}
    place = _place(group.name, arrays)
    # as long as the images, or a step less; statistics of actions are shorter
    lengths = {arrays[name].shape[0] - less for name in place.images for less in (0, 1)}
    actions = [data for name, data in arrays.items() if "action" in name.lower() and data.ndim in (1, 2)]
    if any(data.shape[0] in lengths for data in actions):
        yield place


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
    if not place.images and _table(shapes) is None:
        held = ", ".join(f"{name or 'an array'} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
        raise ValueError(
            f"{where} has {held}; a trajectory has arrays 'action' and 'state' [steps, dimensions], a table one "
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
    trajectory = place.images or not {*_NAMES}.isdisjoint(place.shapes)
    table = None if trajectory else _table(place.shapes)
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
    with reading(f"group {group}" if group.strip("/") else ""), _open(path, group) as store:
        if "table" in item.at:
            return _table_episode(store, item)
        return _trajectory(store, path, item, options)


class _Store(NamedTuple):
    """The arrays of a trajectory or table, whatever the file.

    Attributes:
      arrays: {name: array or dataset that is read when it is sliced}; in HDF5 names are paths within the group.
      read: (name, *rows) -> its numbers; whatever is damaged or no number is a ValueError.
      about: {name: function that gives its value} of single values, among them an HDF5 group's attributes.
    """

    arrays: Mapping
    read: Callable
    about: Mapping[str, Callable]


@contextlib.contextmanager
def _open(path: pathlib.Path, group: str) -> Iterator[_Store]:
    if path.suffix.lower() not in hdf5.ENDINGS:
        arrays = npz.arrays(path)
        yield _Store(arrays, functools.partial(npz.read_rows, path), {n: array.read for n, array in arrays.items()})
        return
    with hdf5.open_hdf5(path) as file:
        root = _descend(file, group)
        arrays = hdf5.walk(root)
        about = {name: functools.partial(data.__getitem__, ()) for name, data in arrays.items() if "/" not in name}
        about |= {name: functools.partial(root.attrs.__getitem__, name) for name in root.attrs}
        yield _Store(arrays, lambda name, *rows: hdf5.read_values(arrays[name], *rows), about)


def _descend(file, group: str):
    """The group of a name, step by step, so that no link is followed."""
    for part in group.strip("/").split("/"):
        file = hdf5.subgroup(file, part) if part else file
        if file is None:
            raise ValueError("there is no such group")
    return file


def _table_episode(store: _Store, item: Item) -> Episode:
    table, rows = item.at["table"], item.at["rows"]
    try:
        columns = {"feature": numeric_rows(store.read(table, *rows), table or "the array")}
    except ValueError as error:
        raise ValueError(f"{error} (counted from row {rows[0]})" if rows[0] else str(error)) from None
    text, task, fps = _about(store)
    left_out = [name for name in store.arrays if name not in (table, *_ABOUT)]
    return Episode({}, columns, text, task, fps, left_out=left_out)


def _trajectory(store: _Store, path: pathlib.Path, item: Item, options: Mapping) -> Episode:
    images, unread = _images(store, item)
    cameras = choose_cameras(list(images), options["cameras"])
    vectors = [name for name, array in store.arrays.items() if array.ndim in (1, 2) and name not in images.values()]
    used = {*_ABOUT, *(images[camera] for camera in cameras)}
    columns = {}
    for column, option in (("action", "--action"), ("state", "--state")):
        standard = [name for name in vectors if _NAMES.get(name) == column]
        if column == "state" and not standard:
            nested = [name for name in vectors if "/" in name and name.rpartition("/")[2] in _NESTED_STATES]
            standard = nested if len(nested) == 1 else []
        if chosen := choose_vectors(vectors, options[column], option, standard):
            columns[column] = _joined(store, chosen)
            used |= {parse_key(key)[0] for key in chosen}
    if not columns and not cameras:
        raise ValueError("it has no arrays action or state")
    counts = {name: len(column) for name, column in columns.items()}
    if counts and max(counts.values()) - min(counts.values()) > 1:
        raise ValueError(f"it has {counts['action']} actions and {counts['state']} states: as many, or one less")
    if "action" not in columns and (like := [name for name in vectors if "action" in name and name not in used]):
        unread["actions"] = f"{array_images.describe(like[0], store.arrays[like[0]])}; --action {like[0]} takes it"
    text, task, fps = _about(store)
    texts_of_other_names = [name for name in store.about if like_instruction(name) and name not in _TEXTS]
    if not text and (named := [name for name in texts_of_other_names if hdf5.instruction(store.about[name]())]):
        unread["instructions"] = f"the text {named[0]}; store it as the text instruction"
    frames = {member: _Images(path, item.at["group"], images[camera]) for camera, member in cameras.items()}
    left_out = sorted(name for name in store.arrays if name not in used)
    return Episode(frames, columns, text, task, fps, left_out=left_out, unread=unread)


def _images(store: _Store, item: Item) -> tuple[dict[str, str], dict[str, str]]:
    """{camera: array} of the images of a trajectory, and what cannot be read as such."""
    arrays, names, problems = store.arrays, [], list(item.at.get("elsewhere", ()))
    for name, array in arrays.items():
        if array_images.layout(name, array) and not (problem := array_images.problem(array)):
            names.append(name)
        elif array_images.layout(name, array):
            problems.append(f"{array_images.describe(name, array)} with {problem}")
        elif array_images.like_images(name, array):
            problems.append(array_images.describe(name, array))
    short = [name.rpartition("/")[2] for name in names]
    cameras = dict(zip(short if len(set(short)) == len(short) else names, names))
    remedy = "images are uint8 or floats of 0 to 1, [steps, height, width, 3], beside the actions or in a group there"
    return cameras, {"images": f"{', '.join(problems)}; {remedy}"} if problems else {}


class _Images:
    """The images of one camera; the file is opened for each reading."""

    def __init__(self, path: pathlib.Path, group: str, name: str):
        self._path, self._group, self._name = path, group, name

    def __iter__(self) -> Iterator[np.ndarray | bytes]:
        with reading(self._name), _open(self._path, self._group) as store:
            if not isinstance(array := store.arrays[self._name], npz.Array):
                hdf5.check_written(array)
            yield from array_images.frames(self._name, array)


def _joined(store: _Store, keys: Sequence[str]) -> np.ndarray:
    """float32[T, A] of arrays side by side."""
    rows = [take_part(numeric_rows(store.read(name), name), key) for key in keys for name in [parse_key(key)[0]]]
    if len({len(part) for part in rows}) > 1:
        counts = ", ".join(f"{len(part)} rows of {name}" for name, part in zip(keys, rows))
        raise ValueError(f"it has {counts}: they cannot be joined")
    return np.concatenate(rows, axis=1)


def _about(store: _Store) -> tuple[str, str, float | None]:
    """Instruction, task and steps per second."""
    values = {name: _plain(store.about[name](), name) for name in ("task", "fps") if name in store.about}
    fps, task = values.get("fps"), values.get("task", "")
    if fps is not None and not (isinstance(fps, float) and 0 < fps < 1e6):
        raise ValueError(f"its fps is {fps!r}, it should be a positive number")
    if not isinstance(task, str):
        raise ValueError(f"its task is {task!r}, it should be text")
    named = [name for name in _TEXTS if name in store.about]
    texts = [hdf5.instruction(store.about[name]()) for name in named]
    if named and not any(texts):
        value = store.about[named[0]]()
        if not isinstance(_plain(value, named[0]), str):
            raise ValueError(f"its {named[0]} is {value!r}, it should be text")
    return next((text for text in texts if text), ""), task, fps


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
