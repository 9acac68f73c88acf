"""The course of training, of one run or of several over each other: losses and validation metrics over the steps."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames

CURVES_FILE = "curves.png"
COLUMNS, MOST = 4, 16
LESS = ("perplexity_position", "codebook_utilization_", "largest_code_share_", "mse_", "mae_", "r2_", "collapse")
"""Metrics that are not drawn, by how they begin: what they say of one position or dimension another says of all."""
COLOURS = (frames.BAR, frames.ACCENT, "#1c7a4a", "#b98a14", "#7b4fa3", "#1f2430", "#c0458a", "#8a91a3")
"""Of the lines of a panel, as in `page.css`."""

Panels = Mapping[str, Mapping[str, np.ndarray]]
"""{metric: {name of a line: f64[S, 2] steps and values}}"""


def of_run(history: Sequence[Mapping], best: str | None = None) -> Panels:
    """Training losses and validation metrics, up to 16; beside "val/<name>" a line for each "val/<dataset>/<name>".

    Args:
      history: the lines of the run's `metrics.jsonl`. best: the metric to show first.
    """
    names = list(dict.fromkeys(name for line in history for name in line))
    losses, metrics = _losses(names), _metrics(names)
    panels = {}
    # False sorts before True: the best metric comes first, and all others keep their order.
    for name in sorted([*losses, *metrics], key=lambda name: name != best)[:MOST]:
        of_datasets = [other for other in names if other.count("/") == 2 and other.split("/")[::2] == name.split("/")]
        lines = {name: _curve(history, name)}
        lines |= {other.split("/")[1]: _curve(history, other) for other in of_datasets}
        panels[name] = _drawn(lines)
    return _drawn(panels)


def of_runs(histories: Mapping[str, Sequence[Mapping]]) -> Panels:
    """Training losses and validation metrics that at least one run has, up to 16, a line a run."""
    names = list(dict.fromkeys(name for history in histories.values() for line in history for name in line))
    shown = [*_losses(names)[:COLUMNS], *_metrics(names)][:MOST]
    return _drawn({name: _drawn({run: _curve(history, name) for run, history in histories.items()}) for name in shown})


def colours(panels: Panels) -> dict[str, int]:
    """{name of a line: index of its colour}, the same in all panels; the metric itself, named as its panel, has 0."""
    titles = {name for title, lines in panels.items() for name in lines if name == title}
    others = dict.fromkeys(name for lines in panels.values() for name in lines if name not in titles)
    return dict.fromkeys(titles, 0) | {name: k for k, name in enumerate(others, start=bool(titles))}


def draw(path: pathlib.Path, panels: Panels) -> pathlib.Path:
    """Draws panels as a PNG, with a legend where they have several lines; returns `path`."""
    rows, numbers = -(-len(panels) // COLUMNS), colours(panels)
    styles = {name: {"color": COLOURS[number % len(COLOURS)]} for name, number in numbers.items()}
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(3.2 * COLUMNS, 2.2 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for unused in axes[len(panels) :]:
            unused.set_visible(False)
        for panel, (title, lines) in zip(axes, panels.items()):
            for name, points in lines.items():
                panel.plot(*points.T, **styles[name], lw=1.4 if name == title else 0.9,
                           marker="o" if len(points) < 30 else None, ms=2)  # fmt: skip
            panel.set_title(title, loc="left")
        handles = [matplotlib.lines.Line2D([], [], label=name, **styles[name]) for name in styles if name not in panels]
        if handles:
            figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), frameon=False)
        return frames.save(figure, path)


def _losses(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith("train/loss")]


def _metrics(names: Sequence[str]) -> list[str]:
    metrics = [name for name in names if name.startswith("val/") and name.count("/") == 1]
    # "action_mse_0" beside "action_mse" is that of one dimension.
    metrics = [name for name in metrics if re.sub(r"_\d+$", "", name) not in metrics or not re.search(r"_\d+$", name)]
    return [name for name in metrics if not name.removeprefix("val/").startswith(LESS)]


def _curve(history: Sequence[Mapping], name: str) -> np.ndarray:
    points = [(line["step"], line[name]) for line in history if line.get(name) is not None]
    return np.array(points, np.float64).reshape(-1, 2)


def _drawn(values: Mapping) -> dict:
    """Without what is empty."""
    return {name: value for name, value in values.items() if len(value)}
