"""Image encoders at inference: images to features of their patches."""

import functools

import jax
import numpy as np

from lapa_jax.inference.frames import FrameModel, check_frames


class ImageEncoder(FrameModel):
    """A trained image encoder. Attributes as of `TrainedModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._encode = jax.jit(functools.partial(_apply_encode, model))
        self._predict = jax.jit(functools.partial(_apply_predict, model))

    def encode(self, images, *, dataset: str | None = None) -> np.ndarray:
        """Features of the patches of images.

        Args:
          images: `[B, H, W, 3]` or `[H, W, 3]`, uint8 or float32 in [0, 1], any H and W (resized as in training).
          dataset: of an encoder of several: as whose images they are resized.

        Returns:
          float32 `[B, rows, columns, D]`; `[rows, columns, D]` of a single image.

        Raises:
          UserError: for another shape, type or range.
        """
        images = check_frames(images, "images", (3, 4))
        whole = images if images.ndim == 4 else images[None]
        features = self.run(self._encode, self.fit(whole, "images", dataset))
        return features if images.ndim == 4 else features[0]

    def predict(self, frames) -> dict[str, np.ndarray]:
        """Frame pairs uint8 `[B, 2, H, W, 3]` of the model's size -> which patches of them were "hidden", bool
        `[B, 2, rows, columns]`, and the "reconstruction", float32 `[B, 2, H, W, 3]`, not clipped."""
        return self.run(self._predict, check_frames(frames, "frames", (5,)))


def _apply_encode(model, variables, images):
    return model.apply(variables, images, method="encode")


def _apply_predict(model, variables, frames):
    return model.apply(variables, {"frames": frames}, method="predict")
