"""Curves that zoom: the panels of `plots.curves` in a web page, drawn by uPlot, which lies in the page with them."""

import pathlib

import numpy as np

from lapa_jax.core import escape
from lapa_jax.plots.curves import COLOURS, Panels, colours

FOLDER = pathlib.Path(__file__).parent
UPLOT = FOLDER / "vendor" / "uplot"
MOST = 2000
"""Points of a line at most; of longer ones the least and the largest value of each stretch are kept."""


def html(panels: Panels, still: str) -> str:
    """The curves as a part of a page that ends with `scripts`.

    Args:
      panels: see `curves.Panels`.
      still: HTML of their image, for readers without scripts and for paper.
    """
    numbers = colours(panels)
    described = [{"title": escape.one_line(title),
                  "lines": [{"color": numbers[name] % len(COLOURS), **_line(name, points)}
                            for name, points in lines.items()]} for title, lines in panels.items()]  # fmt: skip
    data = f'<script type="application/json">{escape.script(described)}</script>'
    return f'<div class="curves"><div class="still">{still}</div>{data}</div>'


def style() -> str:
    """CSS that pages with curves need before their own."""
    return (UPLOT / "uPlot.min.css").read_text(encoding="utf-8")


def scripts() -> str:
    """The end of the body of a page with curves: uPlot, with its licence's notice, and what draws with it."""
    files = (UPLOT / "uPlot.iife.min.js", FOLDER / "curves.js")
    notice = "<!-- uPlot: MIT License, Copyright (c) 2022 Leon Sorokin -->"
    return notice + "".join(f"<script>{file.read_text(encoding='utf-8')}</script>" for file in files)


def _line(name: str, points: np.ndarray) -> dict:
    steps, first = np.unique(points[:, 0], return_index=True)
    values = points[first, 1]
    if len(steps) > MOST:
        kept = _extremes(values)
        steps, values = steps[kept], values[kept]
    # Six digits are more than a screen shows, and half of the page's size.
    return {"name": escape.one_line(name), "steps": steps.astype(int).tolist(),
            "values": [float(f"{value:.6g}") for value in values]}  # fmt: skip


def _extremes(values: np.ndarray) -> np.ndarray:
    """Indices of the first and the last value, and of the least and the largest of each of `MOST / 2` stretches:
    spikes stay where a mean would hide them."""
    ends = np.linspace(0, len(values), MOST // 2 + 1).astype(int)
    spans = [(start, values[start:end]) for start, end in zip(ends, ends[1:])]
    kept = [start + pick(part) for start, part in spans for pick in (np.argmin, np.argmax)]
    return np.unique([0, *kept, len(values) - 1])
