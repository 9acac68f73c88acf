"""One image of a model of actions or codes at an evaluation of its training."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lapa_jax.plots import sketch
from lapa_jax.plots.projections import project
from lapa_jax.plots.ranking import ranked
from lapa_jax.plots.sketch import MARGIN, Panel

DIMENSIONS, POSITIONS, POINTS, LEGIBLE = 6, 6, 2000, 16
"""How many dimensions, code positions and dots are drawn at most, and of how many codes the numbers."""
WIDTH, SCATTER, CHUNK, MAP = 230, 220, 140, 250
"""Pixels: width of panels, and heights of each kind."""
DOT = (59, 111, 182, 80)
"""Of `sketch.BAR`, mixed: the more dots in a place, the darker."""


def actions(
    path, true: np.ndarray, predicted: np.ndarray, mask: np.ndarray, codes: np.ndarray | None = None,
    codebook_sizes: Sequence[int] = (), code_names: Sequence[str] = (),
) -> pathlib.Path:  # fmt: skip
    """Predicted against true actions: dots of each dimension, then the chunks with the least, the median and the
    largest error, true in grey; with codes, where in the plane of actions each of them lies.

    Args:
      path: the PNG to write.
      true, predicted: f[N, T, A], normalised; dimensions of the largest variance are drawn.
      mask: bool [N, T], the steps that exist.
      codes: int [N, P] of chunks, or [N, T, P] of steps; None: none. codebook_sizes, code_names: of the P positions.
    """
    std = true[mask].std(0)
    shown = np.sort(np.argsort(-std, kind="stable")[: min(DIMENSIONS, (std > 0).sum() or 1)])
    _, chosen = ranked(true, predicted, mask, np.where(std > 0, 1.0, 0.0))
    chunks = list(zip(chosen.tolist(), ("best", "median", "worst"))) if true.shape[1] > 1 else []
    maps = 0 if codes is None else min(POSITIONS, codes.shape[-1])
    height = SCATTER + CHUNK * len(chunks) + MAP * bool(maps)
    image = sketch.blank(MARGIN + WIDTH * max(len(shown), maps), MARGIN + height)
    for i, dimension in enumerate(shown.tolist()):
        left = MARGIN + WIDTH * i
        _scatter(image, left, MARGIN, dimension, true[mask][:, dimension], predicted[mask][:, dimension])
        for line, (number, word) in enumerate(chunks):
            box = (left, MARGIN + SCATTER + CHUNK * line, WIDTH - MARGIN, CHUNK - MARGIN)
            _chunk(image, box, f"{word} chunk, dimension {dimension}", true[number, mask[number], dimension],
                   predicted[number, mask[number], dimension])  # fmt: skip
    if maps:
        points, of_points = _with_codes(true, mask, codes)
        _maps(image, MARGIN + height - MAP, points, of_points[:, :maps], codebook_sizes, code_names)
    return sketch.write(image, path)


def confusion(path, codes: np.ndarray, predicted: np.ndarray, size: int) -> pathlib.Path:
    """One panel a code position: rows are true codes, columns predicted ones; of each row, the darker the more often.

    Args:
      path: the PNG to write. codes, predicted: int [M, N]. size: K.
    """
    cell = max(1, (WIDTH - 2 * MARGIN) // size)
    side = cell * size
    across = 2 * MARGIN + max(side, 160)
    image = sketch.blank(MARGIN + across * codes.shape[1], sketch.TITLE + side + 2 * sketch.LABEL + 2 * MARGIN)
    white, blue = np.array([236, 240, 247]), np.array([8, 48, 107])
    for position in range(codes.shape[1]):
        counts = np.zeros((size, size))
        np.add.at(counts, (codes[:, position], predicted[:, position]), 1)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        right = np.trace(counts) / max(counts.sum(), 1)
        left = 2 * MARGIN + across * position
        box = (left, MARGIN, side, sketch.TITLE + side + sketch.LABEL)
        panel = Panel(image, box, f"position {position}: {right:.0%} right", (0, size), (0, size))
        colors = Image.fromarray(np.uint8(white + shares[..., None] * (blue - white)))
        image.paste(colors.resize((side, side), Image.Resampling.NEAREST), (left, MARGIN + sketch.TITLE))
        numbers = [str(code) for code in range(size)] if size <= LEGIBLE else []
        panel.below(numbers)
        panel.beside(numbers)
    words = "rows: true codes, columns: predicted; the darker, the larger the share of its row"
    ImageDraw.Draw(image).text((2 * MARGIN, image.height - MARGIN), words, sketch.MUTED, sketch.font(11), "ld")
    return sketch.write(image, path)


def _scatter(image, left: int, top: int, dimension: int, true: np.ndarray, predicted: np.ndarray) -> None:
    variance = true.var()
    r2 = 1 - np.square(true - predicted).mean() / variance if variance > 0 else np.nan
    ends = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    box = (left, top, WIDTH - MARGIN, SCATTER - MARGIN)
    panel = Panel(image, box, f"dimension {dimension}: R2 {r2:.2f}", ends, ends)
    panel.curve(np.array(ends), np.array(ends), sketch.LINE)
    few = np.linspace(0, len(true) - 1, min(POINTS, len(true))).astype(int)
    panel.dots(true[few], predicted[few], [DOT] * len(few), [1.5] * len(few))
    panel.frame()
    if left == MARGIN:
        panel.below(["across: true, up: predicted"])


def _chunk(image, box, title: str, true: np.ndarray, predicted: np.ndarray) -> None:
    both = np.concatenate([true, predicted])
    panel = Panel(image, box, title, (0, len(true) - 1), (both.min(), both.max()))
    panel.curve(np.arange(len(true)), true, sketch.LINE, 4)
    panel.curve(np.arange(len(true)), predicted, sketch.ACCENT, 2)
    panel.frame()
    if box[0] == MARGIN:
        panel.below(["grey: true"])


def _with_codes(true: np.ndarray, mask: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actions f[M, D] and their codes int[M, P]: of steps where each has codes, else of whole chunks."""
    if codes.ndim == 3:
        return true[mask], codes[mask]
    whole = mask.all(1) if mask.all(1).sum() > 1 else np.ones(len(mask), bool)
    return true[whole].reshape(whole.sum(), -1), codes[whole]


def _maps(image, top: int, points: np.ndarray, codes: np.ndarray, sizes: Sequence[int], names: Sequence[str]) -> None:
    """Held-out actions in the plane of their principal components in the colour of their code, and each code at the
    mean of its actions, the larger the more frequent."""
    few = np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int)
    flat, _ = project(points, "pca")
    low, high = flat.min(0), flat.max(0)
    for i in range(codes.shape[1]):
        colors = sketch.hues(sizes[i])
        used, where, often = np.unique(codes[:, i], return_inverse=True, return_counts=True)
        means = np.stack([np.bincount(where.ravel(), flat[:, d]) / often for d in range(2)])
        title = f"{names[i] if names else f'position {i}'}: {len(used)} of {sizes[i]} codes"
        box = (MARGIN + WIDTH * i, top, WIDTH - MARGIN, MAP - MARGIN)
        panel = Panel(image, box, title, (low[0], high[0]), (low[1], high[1]))
        panel.dots(*flat[few].T, [(*colors[code], 80) for code in codes[few, i]], [1.5] * len(few))
        panel.dots(*means, [colors[code] for code in used], 2 + 5 * np.sqrt(often / often.max()), sketch.INK)
