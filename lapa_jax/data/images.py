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
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    if (height, width, 3) != out.shape:
        raise ValueError(f"it is {height} x {width}, expected {out.shape[0]} x {out.shape[1]}")
    simplejpeg.decode_jpeg(data, "RGB", strict=True, buffer=out)


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
