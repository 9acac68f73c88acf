"""The one opener of still images: files, members of archives, cells of tables and arrays, as uint8[H, W, 3].

**Depth of values.** 16-bit images are scaled by 1/257, or as a given value of white says; where none is given and all
values are below 4096, as of cameras of 12 bits, they are refused, since they would come out dark. Floats of 0 to 1 are
scaled by 255; other floats and 32-bit integers are refused. **Orientation.** The EXIF orientation is applied, as
viewers do. **Colours.** Grey, palettes and CMYK become RGB; an alpha channel is left out, the colours stay as they are
stored. **Pages.** A file has one image, unless its pages or frames are asked for. **Size.** More than `LARGEST` pixels
are refused before they are decoded, and so is a JPEG of more than `MAX_SCANS` scans.
"""

import functools
import io
import pathlib
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import simplejpeg

from lapa_jax.data import images

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LARGEST = 1 << 26
"""Pixels: 8192 x 8192, of which a decoder needs some 400 MB."""
MAX_SCANS = 32
"""Scans of a JPEG. A progressive one is drawn in passes over all its pixels, of which an empty one takes 16 bytes in
the file and 5 ms for 2048 x 2048 pixels: 41 KB of 1,000 passes take a decoder 5 to 20 s. Encoders write 10 passes."""

COLOUR, GREY, INDEXED, DEEP = "colour", "grey", "8-bit single channel", "16-bit or float single channel"
"""Kinds of images. INDEXED, of palettes or grey but no JPEG, is how masks are stored; DEEP is how depth is."""

SCALED, TRANSPARENT = "16-bit or float images scaled to 8 bit", "images with transparent pixels, shown as if opaque"
"""Remarks: what was done to how many images."""

_ORIENTATION, _SUBFILE, _BITS, _REDUCED = 274, 254, 258, 1
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
WHITE = (1 << 16) - 1
"""The value of white in images of 16 bits, unless another is given."""
_DIM = 1 << 12
"""Below it are all values of cameras of 12 bits, and of images that are black to the eye."""


def open_frame(
    frame: np.ndarray | bytes, remarks: Counter | None = None, white: int | None = None
) -> np.ndarray:
    """uint8[H, W, 3] of an array, or of the bytes of a JPEG, PNG or other image file.

    Args:
      frame: uint8, uint16 or floats [H, W, 3 or 4], [H, W, 1], [H, W] or [3, H, W]; or bytes.
      remarks: where it is counted what was done to the image.
      white: the value of white in images of 16 bits; None: 65535, and images that this leaves dark are refused.

    Raises:
      ValueError: the array is no image, the bytes are damaged, hold several images or more than `LARGEST` pixels, or
        the values are of no known range.
    """
    if isinstance(frame, np.ndarray):
        return _from_array(frame, remarks, white)
    if is_plain_jpeg(frame):
        height, width = simplejpeg.decode_jpeg_header(frame)[:2]
        check_size(width, height)
        check_scans(frame)
        return images.decode(frame)
    pages = list(_pages(io.BytesIO(frame), remarks, only_one=True, white=white))
    return pages[0]


def open_pages(
    path: pathlib.Path, remarks: Counter | None = None, only_one: bool = False, white: int | None = None
) -> Iterator[np.ndarray]:
    """The pages or animation frames of an image file, uint8[H, W, 3] each; for most files that is one.

    Args:
      path: the file. remarks, white: see `open_frame`. only_one: more than one page is a ValueError.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        yield open_frame(path.read_bytes(), remarks, white)
        return
    with open(path, "rb") as file:
        yield from _pages(file, remarks, only_one, white)


def kind_of(frame: np.ndarray | bytes | pathlib.Path) -> str:
    """COLOUR, GREY, INDEXED or DEEP of an array, a file's bytes or a file, from its header; damage is a ValueError."""
    if isinstance(frame, np.ndarray):
        if frame.ndim == 3 and (frame.shape[2] in (3, 4) or frame.shape[0] == 3):
            return COLOUR
        return INDEXED if frame.dtype == np.uint8 else DEEP
    from PIL import Image

    try:
        file = io.BytesIO(frame) if isinstance(frame, bytes) else frame
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            mode, is_jpeg = image.mode, image.format in ("JPEG", "MPO")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(error) from None
    if mode in _DEEP_MODES:
        return DEEP
    single = mode in ("1", "L", "P", "LA", "PA")
    return COLOUR if not single else GREY if is_jpeg else INDEXED


