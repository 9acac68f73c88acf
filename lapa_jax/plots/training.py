"""One image of a model at an evaluation of its training. Files are written as in `plots.frames`."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import features, frames
from lapa_jax.plots.tokenizers import DECODED, TRUE, ranked

DIMENSIONS, POSITIONS, POINTS = 6, 6, 2000
"""How many dimensions, code positions and dots are drawn at most."""


def frame_pairs(
    path, shown: np.ndarray, reconstructions: np.ndarray, decoded: np.ndarray, names: Sequence[str],
    counts: np.ndarray, perplexity: Sequence[float],
) -> pathlib.Path:  # fmt: skip
    """Pairs with their reconstructions, what each code sequence does to the first frames, and which codes are used.

    Args:
      path: the PNG to write.
      shown: f32 [B, 2, H, W, 3] in [0, 1]. reconstructions: f32 [B, H, W, 3], of the second frames.
      decoded: f32 [R, C, H, W, 3], what becomes of the first R first frames under each of C code sequences.
      names: of the sequences. counts, perplexity: see `frames.code_histograms`.
    """
    starts = shown[: len(decoded), 0]
    pairs = np.concatenate([shown, frames.to_float(reconstructions)[:, None]], axis=1)
    changed, scale = frames.what_changes(decoded)
    gallery = np.concatenate([starts[:, None], frames.to_float(decoded)], axis=1)
    with matplotlib.rc_context(frames.STYLE):
        width = 3 + 0.95 * (4 + len(names))
        figure = Figure(figsize=(width, 10.4), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[8.2, 2.2])
        left, right = upper.subfigures(1, 2, width_ratios=[3.4, 1 + len(names)])
        frames.draw_grid(left.subplots(), pairs, ["frame", "next frame", "reconstruction"], title="held-out pairs")
        top, bottom = right.subplots(2, 1)
        frames.draw_grid(top, gallery, ["start", *names], title="what each code sequence makes of a frame")
        title = f"the same minus the row's mean, ×{scale:.0f}: what choosing a code does"
        frames.draw_grid(bottom, changed, names, title=title)
        frames.draw_histograms(lower, counts, perplexity)
        return frames.save(figure, path)


def actions(
    path, true: np.ndarray, predicted: np.ndarray, mask: np.ndarray, codes: np.ndarray | None = None,
    codebook_sizes: Sequence[int] = (), code_names: Sequence[str] = (),
) -> pathlib.Path:  # fmt: skip
    """Predicted against true actions: dots of each dimension, then the chunks with the least, the median and the
    largest error; with codes, where in the plane of actions each of them lies.

    Args:
      path: the PNG to write.
      true, predicted: f[N, T, A], normalised; dimensions of the largest variance are drawn.
      mask: bool [N, T], the steps that exist.
      codes: int [N, P] of chunks, or [N, T, P] of steps; None: none. codebook_sizes, code_names: of the P positions.
    """
    std = true[mask].std(0)
    shown = np.sort(np.argsort(-std, kind="stable")[: min(DIMENSIONS, (std > 0).sum() or 1)])
    _, chosen = ranked(true, predicted, mask, np.where(std > 0, 1.0, 0.0))
    lines = len(chosen) if true.shape[1] > 1 else 0
    maps = 0 if codes is None else min(POSITIONS, codes.shape[-1])
    heights = [2.4, *[1.5] * lines, *[2.6] * bool(maps)]
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(2.4 * max(len(shown), maps), sum(heights)), layout="constrained")
        rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _scatter(rows[0], true[mask][:, shown], predicted[mask][:, shown], shown)
        for row, i, word in zip(rows[1 : 1 + lines], chosen.tolist(), ("best", "median", "worst")):
            _chunk(row, true[i, mask[i]][:, shown], predicted[i, mask[i]][:, shown], word)
        if maps:
            points, of_points = _with_codes(true, mask, codes)
            _maps(rows[-1], points, of_points[:, :maps], codebook_sizes, code_names)
        return frames.save(figure, path)


def _scatter(figure, true: np.ndarray, predicted: np.ndarray, shown: np.ndarray) -> None:
    few = np.linspace(0, len(true) - 1, min(POINTS, len(true))).astype(int)
    for i, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        variance = true[:, i].var()
        r2 = 1 - np.square(true[:, i] - predicted[:, i]).mean() / variance if variance > 0 else np.nan
        ends = [min(true[:, i].min(), predicted[:, i].min()), max(true[:, i].max(), predicted[:, i].max())]
        axes.plot(ends, ends, color=frames.MUTED, lw=0.8, ls=":")
        axes.scatter(true[few, i], predicted[few, i], s=5, alpha=0.3, color=frames.BAR, linewidths=0, rasterized=True)
        axes.set_title(f"dimension {shown[i]}: R² {r2:.2f}", loc="left")
        axes.set_xlabel("true")
        if i == 0:
            axes.set_ylabel("predicted")


def _chunk(figure, true: np.ndarray, predicted: np.ndarray, word: str) -> None:
    panels = figure.subplots(1, true.shape[1], squeeze=False)[0]
    for i, axes in enumerate(panels):
        axes.plot(true[:, i], **TRUE)
        axes.plot(predicted[:, i], **{**DECODED, "label": "predicted"})
        axes.tick_params(labelsize=6)
    panels[0].set_ylabel(f"{word} chunk", fontsize=8)
    panels[-1].legend(fontsize=6, frameon=False)


def _with_codes(true: np.ndarray, mask: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actions f[M, D] and their codes int[M, P]: of steps where each has codes, else of whole chunks."""
    if codes.ndim == 3:
        return true[mask], codes[mask]
    whole = mask.all(1) if mask.all(1).sum() > 1 else np.ones(len(mask), bool)
    return true[whole].reshape(whole.sum(), -1), codes[whole]


def _maps(figure, points: np.ndarray, codes: np.ndarray, sizes: Sequence[int], names: Sequence[str]) -> None:
    """Held-out actions in the plane of their principal components in the colour of their code, and each code at the
    mean of its actions, the larger the more frequent."""
    few = np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int)
    flat, _ = features.project(points, "pca")
    for i, axes in enumerate(figure.subplots(1, codes.shape[1], squeeze=False)[0]):
        colors = matplotlib.colormaps["hsv"](np.arange(sizes[i]) / sizes[i])
        used, where, often = np.unique(codes[:, i], return_inverse=True, return_counts=True)
        means = np.stack([np.bincount(where.ravel(), flat[:, d]) / often for d in range(2)])
        axes.scatter(*flat[few].T, s=3, c=colors[codes[few, i]], alpha=0.3, linewidths=0, rasterized=True)
        axes.scatter(*means, s=12 + 120 * often / often.max(), c=colors[used], edgecolors=frames.INK, linewidths=0.7)
        axes.set(xticks=[], yticks=[])
        name = names[i] if names else f"position {i}"
        axes.set_title(f"{name}: {len(used)} of {sizes[i]} codes", loc="left", fontsize=8)
