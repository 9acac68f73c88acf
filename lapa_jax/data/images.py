"""JPEG and resizing, in one place: what the converter writes and what the loader reads use the same two functions."""

import numpy as np
import simplejpeg

RESIZE_MODES = ("squash", "center_crop")


def encode(image: np.ndarray, quality: int = 95) -> bytes:
    """JPEG bytes of an image uint8[H, W, 3], 4:2:0 as videos have it. The bytes are a function of the arguments."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")


def decode(data: bytes) -> np.ndarray:
    """uint8[H, W, 3] of JPEG bytes; damaged data are a ValueError."""
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


def decode_into(data: bytes, out: np.ndarray) -> None:
    """Decodes JPEG bytes into uint8[H, W, 3]; damaged data and a picture of another size are a ValueError."""
    try:
        shape = simplejpeg.decode_jpeg(data, "RGB", strict=True, buffer=out).shape
    except ValueError:
        shape = (*simplejpeg.decode_jpeg_header(data)[:2], 3)  # one that is too large for `out`, or damaged
        if shape == out.shape:
            raise
    if shape != out.shape:
        raise ValueError(f"it is {shape[0]} x {shape[1]}, expected {out.shape[0]} x {out.shape[1]}")


def open_frame(frame: np.ndarray | bytes) -> np.ndarray:
    """uint8[H, W, 3] of a frame that is an array already, or the bytes of a JPEG, PNG or other picture file.

    Raises:
      ValueError: the array is no picture, or the bytes are damaged.
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"a picture is {frame.dtype}{list(frame.shape)}, expected uint8[H, W, 3]")
        return frame
    if is_colour_jpeg(frame):
        return decode(frame)
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(frame)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture is damaged ({str(error).split('<')[0].strip()})") from None


def is_colour_jpeg(data: bytes) -> bool:
    """Whether bytes are a JPEG with three colour channels, as the shards hold them; damaged headers are none."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"
    except ValueError:
        return False


def resize(image: np.ndarray, size: int, mode: str = "squash") -> np.ndarray:
    """Resizes uint8[H, W, 3] to uint8[size, size, 3], bilinear with anti-aliasing.

    Args:
      image: the picture.
      size: side of the result in pixels.
      mode: "squash" changes the aspect ratio (as the official LAPA code does); "center_crop" cuts the largest square
        from the middle first.

    Returns:
      The resized picture; the input itself where nothing changes.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    box = (0.0, 0.0, float(width), float(height))
    if mode == "center_crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif mode != "squash":
        raise ValueError(f"resize mode '{mode}' is not one of {RESIZE_MODES}")
    return resize_box(image, box, size)


def resize_box(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part `box` = (left, top, right, bottom) in pixels of uint8[H, W, 3], as uint8[size, size, 3]."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
