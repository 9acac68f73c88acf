"""What readers of foreign files share: numbers as rows of a column, and errors that name the place of the damage."""

import contextlib
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder
from lapa_jax.data.shards.index import is_companion

_PAGE = 1 << 20
"""Bytes that a pointer or a page of an error has at most."""


def walk(root: pathlib.Path, exclude: pathlib.Path | None) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """(folder, names of its files) of a folder and all below, both in natural order. Hidden files and folders, what
    macOS and Windows put beside files, and the folder `exclude` are left out."""
    for folder, folders, names in os.walk(root, followlinks=True):
        here = pathlib.Path(folder)
        visible = (name for name in folders if not is_hidden(name) and (here / name).resolve() != exclude)
        folders[:] = sorted(visible, key=natural_key)
        yield here, sorted((name for name in names if not is_hidden(name)), key=natural_key)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none that a user put there: `.cache`, `._clip.mp4`, `__MACOSX`, `Thumbs.db`."""
    return name.startswith(".") or is_companion(name)


@contextlib.contextmanager
def reading(place: str = "") -> Iterator[None]:
    """Turns whatever a library raises about a damaged file into a ValueError that starts with `place`, if any.

    Libraries have errors of many kinds for damage (OSError, KeyError, RuntimeError, MemoryError for absurd sizes). A
    `UserError` passes as it is. Absolute paths are taken out of the message: a report must not depend on where the
    data lie.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = re.sub(r"(['\"]?)/[^\s'\",]*/([^\s'\",/]+)", r"\1\2", reason)
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{place}: {kind}{reason}" if place else f"{kind}{reason}") from None


@contextlib.contextmanager
def whole_source(path: pathlib.Path) -> Iterator[None]:
    """Turns a ValueError about something that every episode needs into a `UserError` that names the file or folder."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def missing_download(folder: pathlib.Path, names: Iterable[str]) -> str:
    """The first of some files, or of those directly in a folder, that is a pointer or an error page in place of itself;
    see `core.files.placeholder`. "" where none is. The message names it relative to `folder`."""
    for name in names:
        path = folder / name
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and (why := placeholder(file)):
                return why.replace(f"{folder}{os.sep}", "", 1)
    return ""


def check_downloaded(folder: pathlib.Path, name: str) -> None:
    """A file that is a pointer or an error page in place of itself is a ValueError."""
    if why := missing_download(folder, [name]):
        raise ValueError(why)


def missing_downloads(source: pathlib.Path) -> str:
    """How many files under a source are pointers or error pages in place of themselves, and the first; "" for none."""
    files = [source] if source.is_file() else (path for path in sorted(source.rglob("*")) if path.is_file())
    small = (path for path in files if path.stat().st_size <= _PAGE)
    reasons = [why for path in small if (why := placeholder(path))]
    return reasons[0] + (f"; so are {len(reasons) - 1} others" if len(reasons) > 1 else "") if reasons else ""


def find_file(path: pathlib.Path) -> pathlib.Path:
    """The path itself where it exists, else the one whose name differs only in how accents are written (macOS stores
    names decomposed, tables mostly name them composed), else the path itself."""
    if path.exists() or path == path.parent:
        return path
    parent = find_file(path.parent)
    try:
        names = _composed_names(str(parent), parent.stat().st_mtime_ns)
    except OSError:
        return path
    return parent / names.get(unicodedata.normalize("NFC", path.name), path.name)


@functools.lru_cache(maxsize=16)
def _composed_names(folder: str, changed: int) -> dict[str, str]:
    """{composed name: name} of what lies in a folder, kept until it changes."""
    return {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}


def numeric_rows(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers as the rows of a column.

    Args:
      values: [T, A] of any real dtype.
      name: what to call them in errors.

    Returns:
      float32[T, A].

    Raises:
      ValueError: no numbers, another number of dimensions, nothing in it, a number that is not finite, or one that
        float32 cannot hold.
    """
    check_kind(values.dtype, name)
    if values.ndim != 2:
        raise ValueError(f"'{name}' has shape {list(values.shape)}, a column is [steps, dimensions]")
    if 0 in values.shape:
        raise ValueError(f"'{name}' has shape {list(values.shape)}: there is nothing in it")
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.ascontiguousarray(values, dtype=np.float32)
    good = np.isfinite(rows)
    if not good.all():
        row, column = np.argwhere(~good)[0]
        count = int(good.size - good.sum())
        if np.isfinite(values).all():
            worst = values[row, column]
            raise ValueError(f"'{name}' holds {count} numbers beyond float32, the first, {worst:g}, in row {row}")
        raise ValueError(f"'{name}' holds {count} numbers that are not finite, the first in row {row}")
    return rows


def check_kind(dtype: np.dtype, name: str) -> None:
    """A dtype that holds no real numbers is a ValueError."""
    if dtype.hasobject:
        raise ValueError(
            f"'{name}' is an array of Python objects, which is never read: save plain numbers of one shape, "
            "trajectories of different lengths as a file each"
        )
    if dtype.kind not in "fiub":
        raise ValueError(f"'{name}' holds {dtype}, which are no real numbers")


def flat_names(names: object) -> list[str]:
    """Names of dimensions as one list, from what formats write: lists in lists, {"motors": [...]}, {"x": 0, "y": 1}."""
    if isinstance(names, dict):
        if all(isinstance(place, int) for place in names.values()):
            return [str(name) for name, _ in sorted(names.items(), key=lambda pair: pair[1])]
        names = list(names.values())
    if isinstance(names, list | tuple):
        return [name for part in names for name in flat_names(part)]
    return [] if names is None else [str(names)]


def join_names(parts: dict[str, tuple[int, list[str]]]) -> list[str]:
    """Names of the dimensions of concatenated vectors.

    Args:
      parts: {vector: (its width, the names of its dimensions where it has as many, else any other list)}.

    Returns:
      One name a dimension: "<vector>.<name or number>"; of a single vector just its names, [] where it has none.
    """
    if len(parts) == 1:
        ((width, names),) = parts.values()
        return names if len(names) == width else []
    joined = []
    for vector, (width, names) in parts.items():
        inner = names if len(names) == width else range(width)
        joined += [f"{vector}.{name}" for name in inner]
    return joined


def natural_key(name: str) -> tuple:
    """Sorts frame2 before frame10: numbers in a name count as numbers. Different names have different keys."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]
    return parts, name
