"""Arrays in an uncompressed npz file whose members are memory-mapped: opening costs nothing, whatever their size.

The file is an ordinary one, `numpy.load` reads it. The header of each array is padded so that its numbers lie at a
multiple of 64 bytes.
"""

import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.files import atomic_path

ALIGNMENT = 64
_BLOCK = 64 << 20


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file, atomically, a block at a time: arrays may themselves be mapped and larger than memory."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = f"{name}.npy"
            with archive.open(zipfile.ZipInfo(member), "w", force_zip64=True) as file:
                begin = archive.fp.tell()
                file.write(_header(array, begin))
                # A block of rows at a time, so that little of a mapped array is in memory
                rows = max(1, _BLOCK // max(1, array[:1].nbytes))
                for start in range(0, len(array), rows):
                    file.write(np.ascontiguousarray(array[start : start + rows]).tobytes())


def _header(array: np.ndarray, begin: int) -> bytes:
    """The npy header (version 1.0) of an array whose member begins at a byte of the file."""
    about = f"{{'descr': {array.dtype.str!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    bare = len(np.lib.format.MAGIC_PREFIX) + 2 + 2 + len(about) + 1
    padding = -(begin + bare) % ALIGNMENT
    length = len(about) + padding + 1
    return np.lib.format.MAGIC_PREFIX + b"\1\0" + length.to_bytes(2, "little") + f"{about}{' ' * padding}\n".encode()


def open_mapped(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: array} of a file that `write` wrote, mapped and read-only; empty arrays are in memory.

    Raises:
      OSError, ValueError, KeyError, zipfile.BadZipFile: the file is absent or damaged in its tables. The numbers are
        not checked.
    """
    arrays, size = {}, path.stat().st_size
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            file.seek(member.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            file.seek(int(lengths.sum()), 1)
            try:
                np.lib.format.read_magic(file)
                shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            except Exception as error:  # numpy parses Python, whose errors are of many kinds
                raise ValueError(f"the header of {member.filename} is damaged ({error})") from None
            count = int(np.prod(shape))
            if by_columns or dtype.hasobject or file.tell() + count * dtype.itemsize > size:
                raise ValueError(f"member {member.filename} is no array of this file")
            name = member.filename.removesuffix(".npy")
            if count == 0:
                arrays[name] = np.empty(shape, dtype)
            else:
                arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape)
    return arrays
