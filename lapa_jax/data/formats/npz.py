"""npz and npy files: what is in them without reading it, and some rows of a large array without the others."""

import contextlib
import math
import pathlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from lapa_jax.data.formats.reading import check_kind

_STEP = 16 << 20
_checked: set[tuple] = set()


class Header(NamedTuple):
    """What an array is: shape, dtype, and whether its columns are contiguous instead of its rows."""

    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool


def headers(path: pathlib.Path) -> dict[str, Header]:
    """{name: header} of the arrays of an npz; an npy has one array, named "".

    Raises:
      ValueError: the file is damaged, or a member is no array.
    """
    if path.suffix.lower() == ".npy":
        with open(path, "rb") as file:
            return {"": _header(file)}
    headers = {}
    with zipfile.ZipFile(path) as archive:
        _check_contents(path, len(archive.infolist()))
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"member '{member.filename}' is no array")
            with archive.open(member) as file:
                name = member.filename.removesuffix(".npy")
                if name in headers:
                    raise ValueError(f"it has two arrays '{name}'")
                headers[name] = _header(file)
    return headers


class Array:
    """An array of a file, read when it is sliced by rows or asked for as a whole.

    Attributes:
      shape, dtype, ndim: of the array.
      chunks: as of an HDF5 dataset: what is compressed is best read at once, since a row costs all that is before it.
    """

    def __init__(self, path: pathlib.Path, name: str, header: Header):
        self._path, self._name = path, name
        self.shape, self.dtype, self.ndim = header.shape, header.dtype, len(header.shape)
        self.chunks = header.shape or None

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if self.dtype.kind not in "fiub":
            return self.read()[rows]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return read_rows(self._path, self._name, start, max(start, stop))
        return read_rows(self._path, self._name, rows, rows + 1)[0]

    def read(self) -> np.ndarray:
        """All of it, of any dtype but pickled objects."""
        if not self._name:
            return np.load(self._path, allow_pickle=False)
        with np.load(self._path, allow_pickle=False) as archive:
            return archive[self._name]


def arrays(path: pathlib.Path) -> dict[str, Array]:
    """{name: array} of an npz; an npy has one array, named "". Raises as `headers`."""
    return {name: Array(path, name, header) for name, header in headers(path).items()}


def _check_contents(path: pathlib.Path, members: int) -> None:
    """zipfile does not compare the entries that it finds with the number that stands at the end of the file.

    A damaged length in one entry makes it swallow the next ones, and their arrays would be missed by nobody.
    """
    with open(path, "rb") as file:
        file.seek(-22, 2)
        end = file.read()
    listed = int.from_bytes(end[10:12], "little")
    if end.startswith(b"PK\5\6") and listed not in (members, 0xFFFF):
        raise ValueError(f"its table of contents should have {listed} arrays, {members} can be read: copy it again")


def _header(file: BinaryIO) -> Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"its arrays are of numpy's format {version[0]}.{version[1]}; 1.0 and 2.0 are read")
    if any(n < 0 for n in shape):
        raise ValueError(f"its header says shape {list(shape)}")
    return Header(shape, dtype, by_columns)


def read_rows(path: pathlib.Path, name: str, start: int = 0, end: int | None = None) -> np.ndarray:
    """Rows `start` to `end` of an array; all of a member of an npz has its checksum verified, once in a process.

    Raises:
      ValueError: damage, an array of objects, fewer rows than asked for.
    """
    if path.suffix.lower() == ".npy":
        with open(path, "rb") as file:
            return _rows(file, path.stat().st_size, "the array", start, end)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        _check(path, archive, member)
        with _open(path, archive, member) as file:
            return _rows(file, member.file_size, name, start, end)


def _check(path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Reads a member to its end, where zipfile compares the checksum."""
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size, member.filename)
    if key not in _checked:
        with archive.open(member) as file:
            while file.read(_STEP):
                pass
        _checked.add(key)


@contextlib.contextmanager
def _open(path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[BinaryIO]:
    """A member as a file: of one that is stored as it is, the archive itself, where any row is a seek away."""
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as file:
            yield file
        return
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(int(lengths.sum()), 1)
        yield file


def _rows(file: BinaryIO, size: int, name: str, start: int, end: int | None) -> np.ndarray:
    """Rows of the array that begins where the file stands and takes `size` bytes, header included."""
    begin = file.tell()
    header = _header(file)
    check_kind(header.dtype, name)
    count = header.shape[0] if header.shape else 1
    row = math.prod(header.shape[1:]) * header.dtype.itemsize
    available = size - (file.tell() - begin)
    if count * row > available:
        raise ValueError(f"'{name}' should have {count} rows of {row} bytes, it has {available} bytes: it is truncated")
    end = count if end is None else end
    if not 0 <= start <= end <= count:
        raise ValueError(f"'{name}' has {count} rows, {start} to {end} were expected")
    if header.by_columns and len(header.shape) > 1:
        whole = np.frombuffer(file.read(count * row), header.dtype).reshape(header.shape, order="F")
        return whole[start:end]
    file.seek(start * row, 1)
    data = file.read((end - start) * row)
    if len(data) != (end - start) * row:
        raise ValueError(f"'{name}' ends within rows {start} to {end}: it is truncated")
    values = np.frombuffer(data, header.dtype)
    return values.reshape(end - start, *header.shape[1:]) if header.shape else values.reshape(())
