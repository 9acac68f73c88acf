"""Where each member of each sample lies in a tar: built once, kept beside it, checked against its size and time.

Samples follow the WebDataset rule: a member's key is its name up to the first dot of the last path component, the rest
is the field, so `ep-1_000003.image.jpg` is field `image.jpg` of sample `ep-1_000003`.
"""

import dataclasses
import os
import pathlib
import zipfile

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_path
from lapa_jax.data.shards import tar

VERSION = 3
_COMPANIONS = {"__MACOSX", ".DS_Store", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".fseventsd", "Icon\r",
               "Thumbs.db", "desktop.ini"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The samples of one tar, in the order of their first member.

    Attributes:
      keys: bytes[N], the sample keys (UTF-8).
      fields: the fields that occur, sorted.
      offsets: int64[N, F], where a field's data begin; -1 where the sample lacks the field.
      sizes: int64[N, F], bytes.
      checksums: int64[N, F], CRC-32C of the data; -1 where the tar does not state it.
      ignored: how many members are companions that macOS and Windows make beside files; see `is_companion`.
    """

    keys: np.ndarray
    fields: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.keys)


def open_index(path: str | os.PathLike) -> TarIndex:
    """The index of a tar: read from `<path>.index.npz` when that is whole and current, else built and saved there.

    In a folder that cannot be written the index is built for this process only.
    """
    path = pathlib.Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror}") from None
    # Size and time of change stand for the contents: hashing a shard would cost as much as reading it.
    stamp = np.array([VERSION, status.st_size, status.st_mtime_ns], np.int64)
    saved = path.with_name(path.name + ".index.npz")
    index = _load(saved, stamp)
    if index is None:
        index = build_index(path)
        _save(saved, stamp, index)
    return index


def build_index(path: str | os.PathLike) -> TarIndex:
    """Scans a tar. Damage and unsafe, double or nameless members are `UserError`s that name file and position."""
    samples: dict[str, dict[str, tuple[int, int, int]]] = {}
    ignored = 0
    for name, offset, size, crc in tar.scan(path):
        if is_companion(name):
            ignored += 1
            continue
        key, field = split_name(name)
        if not key or not field:
            raise UserError(f"{path}: member '{name}' has no key and field (key.field, e.g. 000001.image.jpg)")
        members = samples.setdefault(key, {})
        if field in members:
            raise UserError(f"{path} at byte {offset}: member '{name}' occurs twice; write this shard again")
        members[field] = (offset, size, -1 if crc is None else crc)
    fields = tuple(sorted({field for members in samples.values() for field in members}))
    # -1 marks a member that a sample lacks, and a checksum that the tar does not state.
    table = np.full((len(samples), len(fields), 3), -1, np.int64)
    column = {field: i for i, field in enumerate(fields)}
    for row, members in enumerate(samples.values()):
        for field, location in members.items():
            table[row, column[field]] = location
    keys = np.array([key.encode() for key in samples], dtype=np.bytes_)
    return TarIndex(keys, fields, *(table[..., k].copy() for k in range(3)), ignored)


def is_companion(name: str) -> bool:
    """Whether a member is what macOS and Windows put beside files of their own accord (`._x.jpg`, `.DS_Store`)."""
    parts = name.split("/")
    return parts[-1].startswith("._") or parts[-1] in _COMPANIONS or not _COMPANIONS.isdisjoint(parts[:-1])


def split_name(name: str) -> tuple[str, str]:
    """("folder/key", "field") of a member name, the field without its leading dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return (folder + slash + key if key else ""), field


def _load(saved: pathlib.Path, stamp: np.ndarray) -> TarIndex | None:
    """The saved index, or None where it is absent, damaged, or of another state of the tar."""
    try:
        with np.load(saved) as arrays:
            if not np.array_equal(arrays["stamp"], stamp):
                return None
            fields = tuple(str(field) for field in arrays["fields"])
            table = (arrays[name] for name in ("offsets", "sizes", "checksums"))
            return TarIndex(arrays["keys"], fields, *table, int(arrays["ignored"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(saved: pathlib.Path, stamp: np.ndarray, index: TarIndex) -> None:
    arrays = {"keys": index.keys, "fields": np.array(index.fields, np.str_), "offsets": index.offsets}
    arrays |= {"checksums": index.checksums, "ignored": np.array(index.ignored)}
    try:
        with atomic_path(saved) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamp=stamp, sizes=index.sizes, **arrays)
    except OSError:
        pass  # a read-only folder: this process keeps the index in memory
