"""Augmentation of images. Clip-consistent: one draw serves all of a sample, so it never looks like motion."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import flow as optical_flow
from lapa_jax.data.images import resize_box

DIRECTIONAL = re.compile(r"\b(left|right|clockwise|counterclockwise|anticlockwise)(most|wards?|hand)?\b", re.IGNORECASE)
IMAGES = ("frames", "middle_frame", "image", "prompt_image", "goal_image")
"""Fields of samples that are images: uint8[..., H, W, 3]."""

MIRRORED = ("net_action", "pair_action", "action", "state", "latent", "delta", "feature")
"""Fields that a flip of the images would have to change."""

ERASED, ASPECT = (0.02, 0.33), 3.3
"""The least and the largest share of an image that is erased, and how many times as long as wide at most."""

# Weights of red, green and blue in grey (ITU-R BT.601), as image libraries take them.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of a sample's images, each off at its default.

    Attributes:
      shift: at most this many pixels left, right, up and down; the border is repeated.
      crop_area: smallest share of the area that a random square crop keeps, in (0, 1]; the crop is resized back.
      flip: probability of a left-right flip.
      brightness, contrast, saturation: each factor is drawn from [1 - value, 1 + value].
      erase: probability that a rectangle is painted over in a random colour, 2 to 33 % of the area, at most 3.3 times
        as long as wide (Zhong et al. 2020, with the shares of torchvision). All images of a sample lose the same one.
    """

    shift: int = 0
    crop_area: float = 1.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0

    def __post_init__(self):
        if self.shift < 0 or int(self.shift) != self.shift:
            raise UserError(f"augment.shift is in whole pixels, 0 or more (got {self.shift})")
        if not 0 < self.crop_area <= 1:
            raise UserError(f"augment.crop_area is a share of the area in (0, 1] (got {self.crop_area})")
        for name in ("flip", "brightness", "contrast", "saturation", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} lies in [0, 1] (got {getattr(self, name)})")

    @classmethod
    def from_config(cls, config: Mapping | None) -> "Augment | None":
        """The augmentation of a config group; None for None or for one that changes nothing."""
        if config is None:
            return None
        names = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in names:
                raise UserError(f"augment has no field '{key}'{did_you_mean(key, names)}")
        augment = cls(**dict(config))
        return None if augment == cls() else augment

    def __call__(self, sample: Mapping, rng: np.random.Generator) -> dict:
        """The sample with its `IMAGES` changed, all by the same draw, and the optical flow of the changed pair;
        everything else as it was."""
        # every draw is made whatever is on, so that switching one change on leaves the others as they were
        shift, crop = rng.integers(-self.shift, self.shift + 1, size=2), rng.random(3)
        flip, factors, erasure = rng.random(), rng.uniform(-1, 1, size=3), rng.random(8)
        colours = 1 + factors * (self.brightness, self.contrast, self.saturation)
        draws = (shift, crop, flip, colours, erasure)
        changed = {name: self._change(sample[name], *draws) for name in IMAGES if name in sample}
        if optical_flow.FIELD in sample:
            changed[optical_flow.FIELD] = optical_flow.of_pairs(changed["frames"][None])[0]
        return {**sample, **changed}

    def _change(self, images: np.ndarray, shift, crop, flip: float, colours: np.ndarray, erasure) -> np.ndarray:
        frames = images.reshape(-1, *images.shape[-3:])
        if self.crop_area < 1:
            frames = _crop(frames, self.crop_area, crop)
        if self.shift:
            frames = _shift(frames, *shift)
        if flip < self.flip:
            frames = frames[:, :, ::-1]
        frames = _colour(frames, colours)
        if erasure[0] < self.erase:
            frames = _erase(frames, erasure[1:])
        return np.ascontiguousarray(frames).reshape(images.shape)


def _crop(frames: np.ndarray, least: float, draw: np.ndarray) -> np.ndarray:
    """A random square crop of an area in [least, 1], resized back to the size of the square frames."""
    side = frames.shape[1]
    cut = side * float(np.sqrt(least + (1 - least) * draw[0]))
    left, top = (side - cut) * draw[1], (side - cut) * draw[2]
    return np.stack([resize_box(frame, (left, top, left + cut, top + cut), side) for frame in frames])


def _shift(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return frames[:, rows[:, None], columns]


def _colour(frames: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Brightness, contrast about the mean grey of the first frame, saturation about each pixel's grey."""
    brightness, contrast, saturation = (np.float32(f) for f in factors)
    if brightness == contrast == saturation == 1:
        return frames
    values = frames.astype(np.float32) * brightness
    if contrast != 1:
        # The first frame's mean for all: a mean per frame would make a change of contrast look like motion.
        grey = (values[0] @ _LUMA).mean()
        values = (values - grey) * contrast + grey
    if saturation != 1:
        grey = (values @ _LUMA)[..., None]
        values = (values - grey) * saturation + grey
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _erase(frames: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """The frames with a rectangle of one colour, by a draw of seven numbers in [0, 1): area, aspect, place, colour."""
    height, width = frames.shape[1:3]
    area = height * width * (ERASED[0] + (ERASED[1] - ERASED[0]) * draw[0])
    aspect = ASPECT ** (2 * draw[1] - 1)
    rows, columns = (max(1, min(side, round(length))) for side, length in
                     ((height, (area * aspect) ** 0.5), (width, (area / aspect) ** 0.5)))  # fmt: skip
    top, left = int(draw[2] * (height - rows + 1)), int(draw[3] * (width - columns + 1))
    # Not in place: without another change the frames are those of the source.
    frames = frames.copy()
    frames[:, top : top + rows, left : left + columns] = (draw[4:] * 256).astype(np.uint8)
    return frames


def check_augment(
    augment: Augment | None, texts_used: bool, instructions: Iterable[str] = (), fields: Iterable[str] = ()
) -> None:
    """Refuses augmentations that make the data contradict themselves.

    Args:
      augment: the augmentation, or None.
      texts_used: whether the stage learns from instructions.
      instructions: those of the data; a flip turns "push it left" into a lie.
      fields: what the samples hold; a flip mirrors neither actions nor what stands for them, and what is erased from
        a pair of frames cannot be predicted.
    """
    if augment is not None and augment.erase and "frames" in fields:
        raise UserError("augment.erase hides what moves between the two frames of a pair, and is for stages 2 and 3: "
                        "set data.augment.erase=0")  # fmt: skip
    if augment is None or augment.flip == 0:
        return
    if texts_used:
        for text in instructions:
            if DIRECTIONAL.search(text):
                raise UserError(f"augment.flip would make the instruction '{text}' wrong: set data.augment.flip=0")
    moving = sorted(set(MIRRORED) & set(fields))
    if moving:
        raise UserError(f"augment.flip mirrors the images but not {', '.join(moving)}: set data.augment.flip=0")
