"""The course of training as one image: losses and validation metrics over the steps."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames

COLUMNS, MOST = 4, 16
LESS = ("perplexity_position", "codebook_utilization_", "largest_code_share_", "mse_", "mae_", "r2_", "collapse")
"""Metrics that are not drawn, by how they begin: what they say of one position or dimension another says of all."""


def draw(path, history: Sequence[Mapping], best: str | None = None) -> pathlib.Path | None:
    """Draws the training losses and the validation metrics of a run, up to 16 of them.

    A metric "val/<dataset>/<name>" is a thin line in the panel of "val/<name>".

    Args:
      path: the PNG to write. history: the lines of its `metrics.jsonl`. best: the metric to draw first.

    Returns:
      `path`, or None where there is nothing to draw.
    """
    panels = _panels(history, best)
    if not panels:
        return None
    rows = -(-len(panels) // COLUMNS)
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(3.2 * COLUMNS, 2.2 * rows), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for unused in axes[len(panels) :]:
            unused.set_visible(False)
        for panel, (title, lines) in zip(axes, panels.items()):
            for name, points in lines.items():
                style = {"color": frames.BAR, "lw": 1.4} if name == title else {"lw": 0.7, "label": name.split("/")[1]}
                panel.plot(points[:, 0], points[:, 1], marker="o" if len(points) < 30 else None, ms=2, **style)
            panel.set_title(title, loc="left")
            if len(lines) > 1:
                panel.legend(fontsize=6, frameon=False)
        return frames.save(figure, path)


def _panels(history: Sequence[Mapping], best: str | None = None) -> dict[str, dict[str, np.ndarray]]:
    """{metric: {the metric, and the same of each dataset: [S, 2] steps and values}}."""
    names = list(dict.fromkeys(name for line in history for name in line))
    losses = [name for name in names if name.startswith("train/loss")]
    metrics = [name for name in names if name.startswith("val/") and name.count("/") == 1]
    metrics = [name for name in metrics if not name.removeprefix("val/").startswith(LESS)]
    panels = {}
    # False sorts before True: the best metric comes first, and all others keep their order.
    for name in sorted([*losses, *metrics], key=lambda name: name != best)[:MOST]:
        of_datasets = [other for other in names if other.count("/") == 2 and other.split("/")[::2] == name.split("/")]
        lines = {other: _curve(history, other) for other in [name, *of_datasets]}
        panels[name] = {other: points for other, points in lines.items() if len(points)}
    return {name: lines for name, lines in panels.items() if lines}


def _curve(history: Sequence[Mapping], name: str) -> np.ndarray:
    points = [(line["step"], line[name]) for line in history if line.get(name) is not None]
    return np.array(points, np.float64).reshape(-1, 2)
