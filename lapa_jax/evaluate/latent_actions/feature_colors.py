"""Latent actions of features as images: three directions of the features become red, green and blue."""

import numpy as np


class Colors:
    """The three principal components of given features, each cut at its 1st and 99th percentile."""

    def __init__(self, features: np.ndarray):
        """features: f32 `[..., D]` that the colours are made for."""
        flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
        self._mean = flat.mean(0)
        # eigh sorts the eigenvalues upwards: the last three directions have the most variance.
        _, directions = np.linalg.eigh((flat - self._mean).T @ (flat - self._mean))
        self._directions = directions[:, ::-1][:, :3]
        low, high = np.quantile((flat - self._mean) @ self._directions, [0.01, 0.99], axis=0)
        self._low, self._span = low, np.maximum(high - low, 1e-6)

    def paint(self, features: np.ndarray, cell: int, image_size: tuple[int, int]) -> np.ndarray:
        """Features f32 `[..., rows, columns, D]` as images f32 `[..., H, W, 3]` of the size of a frame.

        Args:
          cell: side of the square, in pixels, that a vector of features covers. image_size: H and W.
        """
        colours = ((features - self._mean) @ self._directions - self._low) / self._span
        (height, width), (rows, columns) = image_size, features.shape[-3:-1]
        # A cell of features covers a patch of pixels; a border that no patch covers stays black.
        image = np.repeat(np.repeat(colours, cell, axis=-3), cell, axis=-2)
        border = [(0, 0)] * (image.ndim - 3) + [(0, height - rows * cell), (0, width - columns * cell), (0, 0)]
        return np.pad(np.clip(image, 0, 1), border).astype(np.float32)


class Coloured:
    """A tokenizer that predicts features, as one that predicts images of them; for drawing."""

    def __init__(self, tokenizer, frames: np.ndarray):
        """tokenizer: a `LatentActionTokenizer`. frames: uint8 `[M, H, W, 3]` that the colours are made for."""
        self._tokenizer, self._colors = tokenizer, Colors(tokenizer.observe(frames))
        self.codebook_size, self.code_length = tokenizer.codebook_size, tokenizer.code_length

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """As of `LatentActionTokenizer`."""
        return self._tokenizer.encode(frames)

    def decode(self, first_frame: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Frames and codes as of `LatentActionTokenizer` -> the predicted features, f32 `[B, H, W, 3]` in colours."""
        return self._paint(self._tokenizer.decode(first_frame, codes))

    def observe(self, frames: np.ndarray) -> np.ndarray:
        """uint8 `[B, H, W, 3]` -> their features in the same colours."""
        return self._paint(self._tokenizer.observe(frames))

    def _paint(self, features: np.ndarray) -> np.ndarray:
        return self._colors.paint(features, self._tokenizer.model.cell, self._tokenizer.image_size)
