"""Dimensions with values far beyond the others: which they are under a scaling, and what can be done about them.

A loss on normalised numbers of a thousand is a million; such a dimension decides the training, and nothing says so.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.statistics import FAR, far, values

LIMIT = 20.0
"""The largest normalised value that needs no word."""
FREE = ("none", "openvla")
"""Modes whose values are what the user or a released model made of them."""


class FarValues(NamedTuple):
    """One dimension with values far out.

    Attributes:
      number: of the dimension. text: what it is like, in words. largest: the size of its largest normalised value.
    """

    number: int
    text: str
    largest: float


def far_values(summary: Mapping, mode: str, names: Sequence[str], limit: float = LIMIT) -> list[FarValues]:
    """The dimensions of a column whose normalised values exceed `limit`, and those that are scaled otherwise for it.

    Args:
      summary: the column's statistics. mode: of normalisation. names: of the dimensions. limit: of normalised values.
    """
    if mode in FREE or mode == "min_max":
        return []
    low, high, q01, q99 = values(summary, "min", "max", "q01", "q99")
    normalizer, by_range = Normalizer(summary, mode), far(summary)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.maximum(high - normalizer.offset, normalizer.offset - low) / normalizer.scale
        times = np.maximum(high - (q01 + q99) / 2, (q01 + q99) / 2 - low) / ((q99 - q01) / 2)
    dimensions = []
    for i in np.flatnonzero(normalizer.scale > 0).tolist():
        most, all_of_them = f"{q01[i]:.4g} to {q99[i]:.4g}", f"{low[i]:.4g} to {high[i]:.4g}"
        about = f"{names[i]}: 98 % of its values lie in {most}, all in {all_of_them}"
        if mode == "q01_q99_clip":
            if times[i] > limit:
                lost = f"{100 * _beyond(summary, i, q01[i], q99[i]):.2g} % of them are cut off"
                dimensions.append(FarValues(i, f"{about}; {lost}", 1.0))
        elif reach[i] > limit:
            made = f"data.normalize={mode} makes values of {reach[i]:.0f} of it"
            dimensions.append(FarValues(i, f"{about}; {made}", reach[i]))
        elif by_range[i]:
            share = (q99[i] - q01[i]) / (high[i] - low[i])
            why = f"{times[i]:.0f} times as far, more than {FAR:.0f}: it is scaled by its whole range"
            dimensions.append(FarValues(i, f"{about}, {why}, of which these 98 % take {share:.2g}", reach[i]))
    return dimensions


def choices(mode: str, largest: float) -> str:
    """What can be done about values far out, as a sentence for the user."""
    others = {"min_max": "scales by the whole range", "q01_q99_clip": "cuts off what lies beyond the percentiles"}
    words = [f"data.normalize={name} {what}" for name, what in others.items() if name != mode]
    words.append("tools/convert.py with --action or --state leaves dimensions out (name[0:6])")
    if largest > LIMIT:
        words.append(f"data.max_normalized={np.ceil(largest):.0f} takes them as they are")
    return ", ".join(words)


def _beyond(summary: Mapping, i: int, low: float, high: float) -> float:
    """The share of a dimension's rows outside of low to high, from its quantiles."""
    if "quantiles" not in summary:
        return 0.02
    edges = values(summary, "quantiles")[0][i]
    ranks = np.linspace(0, 1, len(edges))
    return float(np.interp(low, edges, ranks) + 1 - np.interp(high, edges, ranks))
