"""The image of a masked autoencoder: what it sees, what it makes of it, and what is true."""

import pathlib

import numpy as np

from lapa_jax.plots import sketch
from lapa_jax.plots.mosaic import to_float
from lapa_jax.plots.pairs import grid
from lapa_jax.plots.sketch import MARGIN

GREY = 0.5


def draw(path, images: np.ndarray, hidden: np.ndarray, reconstructions: np.ndarray) -> pathlib.Path:
    """A row for each image.

    Args:
      path: the PNG to write, atomically.
      images: uint8, or f32 in [0, 1], [B, H, W, 3]. hidden: bool [B, rows, columns], which patches are hidden.
      reconstructions: f32 [B, H, W, 3].
    """
    images, cell = to_float(images), images.shape[1] // hidden.shape[1]
    pixels = hidden.repeat(cell, axis=1).repeat(cell, axis=2)[..., None]
    columns = [np.where(pixels, GREY, images), to_float(reconstructions), images]
    cells = grid(np.stack(columns, axis=1), ["seen", "predicted", "image"], "held-out images")
    image = sketch.blank(cells.width + 2 * MARGIN, cells.height + 2 * MARGIN)
    image.paste(cells, (MARGIN, MARGIN))
    return sketch.write(image, path)