def is_plain_jpeg(data: bytes) -> bool:
    """Whether bytes are a JPEG as the shards hold them: three colour channels, upright. Damaged headers are none."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] == "YCbCr" and _orientation(data) == 1
    except ValueError:
        return False


def check_size(width: int, height: int) -> None:
    """More than `LARGEST` pixels are a ValueError: what such a file takes in memory could end the conversion."""
    if width * height > LARGEST:
        raise ValueError(f"it has {width} x {height} pixels, more than {LARGEST / 1e6:.0f} million are not opened")


def scans_of(data: bytes) -> int:
    """At most so many scans has a JPEG: the marker cannot occur in entropy-coded data, but it may in other segments."""
    return data.count(b"\xff\xda")


def check_scans(data: bytes) -> None:
    """More than `MAX_SCANS` scans of a JPEG are a ValueError."""
    if (scans := scans_of(data)) > MAX_SCANS:
        raise ValueError(f"it is a JPEG of {scans:,} scans, more than {MAX_SCANS} are not decoded")


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 where it has none: 1 is upright, 2 to 8 are turned or mirrored."""
    if b"Exif\0\0" not in data[: 1 << 16]:
        return 1
    from PIL import Image

    with warnings.catch_warnings(action="ignore"):
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.getexif().get(_ORIENTATION, 1)
        except Exception:
            return 1


def _pages(file, remarks: Counter | None, only_one: bool, white: int | None) -> Iterator[np.ndarray]:
    from PIL import Image, ImageSequence

    try:
        # Pillow warns of images that are larger than it likes; `check_size` refuses them
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            check_size(*image.size)
            if image.format in ("JPEG", "MPO"):
                position = file.tell()
                file.seek(0)
                check_scans(file.read())
                file.seek(position)
            # the further images of an MPO file, as phones write, are previews and depth, not moments
            several = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
            taken = 0
            for page in ImageSequence.Iterator(image) if several else [image]:
                if page.format == "TIFF" and page.tag_v2.get(_SUBFILE, 0) & _REDUCED:
                    continue  # a smaller copy of another page
                taken += 1
                if taken > 1 and only_one:
                    raise ValueError(f"it holds {image.n_frames} pages or frames, and one image is expected: save "
                                     "each as a file of its own, or put the file into a folder of its own")  # fmt: skip
                check_size(*page.size)
                yield _from_pillow(page, remarks, white)
    except (OSError, ValueError, SyntaxError, TypeError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> ValueError:
    from PIL import Image

    if type(error) is ValueError:
        return error
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, which it applies before we see the size
        return ValueError(f"it has more than {LARGEST / 1e6:.0f} million pixels, and is not opened")
    return ValueError(f"an image is damaged ({str(error).split('<')[0].strip() or type(error).__name__})")


def _from_pillow(page, remarks: Counter | None, white: int | None) -> np.ndarray:
    """uint8[H, W, 3] of an opened Pillow image."""
    from PIL import ImageOps

    page.load()
    kind = page.format
    if white is None and kind == "TIFF" and 8 < (bits := page.tag_v2.get(_BITS, (8,))[0]) < 16:
        white = (1 << bits) - 1
    try:
        page = ImageOps.exif_transpose(page)
    except Exception:
        pass
    if page.mode in _DEEP_MODES:
        values = np.asarray(page)
        # PNG and PPM have at most 16 bits, also where Pillow gives them 32
        return _from_array(values.astype(np.uint16) if kind in ("PNG", "PPM") else values, remarks, white)
    if remarks is not None and (page.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in page.info):
        alpha = page.convert("RGBA").getchannel("A")
        remarks[TRANSPARENT] += int(alpha.getextrema()[0] < 255)
    return np.asarray(page.convert("RGB"))


def _from_array(array: np.ndarray, remarks: Counter | None, white: int | None) -> np.ndarray:
    """uint8[H, W, 3] of an array."""
    image = array
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] not in (1, 3, 4):
        image = np.moveaxis(image, 0, 2)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise ValueError(f"an image is {array.dtype}{list(array.shape)}, expected uint8[H, W, 3]")
    check_size(image.shape[1], image.shape[0])
    image = image[..., :3]
    kind = image.dtype.kind
    if kind == "u" and image.dtype.itemsize == 2:
        image = _eight_bits(image, white)
    elif kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"an image holds floats of {low:g} to {high:g}; uint8, or floats of 0 to 1, are colours")
        image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    elif kind == "b":
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise ValueError(f"an image holds {image.dtype}, which does not say what is white; uint8 or uint16 is expected")
    if remarks is not None and array.dtype.itemsize > 1:
        remarks[SCALED] += 1
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def _eight_bits(values: np.ndarray, white: int | None) -> np.ndarray:
    """uint8 of uint16 values; `white` as of `open_frame`."""
    brightest = int(values.max())
    if white is None and 0 < brightest < _DIM:
        bits = 10 if brightest < 1 << 10 else 12
        raise ValueError(
            f"the brightest value of a 16-bit image is {brightest}, as of a camera of {bits} bits: say which value is "
            f"white, --white {(1 << bits) - 1}, or --white {WHITE} where it is to be as dark as that"
        )
    white = white or WHITE
    if brightest > white:
        raise ValueError(f"a 16-bit image has the value {brightest}, and --white is {white}; give the largest there is")
    return _table(white)[values]


@functools.cache
def _table(white: int) -> np.ndarray:
    """The 8-bit value of each value up to white."""
    return np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
