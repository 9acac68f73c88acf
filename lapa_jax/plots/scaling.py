"""Success against the number of episodes: a panel for what is counted, a line with its intervals for each policy."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames
from lapa_jax.plots.curves import COLOURS

Points = Sequence[tuple[int, Mapping]]
"""(number of episodes, {"success_rate", "low", "high"}), ..."""


def draw(path, panels: Mapping[str, Mapping[str, Points]]) -> pathlib.Path:
    """Draws {what is counted: {policy: its points}} to a PNG at `path`, which it returns."""
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
        names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
        colours, shown = dict(zip(names, COLOURS * len(names))), {}
        for axes, (counted, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            for number, (name, points) in enumerate(lines.items()):
                counts, rates = zip(*sorted(points, key=lambda point: point[0]))
                # A little beside each other, or intervals would hide one another.
                counts = np.array(counts) * 1.02 ** (number - (len(lines) - 1) / 2)
                middle = np.array([rate["success_rate"] for rate in rates])
                ends = np.array([[rate["low"], rate["high"]] for rate in rates]).T
                shown[name] = axes.errorbar(counts, middle, np.abs(ends - middle), color=colours[name], marker="o",
                                            ms=3, lw=1.2, elinewidth=0.8, capsize=2)  # fmt: skip
            ticks = sorted({count for points in lines.values() for count, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(count) for count in ticks])
            axes.minorticks_off()
            axes.set_ylim(0, 1.02)
            axes.set_xlabel(counted)
        figure.axes[0].set_ylabel("success rate")
        figure.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=2 * len(panels), frameon=False)
        return frames.save(figure, path)
