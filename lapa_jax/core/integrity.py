"""Checksums of the files of a folder: written with it, compared whenever it is read.

A flipped bit in an array of numbers is another number, which nothing else would notice. The checksum is XXH3 of 64
bits, which is computed faster than disks deliver; it guards against accidents, not against forgery.
"""

import concurrent.futures
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping

import xxhash

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json

MANIFEST = "checksums.json"
VARIABLE = "LAPA_JAX_CHECKSUMS"
CHUNK, THREADS = 2**22, 8
_SELF = "xxh3"


def enabled() -> bool:
    """Whether checksums are compared; the environment variable LAPA_JAX_CHECKSUMS=off leaves only sizes.

    Raises:
      UserError: another value of the variable.
    """
    value = os.environ.get(VARIABLE, "on")
    if value not in ("on", "off"):
        raise UserError(f"{VARIABLE}={value} is not known; give on (default) or off")
    return value == "on"


def checksum(path: str | os.PathLike) -> str:
    """XXH3 (64 bits) of a file's bytes, 16 hexadecimal digits."""
    state, buffer = xxhash.xxh3_64(), bytearray(CHUNK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(view[:count])
    return state.hexdigest()


def seal(folder: str | os.PathLike, about: Mapping | None = None) -> dict:
    """Writes `checksums.json` into a folder: sizes and checksums of all its files, and of what it says itself.

    Args:
      about: what else to keep there, JSON values.

    Returns:
      What was written: {"files": {name: [bytes, checksum]}, "about": ..., "xxh3": ...}.
    """
    folder = pathlib.Path(folder)
    names = sorted(name for name in _names(folder) if name != MANIFEST)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(lambda name: [os.path.getsize(folder / name), checksum(folder / name)], names)
        content = {"files": dict(zip(names, sums)), "about": dict(about or {})}
    return write_checked_json(folder / MANIFEST, content)


def reseal(folder: str | os.PathLike, about: Mapping) -> None:
    """Replaces what else is kept in a folder's `checksums.json`; the sums stay."""
    write_checked_json(pathlib.Path(folder) / MANIFEST, {"files": read_seal(folder)["files"], "about": dict(about)})


def read_seal(folder: str | os.PathLike) -> dict:
    """What `seal` wrote.

    Raises:
      UserError: it is missing or damaged.
    """
    return read_checked_json(pathlib.Path(folder) / MANIFEST)


def write_checked_json(path: str | os.PathLike, content: Mapping) -> dict:
    """Writes a JSON object with the checksum of its own content, under the key "xxh3"; returns what was written."""
    content = {**content, _SELF: _own_sum(content)}
    write_json(path, content)
    return content


def read_checked_json(path: str | os.PathLike) -> dict:
    """What `write_checked_json` was given.

    Raises:
      UserError: it is missing or damaged.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.pop(_SELF, None) != _own_sum(content):
        raise UserError(f"{path} is damaged: its own checksum differs")
    return content


def faults(
    folder: str | os.PathLike, parts: Iterable[str] = ("",), share: tuple[int, int] = (0, 1), most: float = math.inf
) -> list[str]:  # fmt: skip
    """What is wrong with the files of a folder that was sealed, in words; empty where nothing is.

    Args:
      parts: only files whose names begin with one of these. share: (i, n): only the i-th of n parts of them, so that
        hosts divide the work. most: of files with more bytes only the size is compared.
    """
    folder, parts = pathlib.Path(folder), tuple(parts)
    try:
        files = read_seal(folder)["files"]
    except (UserError, OSError) as error:
        return [str(error)] if enabled() else []
    names = [name for name in sorted(files) if name.startswith(parts)][share[0] :: share[1]]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return [fault for fault in pool.map(lambda name: _fault(folder, name, *files[name], most), names) if fault]


def check(
    folder: str | os.PathLike, remedy: str, parts: Iterable[str] = ("",), most: float = math.inf
) -> None:  # fmt: skip
    """Raises a `UserError` that names the damaged files of a sealed folder, and the remedy; else as `faults`."""
    if wrong := faults(folder, parts, most=most):
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{folder} is damaged: {'; '.join(wrong[:3])}{more}; {remedy}")


def _fault(folder: pathlib.Path, name: str, size: int, expected: str, most: float) -> str:
    path = folder / name
    try:
        if (actual := os.path.getsize(path)) != size:
            return f"{name} has {actual} bytes instead of {size}"
        compared = enabled() and size <= most
        return f"{name} has another checksum" if compared and checksum(path) != expected else ""
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _own_sum(content: Mapping) -> str:
    return xxhash.xxh3_64(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _names(folder: pathlib.Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
