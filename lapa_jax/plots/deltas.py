"""Image of a tokenizer's deltas: where the frame pairs lie before quantisation, and which code each becomes."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames
from lapa_jax.plots.projections import project

POINTS, NAMED, COLUMNS = 2000, 16, 4
"""Pairs that are drawn, up to how many codes are named, and panels in a row."""


def maps(path, delta: np.ndarray, codes: np.ndarray | None) -> pathlib.Path:
    """A panel for each code position: the deltas in the plane of their two largest principal components, in the colour
    of their code, whose number stands at the median of its deltas.

    Args:
      path: the PNG to write. delta: f32[M, N, Q]. codes: int[M, N]; None where nothing is rounded: all of one colour.
    """
    positions = delta.shape[1]
    columns = min(COLUMNS, positions)
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(2.6 * columns, 2.5 * -(-positions // columns)), layout="constrained")
        panels = figure.subplots(-(-positions // columns), columns, squeeze=False).ravel()
        for axes in panels[positions:]:
            axes.axis("off")
        for position, axes in enumerate(panels[:positions]):
            flat = plane(delta[:, position])
            axes.set(xticks=[], yticks=[])
            if codes is None:
                axes.scatter(*flat[:POINTS].T, s=4, c=frames.BAR, alpha=0.5, linewidths=0, rasterized=True)
                axes.set_title(f"position {position}", loc="left")
                continue
            used = np.unique(codes[:, position])
            colours = matplotlib.colormaps["hsv"](np.arange(len(used)) / len(used))
            number = np.searchsorted(used, codes[:POINTS, position])
            axes.scatter(*flat[:POINTS].T, s=4, c=colours[number], alpha=0.5, linewidths=0, rasterized=True)
            for code in used if len(used) <= NAMED else ():
                x, y = np.median(flat[codes[:, position] == code], axis=0)
                axes.text(x, y, str(code), ha="center", va="center", fontsize=8, weight="bold", color=frames.INK)
            axes.set_title(f"position {position}: {len(used)} codes", loc="left")
        return frames.save(figure, path)


def plane(points: np.ndarray) -> np.ndarray:
    """f64[M, 2] of points f[M, Q]: `project`, with zeros for what a single number lacks."""
    flat = project(points.astype(np.float64), "pca")[0]
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
