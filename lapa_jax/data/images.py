"""JPEG and resizing, in one place: what the converter writes and what the loader reads use the same two functions."""

from collections.abc import Mapping

import numpy as np
import simplejpeg

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.prismatic_images import PrismaticResize

RESIZE_MODES = ("squash", "center_crop", "lapa")
SMOOTH = (None, "squash", "center_crop")
"""Of `data.resize`, what smooths images that shrink, so that a smaller image to begin with is nearly the same."""
LAPA_CROPPED = "lapa_cropped"
"""A mode of `data.resize` alone: it looks into images of the right size too, which are not to be stored so."""
CROPPED_HEIGHT = 0.9
RESIZE = "resize"
"""Entry of a camera in `features` of `dataset.json`: the mode by which its images become square."""


def encode(image: np.ndarray, quality: int = 95) -> bytes:
    """JPEG bytes of an image uint8[H, W, 3], 4:2:0 as videos have it. The bytes are a function of the arguments."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")


def decode(data: bytes, smallest: int | None = None) -> np.ndarray:
    """uint8[H, W, 3] of JPEG bytes; damaged data are a ValueError.

    Args:
      smallest: where both sides are at least twice as many pixels the image comes out smaller: at half its size or
        less, but no side below this. Of each block of 8 x 8 pixels libjpeg then computes only as many as are wanted,
        from the low frequencies: several times as fast as decoding all of them and resizing. None decodes all.
    """
    if smallest is None:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    return simplejpeg.decode_jpeg(data, "RGB", strict=True, min_height=smallest, min_width=smallest, min_factor=2)


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


def check_resize(mode) -> None:
    """Raises UserError for a value of `data.resize` that is None, no mode, and no group of `PrismaticResize`."""
    if mode is not None and not isinstance(mode, str):
        PrismaticResize.from_config(mode)
    elif mode not in (known := (None, *RESIZE_MODES, LAPA_CROPPED)):
        raise UserError(f"data.resize '{mode}' does not exist{did_you_mean(mode, known[1:])}")


def check_scaled(scaled: bool, mode) -> None:
    """Raises UserError where `data.scaled_decoding` meets a `data.resize` that is to equal another program's."""
    if scaled and mode not in SMOOTH:
        raise UserError(f"data.scaled_decoding=True would change images that data.resize={mode!r} makes equal to those "
                        f"of a released model; it goes with {', '.join(map(str, SMOOTH))}")


def keeps_size(mode) -> bool:
    """Whether images of the right size stay as they are; a group with an area below 1 looks into all of them."""
    if mode is None or isinstance(mode, str):
        return mode != LAPA_CROPPED
    return PrismaticResize.from_config(mode).area == 1


def resize(image: np.ndarray, size: int, mode: str | Mapping = "squash") -> np.ndarray:
    """Resizes uint8[H, W, 3] to uint8[size, size, 3], bilinear, with anti-aliasing but for "lapa" and "lapa_cropped".

    Args:
      image: the picture.
      size: side of the result in pixels.
      mode: "squash" changes the aspect ratio (as the official LAQ does); "center_crop" cuts the largest square from the
        middle first; "lapa" is what LAPA-7B was trained with: the longest side to `size`, then squashed to the square,
        both times as OpenCV does, without anti-aliasing; "lapa_cropped" goes on with the middle 0.9 of the height, all
        of the width, back to the square, as its deployment does for models that were finetuned with `image_aug`. Or the
        fields of a `PrismaticResize`.

    Returns:
      The resized picture; the input itself where nothing changes.
    """
    if not isinstance(mode, str):
        return PrismaticResize.from_config(mode)(image, size)
    if mode == LAPA_CROPPED:
        square, rows = resize(image, size, "lapa"), int(size * CROPPED_HEIGHT)
        top = (size - rows) // 2
        return resize_opencv(square[top : top + rows], size, size)
    height, width = image.shape[:2]
    if height == width == size:
        return image
    if mode == "lapa":
        scale = size / max(height, width)
        fitted = (max(1, round(side * scale)) for side in (height, width))
        return resize_opencv(resize_opencv(image, *fitted), size, size)
    box = (0.0, 0.0, float(width), float(height))
    if mode == "center_crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif mode != "squash":
        raise ValueError(f"resize mode '{mode}' is not one of {RESIZE_MODES}")
    return resize_box(image, box, size)


def stored_mode(features: Mapping[str, Mapping]) -> str | None:
    """The mode by which the images of a dataset become square, from its `features`; None where they name none."""
    modes = {feature.get(RESIZE) for feature in features.values() if feature.get("codec") == "jpeg"}
    return modes.pop() if len(modes) == 1 else None


def to_side(image: np.ndarray, size: int, stored: str | None, mode: str | Mapping | None) -> np.ndarray:
    """An image as a model takes it, in training and at inference alike.

    Args:
      image: uint8[H, W, 3], as stored, or as a camera gives it. size: side of the result in pixels.
      stored: the mode by which the stored images of the dataset became square, or would have; None where unknown.
      mode: `data.resize` of the run; None: as stored, squashed where that is unknown.
    """
    if stored == "center_crop" and mode not in (None, stored):
        image = resize(image, min(image.shape[:2]), stored)
    return resize(image, size, mode or stored or "squash")


def resize_box(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part `box` = (left, top, right, bottom) in pixels of uint8[H, W, 3], as uint8[size, size, 3]."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def resize_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3] as uint8[height, width, 3], bilinear with anti-aliasing."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def resize_opencv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3] to uint8[height, width, 3], equal to the bit to `cv2.resize` with INTER_LINEAR.

    Two taps a side at half-pixel centres, whatever the scale: images that shrink are not smoothed. Weights are rounded
    to 1/2048, rows lose four bits before they are mixed, and at exactly half the size OpenCV takes means of four.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    if (rows, columns) == (2 * height, 2 * width):
        four = image.astype(np.int32).reshape(height, 2, width, 2, -1).sum((1, 3))
        return ((four + 2) >> 2).astype(np.uint8)
    left, right, near_left, near_right = _taps(columns, width, clamp=True)
    upper, lower, near_upper, near_lower = _taps(rows, height, clamp=False)
    wide = image.astype(np.int32)
    wide = (wide[:, left] * near_left[:, None] + wide[:, right] * near_right[:, None]) >> 4
    mixed = (wide[upper] * near_upper[:, None, None] >> 16) + (wide[lower] * near_lower[:, None, None] >> 16)
    return np.clip((mixed + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(old: int, new: int, clamp: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel the old ones before and behind it, and their weights in 1/2048; all int64 or int32 [new].

    clamp: OpenCV gives columns beyond the border the weights 1 and 0, and rows those of the border mixed with itself.
    """
    scale = 1.0 / (new / old)
    at = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    part = at - first.astype(np.float32)
    if clamp:
        part[(first < 0) | (first >= old - 1)] = 0
    near, far = (np.rint(share * np.float32(2048)).astype(np.int32) for share in (1 - part, part))
    return np.clip(first, 0, old - 1), np.clip(first + 1, 0, old - 1), near, far
