"""Success rates of episodes with their intervals. NumPy and the standard library only."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Z = 1.959963984540054
"""The normal quantile of a two-sided interval of 95 %."""


def wilson(successes: int, trials: int, z: float = Z) -> tuple[float, float]:
    """The score interval of a rate (Wilson 1927): those p of which `successes` is no more than z deviations away.

    Unlike p ± z sqrt(p (1 - p) / n) it stays within [0, 1] and is no single point at 0 or n successes.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials}")
    rate, share = successes / trials, z * z / trials
    centre = (rate + share / 2) / (1 + share)
    half = z / (1 + share) * math.sqrt(rate * (1 - rate) / trials + share / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def of_counts(successes: int, episodes: int) -> dict:
    """{"episodes", "successes", "success_rate", "low", "high"}; the last two are the ends of the 95 % interval."""
    (low, high), rate = wilson(successes, episodes), successes / episodes
    return {"episodes": episodes, "successes": successes, "success_rate": rate, "low": low, "high": high}


def summarize(episodes: Sequence[Mapping]) -> dict:
    """`of_counts` of the lines of `rollouts.run`, and "steps", the mean number of successful episodes or None."""
    won = [episode["steps"] for episode in episodes if episode["success"]]
    return {**of_counts(len(won), len(episodes)), "steps": sum(won) / len(won) if won else None}


def by_task(episodes: Sequence[Mapping]) -> dict[str, dict]:
    """`summarize` of each task's episodes, tasks in order of appearance."""
    tasks = dict.fromkeys(episode["task"] for episode in episodes)
    return {task: summarize([e for e in episodes if e["task"] == task]) for task in tasks}


def paired_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], draws: int = 10_000
) -> tuple[float, float, float]:
    """How much more of the episodes one controller solves than another, with a 95 % interval, see `clustered_mean`.

    Args:
      first, second: of each training seed, whether each start was solved; both controllers have the same seeds and
        starts.

    Returns:
      The difference of the mean rates, and the ends of its interval.
    """
    if [len(one) for one in first] != [len(one) for one in second] or not first:
        raise ValueError(f"{[len(one) for one in first]} starts against {[len(one) for one in second]}")
    return clustered_mean([np.asarray(a, float) - np.asarray(b, float) for a, b in zip(first, second, strict=True)],
                          draws)  # fmt: skip


def clustered_mean(values: Sequence[Sequence[float]], draws: int = 10_000) -> tuple[float, float, float]:
    """The mean over training seeds of what each gives at each start, and the ends of its 95 % interval.

    The bootstrap is that of clusters (Efron and Tibshirani 1993, chapter 8): training seeds are drawn with
    replacement, then starts within each of them. With a single seed the interval says nothing about what another
    training would give.
    """
    rng, seeds = np.random.default_rng(0), [np.asarray(one, float) for one in values]
    count = len(seeds)
    # The mean of each seed's starts as drawn anew for each draw and each place that a seed may take in it.
    means = np.stack([one[rng.integers(len(one), size=(draws, count, len(one)))].mean(-1) for one in seeds])
    chosen = rng.integers(count, size=(1, draws, count))
    low, high = np.quantile(np.take_along_axis(means, chosen, axis=0)[0].mean(-1), [0.025, 0.975])
    return float(np.mean([one.mean() for one in seeds])), float(low), float(high)
