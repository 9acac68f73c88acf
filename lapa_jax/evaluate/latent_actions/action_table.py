"""What can be read of the action: each number, by phase of the episode, by how much moves. The report's table."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.models.probe import mlp_probe_codes, probe_codes, probe_delta, r2_score

ALL = "all"
THIRDS = ("first third of the episode", "middle third", "last third")
QUARTERS = ("least motion, a quarter", "second quarter", "third quarter", "most motion, a quarter")
Rows = Mapping[str, np.ndarray]
"""{name of a group of pairs: bool[M]}."""
READERS = {"codes, linear": "codes", "codes, small MLP": "mlp", "deltas, linear": "delta",
           "head of few actions": "head", "reference": "reference"}  # fmt: skip
"""Heads of the columns, and the keys of `metrics.json`."""


def names_of(source) -> list[str]:
    """The names of the action's numbers, of the first data set; their indices where it names none."""
    part = next(iter((getattr(source, "sources", None) or {"": source}).values()))
    feature = part.shards.features["action"]
    return dimension_names(feature, feature["shape"][0])


def groups(arrays: Mapping[str, np.ndarray], source) -> Rows:
    """Groups of pairs: all; by the third of the episode in which they begin; by the length of their net action.

    Args:
      arrays: of pairs, some of episodes with an odd number: "episode_id", "step", "net_action", of several data sets
        "dataset_id".
      source: that they were read from.
    """
    parts = list((getattr(source, "sources", None) or {"": source}).values())
    which = arrays.get("dataset_id", np.zeros(len(arrays["step"]), np.int64))
    count = np.empty(len(which))  # pairs of each row's episode
    for number, part in enumerate(parts):
        of_part = which == number
        count[of_part] = (part.shards.episodes.lengths - part.gaps)[arrays["episode_id"][of_part]]
    third = np.minimum(3 * arrays["step"] / np.maximum(count, 1), 2).astype(int)
    # In standard deviations: metres and gripper widths cannot be added. Of the pairs that are scored, so that a reader
    # of all pairs and one of these have the same quarters.
    action, scored = arrays["net_action"].astype(np.float64), arrays["episode_id"] % 2 == 1
    std = action[scored].std(0)
    length = np.linalg.norm(action / np.where(std > 0, std, 1), axis=1)
    quarter = np.searchsorted(np.quantile(length[scored], [0.25, 0.5, 0.75]), length, side="left")
    return {ALL: np.ones(len(which), bool), **{name: third == i for i, name in enumerate(THIRDS)},
            **{name: quarter == i for i, name in enumerate(QUARTERS)}}  # fmt: skip


def scores(prediction: np.ndarray, action: np.ndarray, rows: Rows) -> dict[str, list[float]]:
    """{group: R² of each number of the action [M, A]} within the group; NaN where a number does not vary there."""
    action = action.astype(np.float64)
    return {name: r2_score(prediction[chosen], action[chosen]).tolist() if chosen.any() else [np.nan] * action.shape[1]
            for name, chosen in rows.items()}  # fmt: skip


def measure(
    arrays: Mapping[str, np.ndarray], source, codebook_size: int | None,
    reference: Mapping[str, Sequence[float]] | None,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    """{reader: {group: R² of each number of the action}}, by the keys of `READERS`; empty without a probe.

    All are scored on pairs of episodes with an odd number, and learned from those with an even one; the head of few
    actions, where there is one, has learned from other episodes.

    Args:
      arrays: of `evaluate`, with "net_action", "episode_id" and "step". source: as of `groups`.
      codebook_size: K; None where there are no codes, and no readers of them.
      reference: `scores` of the reference; None where it was not trained.
    """
    action, episode = arrays["net_action"], arrays["episode_id"]
    probes = {"delta": probe_delta(arrays["delta"], action, episode)}
    if codebook_size is not None:
        probes = {"codes": probe_codes(arrays["codes"], action, episode, codebook_size),
                  "mlp": mlp_probe_codes(arrays["codes"], action, episode, codebook_size), **probes}  # fmt: skip
    if probes["delta"] is None:
        return {}
    rows = {name: chosen & probes["delta"].scored for name, chosen in groups(arrays, source).items()}
    table = {name: scores(result.prediction, action, rows) for name, result in probes.items() if result is not None}
    if "action_prediction" in arrays and (mask := arrays["pair_action_mask"] > 0).any():
        with_action = {name: chosen & mask.any(1) for name, chosen in rows.items()}
        table["head"] = scores(arrays["action_prediction"], arrays["pair_action"], with_action)
    return table if reference is None else {**table, "reference": dict(reference)}


def mean(values: Sequence[float]) -> float:
    """Over the numbers that have a score; NaN without any."""
    finite = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def as_rows(table: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The head and the rows of the report's table: all pairs, number by number, then the mean of each group."""
    shown = {head: table[key] for head, key in READERS.items() if key in table}
    rows = [("pairs", "number of the action", *shown)]
    rows += [(ALL, name, *(_cell(by_group[ALL][i]) for by_group in shown.values())) for i, name in enumerate(names)]
    rows += [(group, "mean", *(_cell(mean(by_group[group])) for by_group in shown.values()))
             for group in (ALL, *THIRDS, *QUARTERS)]  # fmt: skip
    return tuple(rows)


def _cell(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2f}"


TEXT = (
    "R², of readers that learn from the held-out episodes with an even number and are scored on the others: a ridge on "
    "one-hot codes, a small network on the same (what codes say only together), a ridge on the deltas before they are "
    "rounded, and the reference, the same encoder trained on true actions, where it was trained. Thirds are those of "
    "the episode in which a pair begins; motion is the length of the net action in standard deviations. Within a group "
    "R² is relative to what varies in that group: where little moves there is little to say, and it can be far below 0."
)
