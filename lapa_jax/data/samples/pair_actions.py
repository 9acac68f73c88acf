"""The actions of a few pairs: which episodes give theirs, and how they are scaled for a loss.

The action of a pair is what the probe of evaluation regresses too: the sum of the actions between its two frames.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.reading import Column
from lapa_jax.data.shards.step_shards import StepShards

PAIR_ACTION, MASK = "pair_action", "pair_action_mask"
"""The field of samples, also the name of its statistics, and the field that says which of its numbers count."""
ENOUGH = 2048
"""Pairs that tell mean and standard deviation well enough."""


class Emphasis(NamedTuple):
    """Samples int64[n] that training draws besides their turn, as `weight` of all draws."""

    samples: np.ndarray
    weight: float


def net_actions(column: Column, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """f32[B, A]: for each pair of steps int[B] the sum of the actions first .. second - 1, in the column's units."""
    rows = np.empty((len(first), column.width), np.float32)
    for row, a, b in zip(rows, first.tolist(), second.tolist()):
        row[:] = column.take(np.arange(a, b)).sum(axis=0)
    return rows


def labelled_episodes(ids: Sequence[bytes], usable: np.ndarray, share: float) -> np.ndarray:
    """bool[E]: a share of the usable episodes, rounded up, in the order of a checksum of their ids. So a smaller share
    lies within a larger one, and neither seed nor machine matters.

    Args: ids: of the episodes. usable: bool[E], those that have a pair with an action.
    """
    order = np.argsort(np.array([xxhash.xxh3_64_intdigest(bytes(each)) for each in ids], np.uint64), kind="stable")
    order = order[usable[order]]
    chosen = np.zeros(len(ids), bool)
    # Without the tiny number 0.1 of 30 episodes would be 4: 0.1 * 30 is 3.0000000000000004.
    chosen[order[: math.ceil(share * len(order) - 1e-9)]] = True
    return chosen


class PairActions:
    """The actions of the pairs of a source, those of a share of its episodes.

    Args:
      shards: the steps; they may have no actions.
      first, second: int[pairs], the steps of each pair. episodes: int[pairs], the number of its episode.
      share: of the episodes that have a pair with an action. draws: least share of the drawn pairs that have one.
      summary: "mean" and "std" to scale by, as `summary` of the training data's; None: those of the pairs themselves.

    Attributes:
      width: A, numbers of an action; 0 where the shards have none.
      usable, labelled: bool[E], episodes that have a pair with an action, and those whose actions are used.
      pairs: how many pairs have one of these. summary: as given or made, None where there is no such pair.
      emphasis: the pairs that are drawn more often, so that few labels are in every batch; None: enough without.
    """

    def __init__(
        self, shards: StepShards, first: np.ndarray, second: np.ndarray, episodes: np.ndarray, share: float,
        draws: float, summary: Mapping | None = None,
    ):  # fmt: skip
        self._column = Column(shards, "action") if "action" in shards.features else None
        self.width = 0 if self._column is None else self._column.width
        count = len(shards.episodes)
        self.usable = self.labelled = np.zeros(count, bool)
        self.pairs, self.summary, self.emphasis = 0, None, None
        if self._column is None:
            return
        # before[i]: actions before step i. A pair has an action where all steps between its frames have one.
        before = np.concatenate([[0], np.cumsum(self._column.present)])
        whole = before[second] - before[first] == second - first
        self.usable = np.bincount(episodes[whole], minlength=count) > 0
        self.labelled = labelled_episodes(shards.episodes.ids, self.usable, share)
        chosen = np.flatnonzero(whole & self.labelled[episodes])
        self.pairs = len(chosen)
        if not self.pairs:
            return
        self.summary = self._summarize(first[chosen], second[chosen]) if summary is None else dict(summary)
        if len(self.summary["mean"]) != self.width:
            raise UserError(f"{shards.folder} has actions of {self.width} numbers, and the run was trained on pairs "
                            f"with {len(self.summary['mean'])}: give data of the same kind")  # fmt: skip
        self._mean, self._std = (np.array(self.summary[name], np.float64) for name in ("mean", "std"))
        # A number that is always the same has nothing to learn from, and no scale.
        self._varies = self._std > 1e-8 * (1 + np.abs(self._mean))
        had = self.pairs / len(first)
        if had < draws:
            self.emphasis = Emphasis(chosen, (draws - had) / (1 - had))

    def _summarize(self, first: np.ndarray, second: np.ndarray) -> dict:
        some = np.unique(np.linspace(0, len(first) - 1, min(ENOUGH, len(first))).astype(int))
        actions = net_actions(self._column, first[some], second[some]).astype(np.float64)
        return {"count": len(some), "mean": actions.mean(0).tolist(), "std": actions.std(0).tolist()}

    def batch(self, first: np.ndarray, second: np.ndarray, episodes: np.ndarray) -> dict[str, np.ndarray]:
        """{"pair_action": f32[B, A], in standard deviations from the mean, "pair_action_mask": f32[B, A]}: the mask is
        1 for numbers that vary, of pairs that have an action that is used. All else is zeros."""
        actions, mask = (np.zeros((len(first), self.width), np.float32) for _ in range(2))
        rows = [i for i in np.flatnonzero(self.labelled[episodes]).tolist()
                if self._column.present[first[i] : second[i]].all()]  # fmt: skip
        if rows:
            scaled = (net_actions(self._column, first[rows], second[rows]) - self._mean) / self._std.clip(1e-30)
            actions[rows], mask[rows] = np.where(self._varies, scaled, 0), self._varies
        return {PAIR_ACTION: actions, MASK: mask}


def describe(source) -> list[str]:
    """Lines for the log: whose actions are used, for each data set of a source of training pairs.

    Raises:
      UserError: none of them has an action, although a share above 0 is asked for.
    """
    if PAIR_ACTION not in source.fields:
        return []
    parts = getattr(source, "sources", None) or {next(iter(source.meta()["datasets"])): source}
    lines, shares = [], []
    for name, part in parts.items():
        actions: PairActions | None = part.pair_actions  # None: ready-made pairs, which never have one
        shares += [] if actions is None else [part.action_share]
        if actions is None or not actions.usable.any():
            lines.append(f"data set '{name}' has no pair with an action")
            continue
        used, usable = int(actions.labelled.sum()), int(actions.usable.sum())
        often = f"; {actions.emphasis.weight:.0%} of the draws are of these" if actions.emphasis else ""
        lines.append(f"data set '{name}': the actions of {used} of {usable} episodes are used "
                     f"({actions.pairs} of {len(part)} pairs{often})")  # fmt: skip
    # A share of 0 is asked for as a control: the same model and data, and no action.
    control = shares and not any(shares)
    if not control and not any(part.pair_actions and part.pair_actions.pairs for part in parts.values()):
        raise UserError(f"data.fields has '{PAIR_ACTION}', and no pair of {', '.join(map(repr, parts))} has an action: "
                        "give data with actions, a mixture with such a part, or take the field out and set "
                        "config.loss.action=0")  # fmt: skip
    return lines
