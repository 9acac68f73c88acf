"""What models of frames share at inference: how frames come to the size that the model sees, and what is refused."""

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference.base import TrainedModel
from lapa_jax.inference.observations import resized


class FrameModel(TrainedModel):
    """A trained model of frames. Attributes as of `TrainedModel`."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames that the model sees, in pixels."""
        size = self.model.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def side(self) -> int | None:
        """The side of the model's frames where they are square, which is what stored images are resized to."""
        height, width = self.image_size
        return height if height == width else None

    def fit(self, frames: np.ndarray, name: str, dataset: str | None) -> np.ndarray:
        """Resizes `[..., H, W, 3]` as in training, which sees 8-bit images."""
        height, width = self.image_size
        if frames.shape[-3:-1] == (height, width):
            return frames
        if height != width:
            raise UserError(f"frames are {frames.shape[-3]}x{frames.shape[-2]}; resize them to {height}x{width} first")
        # Training resizes stored 8-bit images: floats are rounded first, so that both take the same path.
        eight_bit = frames if frames.dtype == np.uint8 else np.rint(frames * 255).astype(np.uint8)
        return resized(eight_bit, name, height, self, dataset)


def check_frames(frames, name: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """`frames` as uint8, or as float32 in [0, 1], with so many axes, the last of 3; else a `UserError`."""
    frames = np.asarray(frames)
    if frames.ndim not in dimensions or frames.shape[-1] != 3 or 0 in frames.shape:
        raise UserError(
            f"{name} has shape {frames.shape}; {' or '.join(map(str, dimensions))} axes ending in 3 expected"
        )
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind != "f":
        raise UserError(f"{name} is {frames.dtype}; uint8, or float32 in [0, 1], is expected")
    low, high = float(frames.min()), float(frames.max())
    if not (low >= 0 and high <= 1):
        raise UserError(f"{name} holds floats {low:g}..{high:g}; give uint8, or floats in [0, 1] (divide by 255)")
    return frames.astype(np.float32)
