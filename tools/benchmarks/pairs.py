"""Ratios of what was measured in turns, with an interval that assumes nothing about their distribution.

What slows a machine down slows both sides of a pair; figures of two runs tell of the machine.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Ratio(NamedTuple):
    """The median of paired ratios and the interval that holds the true one with `CONFIDENCE`. pairs: how many."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(values: Sequence[float]) -> Ratio:
    """The median and the interval between the k-th smallest and largest value (David and Nagaraja, Order Statistics,
    7.1): the median lies outside with the probability that fewer than k of n fair coins show heads, twice. With fewer
    than six values the interval is all of them, which then holds the median with less confidence."""
    ordered = np.sort(np.asarray(values, float))
    count = len(ordered)
    outside = 2 * np.cumsum([math.comb(count, heads) for heads in range(count // 2)]) / 2**count
    k = max(1, int(np.sum(outside <= 1 - CONFIDENCE)))
    return Ratio(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[count - k]), count)


def in_turns(
    first: Callable[[], object], second: Callable[[], object], least: int, most: int,
    decided: Callable[[list], bool] = lambda pairs: True,
) -> list[tuple]:  # fmt: skip
    """Pairs of what two functions give, called in the order A B, B A, A B ..., so that a drift hits both sides.

    Args:
      least, most: how many pairs. decided: whether the pairs so far are enough, asked from `least` on.
    """
    pairs: list[tuple] = []
    while len(pairs) < least or (len(pairs) < most and not decided(pairs)):
        if len(pairs) % 2:
            later = second()
            pairs.append((first(), later))
        else:
            pairs.append((first(), second()))
    return pairs
