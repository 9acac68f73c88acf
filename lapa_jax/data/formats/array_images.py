"""Images that lie in arrays of HDF5 and npz files: which arrays hold some, and each as pixels or bytes of a file.

Recorders write one camera in many ways: uint8 or any other integers of 0 to 255, floats of 0 to 1 or of 0 to 255,
channels last or first, with an alpha channel, or as the bytes of a JPEG or PNG file a row, padded with zeros (ALOHA)
or of varying length.
"""

import math
from collections.abc import Iterator

import numpy as np

from lapa_jax.data import modalities

LAST, FIRST, FILES = "channels last", "channels first", "encoded"
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n")
_BLOCK = 32 << 20
_SMALLEST = 8
"""Pixels a side; a 4-d array of fewer is no image."""


def layout(name: str, array) -> str | None:
    """How images lie in an array, None where it holds no colour images. Reads at most one row.

    Args:
      name: of the array, which tells depth maps of three channels from images.
      array: a NumPy array or HDF5 dataset [T, H, W, 3], [T, H, W, 4], [T, 3, H, W], or [T] or [T, bytes] of files.
    """
    shape, dtype = array.shape or (), array.dtype
    if len(shape) == 4 and dtype.kind in "uif" and min(shape) > 0:
        kind = LAST if shape[3] in (3, 4) else FIRST if shape[1] == 3 else None
        # keypoints and poses have four axes and a last one of 3 as well: only bytes are images whatever their size
        sides = shape[1:3] if kind == LAST else shape[2:]
        return kind if dtype == np.uint8 or (min(sides) >= _SMALLEST and not modalities.is_depth(name)) else None
    # rows of bytes of one length, or a text or a vector of bytes a row; h5py marks the latter, pickled objects are none
    rows = len(shape) == 2 and dtype == np.uint8 or len(shape) == 1 and (dtype.kind in "SV" or bool(dtype.metadata))
    return FILES if rows and shape[0] and _row_bytes(array[0]).startswith(_MAGIC) else None


def _row_bytes(row) -> bytes:
    """The bytes of a file without the zeros that pad it; b"" of anything that is no bytes. Neither JPEG nor PNG files
    end in a zero."""
    if isinstance(row, np.ndarray) and row.dtype == np.uint8 and row.ndim == 1 or isinstance(row, np.void):
        row = row.tobytes()
    return bytes(row).rstrip(b"\0") if isinstance(row, bytes) else b""


def problem(array) -> str:
    """Why values of an array with a `layout` cannot be shown as images; "" where they can. Reads floats to the end."""
    try:
        _scale(array)
    except ValueError as error:
        return str(error)
    return ""


def _scale(array) -> float:
    """What floats or integers are multiplied by to be 0 to 255; other ranges, such as -1 to 1, are a ValueError."""
    if array.dtype == np.uint8 or array.dtype.kind not in "uif":
        return 1.0
    ends = [(float(rows.min()), float(rows.max())) for rows in _blocks(array)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if 0 <= low and high <= 1 and array.dtype.kind == "f":
        return 255.0
    if 0 <= low and high <= 255:
        return 1.0
    raise ValueError(f"values from {low:g} to {high:g}, images are 0 to 255 or floats of 0 to 1")


def frames(name: str, array) -> Iterator[np.ndarray | bytes]:
    """The images of an array in order: uint8[H, W, 3], or the bytes of a JPEG or PNG file.

    Raises:
      ValueError: the array holds none, or a row of it is damaged.
    """
    kind, scale = layout(name, array), _scale(array)
    if kind is None:
        raise ValueError(f"'{name}' holds no images")
    for number, rows in enumerate(_blocks(array)):
        for row in rows:
            if kind == FILES:
                data = _row_bytes(row)
                if not data.startswith(_MAGIC):
                    raise ValueError(f"a row of '{name}' (in block {number}) is no JPEG or PNG file")
                yield data
                continue
            row = np.moveaxis(row, 0, -1) if kind == FIRST else row[..., :3]
            if row.dtype != np.uint8:
                row = np.rint(row.astype(np.float64) * scale).astype(np.uint8)
            yield np.ascontiguousarray(row)


def _blocks(array) -> Iterator[np.ndarray]:
    """An array in blocks of rows.

    Chunks of many images are read once for all of them, as far as they take up to 32 MB: an image at a time would
    unpack each chunk as often as it holds images.
    """
    chunks = getattr(array, "chunks", None)
    size = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    rows = max(1, min(chunks[0] if chunks else 1, _BLOCK // size))
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]


def describe(name: str, array) -> str:
    """An array in words: its name, dtype and shape."""
    return f"{name} {array.dtype}{list(array.shape)}"


def like_images(name: str, array) -> bool:
    """Whether an array looks like images, whatever keeps it from being read as such; depth maps and masks do not."""
    shape = array.shape or ()
    if modalities.is_depth(name) or array.dtype.kind not in "uif" or min(shape, default=0) < 1:
        return False
    if len(shape) == 2:  # pixels in a row each, which nothing but the name tells from other bytes
        return array.dtype == np.uint8 and shape[1] >= 3 * _SMALLEST**2 and modalities.is_colour(name)
    if len(shape) == 3:
        return array.dtype == np.uint8 and min(shape[1:]) >= _SMALLEST
    return len(shape) >= 4 and sorted(shape[-3:])[1] >= _SMALLEST and min(shape[-3], shape[-1]) <= 4
