"""All trials of a sweep in one image."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames


def parallel_coordinates(
    path, keys: Sequence[str], trials: Sequence[tuple[Sequence[str], float]], metric: str, mode: str
) -> pathlib.Path:
    """One line a setting across an axis for each key and one for the metric, in the colour of its rank.

    Args:
      path: the PNG to write.
      keys: that were varied. trials: their values and the mean of the metric, the best first.
      metric: its name. mode: "max" or "min", which is better.
    """
    columns = [_places([values[i] for values, _ in trials]) for i in range(len(keys))]
    figures = np.array([figure for _, figure in trials])
    columns.append((_scaled(figures), [f"{figures.min():.4g}", f"{figures.max():.4g}"], [0.0, 1.0]))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(trials)))
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(1.9 * len(columns) + 0.8, 4.2), layout="constrained")
        axes = figure.subplots()
        # The best is drawn last, over the others.
        for k in reversed(range(len(trials))):
            heights = [places[k] for places, _, _ in columns]
            axes.plot(heights, color=colors[k], lw=2.4 if k == 0 else 1.1, alpha=1 if k == 0 else 0.7)
        for x, (_, words, heights) in enumerate(columns):
            axes.axvline(x, color=frames.MUTED, lw=0.8)
            for word, height in zip(words, heights):
                axes.annotate(word, (x, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7,
                              bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})  # fmt: skip
        axes.set(yticks=[], xlim=(-0.2, len(columns) - 0.4), ylim=(-0.06, 1.06))
        axes.set_xticks(range(len(columns)), [_broken(key) for key in [*keys, metric]], fontsize=7)
        axes.set_title(f"{len(trials)} settings; dark is best ({mode} of {metric})", loc="left")
        axes.spines[:].set_visible(False)
        return frames.save(figure, path)


def seeds_of_cases(path, cases: Mapping[str, Sequence[float]], metric: str) -> pathlib.Path:
    """A row a case, with a dot for each seed and a line at their mean.

    Args: path: the PNG to write. cases: {name: values of the metric}, from top to bottom.
    """
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(7.5, 0.24 * len(cases) + 0.9), layout="constrained")
        axes = figure.subplots()
        for row, values in enumerate(cases.values()):
            axes.axhline(row, color=frames.MUTED, lw=0.4, alpha=0.5)
            axes.plot([np.mean(values)] * 2, [row - 0.32, row + 0.32], color="tab:blue", lw=2)
            axes.plot(values, [row] * len(values), "o", color="tab:blue", ms=4.5, alpha=0.6)
        axes.set(ylim=(len(cases) - 0.4, -0.6), xlabel=metric)
        axes.set_yticks(range(len(cases)), list(cases), fontsize=7)
        axes.set_title("each seed, and their mean", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        return frames.save(figure, path)


def _broken(key: str) -> str:
    """A dotted key with its last part on a line of its own."""
    group, dot, last = key.rpartition(".")
    return f"{group}.\n{last}" if dot else key


def _places(values: Sequence[str]) -> tuple[np.ndarray, list[str], list[float]]:
    """Heights in [0, 1] of values on their axis, and its ticks: by size where all are numbers, by logarithm where they
    span more than a factor of twenty; else at equal distances."""
    distinct = list(dict.fromkeys(values))
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        numbers = np.array([float(distinct.index(value)) for value in values])
        heights = _scaled(numbers)
    else:
        wide = numbers.min() > 0 and numbers.max() > 20 * numbers.min()
        heights = _scaled(np.log(numbers) if wide else numbers)
        if len(distinct) > 6:
            distinct = [values[numbers.argmin()], values[numbers.argmax()]]
    return heights, distinct, [float(heights[values.index(value)]) for value in distinct]


def _scaled(numbers: np.ndarray) -> np.ndarray:
    span = numbers.max() - numbers.min()
    return (numbers - numbers.min()) / span if span else np.full(len(numbers), 0.5)
