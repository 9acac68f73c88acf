"""The image of a model of frame pairs at an evaluation of its training."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lapa_jax.plots import sketch
from lapa_jax.plots.mosaic import mosaic, to_float, what_changes
from lapa_jax.plots.sketch import MARGIN, TITLE

CELL, NAMES, BARS = 96, 32, 160
"""Pixels: of a frame, about; height of the names of columns, and of bars with their title."""
LEGIBLE = 16
"""Of more codes than that the bars are not numbered."""


def frame_pairs(
    path, shown: np.ndarray, reconstructions: np.ndarray, decoded: np.ndarray, names: Sequence[str],
    counts: np.ndarray, perplexity: Sequence[float],
) -> pathlib.Path:  # fmt: skip
    """Pairs with their reconstructions, what latent actions do to the first frames, and which codes are used.

    Args:
      path: the PNG to write, atomically.
      shown: f32 [B, 2, H, W, 3] in [0, 1]. reconstructions: f32 [B, H, W, 3], of the second frames.
      decoded: f32 [R, C, H, W, 3], what becomes of the first R first frames under each of C latent actions.
      names: of these, with line breaks.
      counts: int [N, K], how often each of K codes was used at each of N positions. perplexity: of the N positions.
        Both are empty where there are no codes.
    """
    pairs = np.concatenate([shown, to_float(reconstructions)[:, None]], axis=1)
    gallery = np.concatenate([shown[: len(decoded), :1], to_float(decoded)], axis=1)
    changed, scale = what_changes(decoded)
    left = grid(pairs, ["frame", "next frame", "reconstruction"], "held-out pairs")
    top = grid(gallery, ["start", *names], "what each latent action makes of a frame")
    title = f"the same minus the row's mean, {scale:.0f} times as strong: what choosing one does"
    bottom = grid(changed, names, title)

    width = left.width + top.width + 4 * MARGIN
    upper = max(left.height, top.height + bottom.height + MARGIN)
    image = sketch.blank(width, upper + (BARS + MARGIN if len(counts) else 0) + 2 * MARGIN)
    image.paste(left, (MARGIN, MARGIN))
    image.paste(top, (left.width + 3 * MARGIN, MARGIN))
    # Below the columns of the same latent actions: the first column of the gallery is the start.
    image.paste(bottom, (width - MARGIN - bottom.width, top.height + 2 * MARGIN))
    if not len(counts):
        return sketch.write(image, path)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    across = (width - MARGIN) / len(counts)
    for i, share in enumerate(shares):
        size = len(share)
        box = (MARGIN + i * across, upper + 2 * MARGIN, across - MARGIN, BARS)
        title = f"position {i}: {perplexity[i]:.1f} of {size}, most {share.max():.0%}"
        panel = sketch.Panel(image, box, title, (0, 1), (0, max(shares.max(), 1e-9)))
        panel.bars(share)
        panel.curve(np.array([0, 1]), np.full(2, 1 / size), sketch.MUTED)  # all codes as frequent
        panel.below([str(code) for code in range(size)] if size <= LEGIBLE else [])
    return sketch.write(image, path)


def grid(frames: np.ndarray, columns: Sequence[str], title: str) -> Image.Image:
    """Frames f32 [R, C, H, W, 3] under the names of their columns and a title."""
    *cells, height, width, colors = frames.shape
    if (share := width // CELL) > 1:
        cut = frames[..., : height // share * share, : width // share * share, :]
        frames = cut.reshape(*cells, height // share, share, width // share, share, colors).mean((3, 5))
    image = Image.fromarray(np.uint8(255 * mosaic(frames, max(1, frames.shape[3] // 24)) + 0.5))
    # By whole factors, so that each pixel of a small frame stays a square.
    image = image.resize([side * max(1, round(CELL / width)) for side in image.size], Image.Resampling.NEAREST)
    whole = sketch.blank(image.width, image.height + TITLE + NAMES)
    whole.paste(image, (0, TITLE + NAMES))
    draw = ImageDraw.Draw(whole)
    draw.text((0, 0), title, sketch.INK, sketch.font(13))
    column = image.width / len(columns)
    longest = max(len(line) for name in columns for line in name.splitlines())
    font = sketch.font(min(12, max(6, 1.7 * column / longest)))  # letters are about half as wide as high
    for c, name in enumerate(columns):
        draw.multiline_text(((c + 0.45) * column, TITLE + NAMES - 4), name, sketch.MUTED, font, "md", 1, "center")
    return whole
