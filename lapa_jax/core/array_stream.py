"""Streaming checkpoints of EasyLM and tux: arrays by name in one file, read in parts.

The file is one msgpack object after the other without an index, each `[path, value]`: `path` an array of strings,
`value` bytes in which flax serialised the array: msgpack again, an extension of type 1 that holds
`[shape, dtype's name, bytes in C order]`. Arrays of more than 2^30 bytes are a map of several such chunks.

A library would bring each object into memory as a whole, more than once, and some are gigabytes. Here only the headers
are read at first; the numbers stay on the disk until they are asked for, row by row.
"""

import dataclasses
import math
import pathlib
import struct

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder

DTYPES = ("float32", "bfloat16", "float16")
ARRAY = 1  # flax's type of the extension
CHUNKED = "__msgpack_chunked_array__"
LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xC7: ">B", 0xC8: ">H", 0xC9: ">I", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I",
           0xCF: ">Q", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}  # fmt: skip
KINDS = {"bytes": (0xC4, 0xC5, 0xC6), "extension": (0xC7, 0xC8, 0xC9), "number": (0xCC, 0xCD, 0xCE, 0xCF),
         "text": (0xD9, 0xDA, 0xDB), "array": (0xDC, 0xDD), "map": (0xDE, 0xDF)}  # fmt: skip
SHORT = (("number", 0x00, 0x7F), ("map", 0x80, 0x8F), ("array", 0x90, 0x9F), ("text", 0xA0, 0xBF))
KIND_OF = {byte: kind for kind, codes in KINDS.items() for byte in codes}


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in the file. pieces: (offset, bytes) of its parts, which follow one another in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]


