"""Maps of the codebooks of a feature tokenizer."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.models.tokenizers.feature_vq.layout import LEVELS, Layout
from lapa_jax.plots import sketch
from lapa_jax.plots.projections import project
from lapa_jax.plots.sketch import MARGIN, Panel

ROWS, POINTS = 6, 1000
"""Categories and points that are shown at most."""
WIDTH, HEIGHT = 250, 240
"""Pixels of a panel."""


def codebook_maps(
    path, arrays: Mapping[str, np.ndarray], books: np.ndarray, layout: Layout, projection: str = "pca"
) -> str:
    """Draws vectors and codes (the larger the more used; white ones are unused) in two dimensions.

    Args:
      path: the PNG to write.
      arrays: of the model's `evaluate`: "latent" f32[M, D], "codes".
      books: f32[P, K, D'], the padded codebooks.
      projection: see `projections.project`.

    Returns:
      How the two dimensions were found, in words.
    """
    rows = min(ROWS, len(layout.groups))
    image = sketch.blank(MARGIN + WIDTH * LEVELS, MARGIN + HEIGHT * rows)
    for i in range(rows * LEVELS):
        (start, end), size = layout.spans[i], layout.flat_sizes[i]
        # Vectors and codes are projected together, so that they share the plane.
        points, codes = arrays["latent"][:POINTS, start:end], books[i, :size, : end - start]
        flat, words = project(np.concatenate([points, codes]), projection)
        counts = np.bincount(arrays["codes"][:, i], minlength=size)
        category, level = divmod(i, LEVELS)
        box = (MARGIN + WIDTH * level, MARGIN + HEIGHT * category, WIDTH - MARGIN, HEIGHT - MARGIN)
        title = f"category {category}, level {level}: {np.sum(counts > 0)} of {size}"
        low, high = flat.min(0), flat.max(0)
        panel = Panel(image, box, title, (low[0], high[0]), (low[1], high[1]))
        colors, nearest, of_codes = sketch.hues(size), arrays["codes"][: len(points), i], flat[len(points) :]
        panel.dots(*flat[: len(points)].T, [(*colors[code], 70) for code in nearest], [1.5] * len(points))
        used, unused = np.flatnonzero(counts > 0), np.flatnonzero(counts == 0)
        panel.dots(*of_codes[used].T, [colors[code] for code in used], 2 + 5 * np.sqrt(counts[used] / counts.max()),
                   sketch.INK)  # fmt: skip
        panel.dots(*of_codes[unused].T, ["white"] * len(unused), [2.5] * len(unused), sketch.MUTED)
    sketch.write(image, path)
    left = len(layout.groups) - rows
    return words + (f" The other {left} categories are left out." if left else "")
