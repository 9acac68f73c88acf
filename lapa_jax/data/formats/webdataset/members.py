"""Pieces that foreign files are made of: JSON, text, arrays, a window into a file. Damage is always a ValueError."""

import io
import os
import pathlib
import zipfile
from collections.abc import Container

import numpy as np

from lapa_jax.core.files import parse_json
from lapa_jax.data.formats.base import COLUMNS
from lapa_jax.data.formats.reading import check_kind, numeric_rows, reading


def load_json(data: bytes) -> object:
    """The value of JSON bytes."""
    with reading("no valid JSON"):
        return parse_json(data)


def load_text(data: bytes) -> str:
    """UTF-8 text without white space at its ends."""
    with reading("no UTF-8 text"):
        return data.decode("utf-8-sig").strip()


def load_npy(data: bytes) -> np.ndarray:
    """The array of a .npy file. Pickled objects, and a size other than the header's, are refused."""
    buffer = io.BytesIO(data)
    with reading("no readable array"):
        array = np.lib.format.read_array(buffer, allow_pickle=False)
        if rest := len(data) - buffer.tell():
            raise ValueError(f"{rest} bytes follow its end")
    return array


def load_npz(data: bytes, wanted: Container[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The `wanted` arrays of an .npz file, their checksums checked, and the names of the others, which stay unread."""
    with reading("no readable npz file"), zipfile.ZipFile(io.BytesIO(data)) as file:
        names = {name.removesuffix(".npy"): name for name in file.namelist()}
        if len(names) < len(file.namelist()):
            raise ValueError("it holds two arrays of one name")
        arrays = {}
        for name, full in names.items():
            if name in wanted:
                with reading(f"array '{name}'"):
                    arrays[name] = load_npy(file.read(full))
    return arrays, sorted(set(names) - set(arrays))


def rows_of(name: str, values: object, ndim: int) -> np.ndarray:
    """Numbers as rows of a column, in the column's dtype.

    Args:
      name: "action", "state", ...; see `base.COLUMNS`.
      values: an array or nested lists.
      ndim: 2 for an episode [T, A] (or [T], one number a step), 1 for a step [A] (or one number).

    Raises:
      ValueError: it holds no numbers or none that are finite, is ragged, has other dimensions, or holds fractions where
        codes are expected.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"'{name}' has rows of different lengths") from None
    check_kind(array.dtype, name)
    if array.ndim == ndim - 1:
        array = array[..., None]
    if array.ndim != ndim:
        form = "[steps, values]" if ndim == 2 else "[values]"
        raise ValueError(f"'{name}' has shape {list(array.shape)}, expected {form}")
    rows = array.reshape(-1, array.shape[-1])
    if COLUMNS[name] == np.float32:
        return numeric_rows(rows, name).reshape(array.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = array.astype(COLUMNS[name])
    if not np.array_equal(codes, array):
        raise ValueError(f"'{name}' holds numbers that are no {codes.dtype}")
    return codes


class Window(io.RawIOBase):
    """A part of a file as a file of its own, to read from. Bytes are read as they are asked for.

    Args:
      path: the file. start: where the part begins. size: its length in bytes.
    """

    def __init__(self, path: pathlib.Path, start: int, size: int):
        super().__init__()
        self._file = open(path, "rb", buffering=0)
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._file.fileno(), count, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