class ArrayStream:
    """An open streaming checkpoint.

    Attributes:
      path: the file. arrays: {"transformer/wte/embedding": Stored}. others: names of entries that are no arrays of
        floats, such as counters.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads the headers.

        Raises:
          UserError: no such file, or one that is no whole checkpoint of this kind.
        """
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist")
        if why := placeholder(path):
            raise UserError(why)
        self.arrays: dict[str, Stored] = {}
        self.others: list[str] = []
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            headers = _Headers(file, size)
            while (start := file.tell()) < size:
                try:
                    name, stored = headers.entry()
                except _Broken as error:
                    last = f" behind {next(reversed(self.arrays))}" if self.arrays else ""
                    raise UserError(f"{path} is no whole streaming checkpoint: at byte {start:,} of {size:,}{last}, "
                                    f"{error}; download it again, or give another file") from None  # fmt: skip
                if name in self.arrays or name in self.others:
                    raise UserError(f"{path} holds {name} twice")
                if stored is None:
                    self.others.append(name)
                else:
                    self.arrays[name] = stored
        if not self.arrays:
            raise UserError(f"{path} holds no arrays")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` (all where None) along the first axis of an array, in its own dtype."""
        stored = self.arrays[name]
        rows = stored.shape[0] if stop is None else stop
        width = math.prod(stored.shape[1:]) * stored.dtype.itemsize
        data = self._bytes(stored, start * width, rows * width)
        return np.frombuffer(data, stored.dtype).reshape(rows - start, *stored.shape[1:])

    def _bytes(self, stored: Stored, first: int, end: int) -> bytearray:
        data, filled, place = bytearray(end - first), 0, 0
        with open(self.path, "rb", buffering=0) as file:
            for offset, length in stored.pieces:
                low, high = max(first, place), min(end, place + length)
                if low < high:
                    file.seek(offset + low - place)
                    view = memoryview(data)[filled : filled + high - low]
                    while view:  # one call reads 2 GiB at most
                        view = view[file.readinto(view) :]
                    filled += high - low
                place += length
        return data


class _Broken(Exception):
    """What the file should not hold, in words."""


class _Headers:
    """Reads msgpack's headers one after the other, and skips the bytes of arrays."""

    def __init__(self, file, size: int):
        self._file, self._size = file, size

    def entry(self) -> tuple[str, Stored | None]:
        """One object of the file: the name, and the array, or None for anything else."""
        if self._expect("array") != 2:
            raise _Broken("there is no pair of a name and an array")
        name = "/".join(self._text() for _ in range(self._expect("array")))
        length = self._expect("bytes")
        end = self._inside(length)
        kind, value = self._header()
        if kind == "extension" and value[0] == ARRAY:
            stored = self._array(value[1])
        elif kind == "map" and value and self._text() == CHUNKED:
            self._header()
            stored = self._chunked(value - 1)
        else:
            stored = None
        self._file.seek(end)
        if stored is None or stored.dtype.name not in DTYPES:
            return name, None
        if sum(length for _, length in stored.pieces) != math.prod(stored.shape) * stored.dtype.itemsize:
            raise _Broken(f"{name} of shape {stored.shape} has bytes of another number")
        return name, stored

    def _chunked(self, entries: int) -> Stored:
        shape, chunks = None, None
        for _ in range(entries):
            what, count = self._text(), self._expect("map")
            if what == "shape":
                shape = {self._count(): self._expect("number") for _ in range(count)}
            elif what == "chunks":
                chunks = {}
                for _ in range(count):
                    number = self._count()
                    code, length = self._expect("extension")
                    chunks[number] = self._array(length)
            else:
                raise _Broken(f"an array in chunks has an entry '{what}'")
        if not shape or not chunks or any(sorted(some) != list(range(len(some))) for some in (shape, chunks)):
            raise _Broken("an array in chunks lacks some of them")
        ordered = [chunks[k] for k in range(len(chunks))]
        pieces = tuple(piece for chunk in ordered for piece in chunk.pieces)
        return Stored(tuple(shape[k] for k in range(len(shape))), ordered[0].dtype, pieces)

    def _array(self, length: int) -> Stored:
        end = self._inside(length)
        if self._expect("array") != 3:
            raise _Broken("an array is not its shape, dtype and bytes")
        shape = tuple(self._expect("number") for _ in range(self._expect("array")))
        dtype, length = self._text(), self._expect("bytes")
        offset = self._file.tell()
        self._file.seek(self._inside(length))
        if self._file.tell() != end:
            raise _Broken("an array does not end where its header says")
        return Stored(shape, _dtype(dtype), ((offset, length),))

    def _expect(self, wanted: str):
        kind, value = self._header()
        if kind != wanted:
            raise _Broken(f"there is {'an' if kind[0] in 'ae' else 'a'} {kind} where {wanted} should be")
        return value

    def _text(self) -> str:
        try:
            return self._take(self._expect("text")).decode()
        except UnicodeDecodeError:
            raise _Broken("a name is not text") from None

    def _count(self) -> int:
        """A number that is written as a name: flax makes maps of lists."""
        if not (text := self._text()).isdecimal():
            raise _Broken(f"there is '{text}' where a number should be")
        return int(text)

    def _header(self) -> tuple[str, object]:
        """(kind, its value or length); of extensions the type and the length."""
        byte = self._take(1)[0]
        for kind, first, last in SHORT:
            if first <= byte <= last:
                return kind, byte - first
        if byte in (0xC2, 0xC3):
            return "truth", byte == 0xC3
        if 0xD4 <= byte <= 0xD8:
            return "extension", (self._take(1)[0], 1 << (byte - 0xD4))
        if byte not in LENGTHS:
            raise _Broken(f"there is a byte {byte:#x}, which does not belong there")
        form = LENGTHS[byte]
        value = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        kind = KIND_OF[byte]
        return kind, (self._take(1)[0], value) if kind == "extension" else value

    def _take(self, count: int) -> bytes:
        self._inside(count)
        return self._file.read(count)

    def _inside(self, length: int) -> int:
        """Where so many bytes from here on end."""
        end = self._file.tell() + length
        if end > self._size:
            raise _Broken(f"the file ends {end - self._size:,} bytes too early")
        return end


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.dtype(name)
    except (TypeError, ValueError):
        raise _Broken(f"numbers of type '{name}' are unknown") from None
