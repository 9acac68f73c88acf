"""Figures of several frame gaps in one image, a panel for each figure and a line for each other setting."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from lapa_jax.plots import frames
from lapa_jax.plots.curves import COLOURS

Lines = Mapping[str, Sequence[tuple[int, float]]]
"""{name of a setting: (gap in frames, figure), ...}"""


def draw(
    path, panels: Mapping[str, Lines], spread: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]],
    chosen: int | None,
) -> pathlib.Path:  # fmt: skip
    """Draws the image.

    Args:
      path: the PNG to write.
      panels: {figure: lines}. spread: {figure: {name of a setting: (gap, least, most) over the seeds, ...}}.
      chosen: the recommended gap; None: none is.

    Returns:
      `path`.
    """
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(3.0 * len(panels), 2.9), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            ticks = sorted({gap for points in lines.values() for gap, _ in points})
            if chosen is not None:
                axes.axvline(chosen, color=frames.MUTED, lw=0.8, ls=":")
            for (name, points), colour in zip(lines.items(), COLOURS * len(lines)):
                axes.plot(*zip(*sorted(points)), color=colour, marker="o", ms=3, lw=1.2, label=name)
                for gap, least, most in spread.get(title, {}).get(name, ()):
                    axes.plot([gap, gap], [least, most], color=colour, lw=1)
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(gap) for gap in ticks])
            axes.minorticks_off()
            axes.set_title(title, loc="left")
            axes.set_xlabel("gap, frames")
        handles, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(handles, names, loc="outside upper left", ncols=min(len(names), 4), frameon=False)
        return frames.save(figure, path)
