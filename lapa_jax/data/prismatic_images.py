"""How models of Prismatic's family (Karamcheti et al. 2024), OpenVLA among them, bring images to their size."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean

MODES = ("squash", "shorter_side", "letterbox")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True)
class PrismaticResize:
    """A way to resize, `data.resize` as a group of these fields.

    Attributes:
      mode: "squash" changes the aspect ratio; "shorter_side" makes that one the result's, and cuts out the middle;
        "letterbox" first pads the image to a square with `fill`, half of what is missing, rounded down, on either side.
      interpolation: "bicubic" or "bilinear", antialiased, as Pillow does it on bytes.
      fill: colour of the padding, 0 to 255.
      area: share of the image, in the middle, that is seen; it is brought to the size by bilinear interpolation without
        antialiasing. 0.9 is how OpenVLA runs models that were finetuned on random crops.
    """

    mode: str = "squash"
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    area: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "fill", tuple(self.fill))
        for name, known in (("mode", MODES), ("interpolation", INTERPOLATIONS)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"data.resize.{name} is {value!r}{did_you_mean(value, known)}")
        if len(self.fill) != 3 or not all(isinstance(x, int) and 0 <= x <= 255 for x in self.fill):
            raise UserError(f"data.resize.fill is {self.fill}; three whole numbers from 0 to 255 are expected")
        if not 0 < self.area <= 1:
            raise UserError(f"data.resize.area is a share of the area in (0, 1] (got {self.area})")

    @classmethod
    def from_config(cls, config: Mapping) -> "PrismaticResize":
        """That of a config group."""
        config, known = dict(config), [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in known:
                raise UserError(f"data.resize has no field '{key}'{did_you_mean(key, known)}")
        return cls(**config)

    def __call__(self, image: np.ndarray, size: int) -> np.ndarray:
        """uint8[H, W, 3] -> uint8[size, size, 3]; the input itself where nothing changes."""
        if self.area < 1:
            image = _middle(image, self.area, size)
        if self.mode == "letterbox":
            image = _padded(image, self.fill)
        height, width = image.shape[:2]
        if height == width == size:
            return image
        if self.mode == "squash":
            return _resized(image, (size, size), self.interpolation)
        # as torchvision's Resize and CenterCrop: the longer side is rounded down, the crop's place to the nearest even
        longer = int(size * max(height, width) / min(height, width))
        height, width = (longer, size) if height > width else (size, longer)
        if image.shape[:2] != (height, width):
            image = _resized(image, (width, height), self.interpolation)
        top, left = (round((side - size) / 2) for side in (height, width))
        return image[top : top + size, left : left + size]


def _resized(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """To (width, height)."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize(size, Image.Resampling[interpolation.upper()]))


def _padded(image: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """A square but for a pixel: an odd difference leaves one over."""
    height, width = image.shape[:2]
    down, right = ((max(height, width) - side) // 2 for side in (height, width))
    padded = np.empty((height + 2 * down, width + 2 * right, 3), np.uint8)
    padded[:] = fill
    padded[down : down + height, right : right + width] = image
    return padded


def _middle(image: np.ndarray, area: float, size: int) -> np.ndarray:
    """The middle of an image as TensorFlow's crop_and_resize gives it: the centres of the outermost pixels lie on the
    corners of the box; bilinear, in float32; and rounded as its convert_image_dtype does."""
    side = np.sqrt(np.float32(area))
    start = (1 - side) / 2
    places = []
    for length in image.shape[:2]:
        step = ((start + side) - start) * np.float32(length - 1) / np.float32(max(size - 1, 1))
        places.append(start * np.float32(length - 1) + np.arange(size, dtype=np.float32) * step)
    (rows, columns), values = places, image.astype(np.float32) * np.float32(1 / 255)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.ceil(rows).astype(int), np.ceil(columns).astype(int)
    down, along = (rows - top).astype(np.float32)[:, None, None], (columns - left).astype(np.float32)[None, :, None]
    upper, lower = ((a := values[row][:, left]) + (values[row][:, right] - a) * along for row in (top, bottom))
    return (np.clip(upper + (lower - upper) * down, 0, 1) * np.float32(255.5)).astype(np.uint8)
