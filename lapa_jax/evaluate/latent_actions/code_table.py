"""What each code position says about the action, and what all say together. The report's table. Plain numpy."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.vq import kmeans2

from lapa_jax.models.probe import probe_codes

CLUSTERS, SHUFFLES = 16, 20
WHOLE = "all"
COLUMNS = {"information (bits)": "bits", "of it by chance": "bits_by_chance", "NMI": "nmi", "adjusted": "nmi_adjusted",
           "cluster right": "lookup", "by the most frequent": "majority", "variance left": "variance_left",
           "R² alone": "r2_alone", "R² lost without it": "r2_lost"}  # fmt: skip
"""Heads of the columns, and the keys of `metrics.json`."""


def measure(codes: np.ndarray, action: np.ndarray, episode: np.ndarray, codebook_size: int) -> dict[str, dict]:
    """{"0", "1", ... and "all": {key of `COLUMNS`: value}}; empty where the probe has no score.

    Args:
      codes: int [M, N], values below `codebook_size`. action: [M, A]. episode: int [M], as of `probe`.
    """
    everything = probe_codes(codes, action, episode, codebook_size)
    if everything is None:
        return {}
    whole, fitted, positions = everything.r2, ~everything.scored, list(range(codes.shape[1]))

    def r2(some: list[int]) -> float:
        return probe_codes(codes[:, some], action, episode, codebook_size).r2 if some else 0.0

    scaled = standardize(action)
    # Few actions of a discrete robot make few clusters.
    count = min(CLUSTERS, len(np.unique(scaled, axis=0)))
    clusters = kmeans2(scaled, count, minit="++", rng=np.random.default_rng(0))[1]
    sequences = np.unique(codes, axis=0, return_inverse=True)[1].ravel()
    table = {}
    for i in positions:
        lost = whole - r2([j for j in positions if j != i])
        table[str(i)] = {**_of_groups(codes[:, i], clusters, scaled, fitted), "r2_alone": r2([i]), "r2_lost": lost}
    table[WHOLE] = {**_of_groups(sequences, clusters, scaled, fitted), "r2_alone": whole, "r2_lost": whole}
    return table


def _of_groups(
    groups: np.ndarray, clusters: np.ndarray, scaled: np.ndarray, fitted: np.ndarray
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    bits = information(groups, clusters)
    chance = float(np.mean([information(groups, rng.permutation(clusters)) for _ in range(SHUFFLES)]))
    mean = (entropy(groups) + entropy(clusters)) / 2
    right, by_majority = lookup(groups, clusters, fitted)
    return {"bits": bits, "bits_by_chance": chance, "nmi": bits / mean if mean > 0 else 0.0,
            "nmi_adjusted": (bits - chance) / (mean - chance) if mean - chance > 1e-9 else 0.0,
            "lookup": right, "majority": by_majority, "variance_left": variance_left(groups, scaled)}  # fmt: skip


def standardize(action: np.ndarray) -> np.ndarray:
    """Actions f64 [M, A] in standard deviations from their mean; numbers that do not vary are left out."""
    x = action.astype(np.float64)
    std = x.std(0)
    varies = std > 1e-8
    return (x[:, varies] - x[:, varies].mean(0)) / std[varies]


def entropy(labels: np.ndarray) -> float:
    """Of labels int [M], in bits."""
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def information(a: np.ndarray, b: np.ndarray) -> float:
    """The mutual information of two labellings int [M], in bits, by how often each pair of labels occurs."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / independent[seen])).sum())


def lookup(groups: np.ndarray, clusters: np.ndarray, fitted: np.ndarray) -> tuple[float, float]:
    """Shares of the rows that are not `fitted`, bool [M], whose cluster is guessed: as the most frequent one of the
    fitted rows of the same group, int [M], and as the most frequent one of all fitted rows. The latter also stands for
    groups that no fitted row has."""
    count = np.zeros((groups.max() + 1, clusters.max() + 1))
    np.add.at(count, (groups[fitted], clusters[fitted]), 1)
    frequent = count.sum(0).argmax()
    guess = np.where(count.any(1), count.argmax(1), frequent)[groups]
    rest = ~fitted
    return float((guess == clusters)[rest].mean()), float((clusters[rest] == frequent).mean())


def variance_left(groups: np.ndarray, scaled: np.ndarray) -> float:
    """Share of the variance of rows f64 [M, A] that is left among those of the same group, int [M]; NaN where each has
    a group of its own. Both variances are divided by their degrees of freedom, so that random groups leave 1."""
    count = np.bincount(groups)
    used = int((count > 0).sum())
    if used == len(scaled):
        return float("nan")
    means = np.stack([np.bincount(groups, column) for column in scaled.T], 1) / np.maximum(count, 1)[:, None]
    within = np.square(scaled - means[groups]).sum() / (len(scaled) - used)
    return float(within / (np.square(scaled - scaled.mean(0)).sum() / (len(scaled) - 1)))


def metrics(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of all positions together as metrics; none of an empty table."""
    names = {"bits": "bits", "nmi": "nmi_adjusted", "lookup": "lookup", "majority": "majority",
             "variance_left": "variance_left"}  # fmt: skip
    return {f"code_action_{name}": table[WHOLE][key] for name, key in names.items()} if table else {}


def as_rows(table: Mapping[str, Mapping[str, float | None]]) -> Sequence[tuple[str, ...]]:
    """The head and the rows of the report's table."""
    rows = [("code position", *COLUMNS)]
    rows += [(name, *("" if (value := row[key]) is None else f"{value:.2f}" for key in COLUMNS.values()))
             for name, row in table.items()]  # fmt: skip
    return rows


TEXT = (
    f"Actions are grouped by k-means, {CLUSTERS} clusters of net actions in standard deviations. Information: how many "
    "bits of the cluster a code tells; by chance: how many it seems to tell when the clusters are shuffled, which is "
    "much where many combinations of codes occur. NMI: the information as a share of the mean entropy of codes and "
    "clusters; adjusted: the same beyond chance, 0 for codes that say nothing and 1 for codes that are the clusters. "
    "Cluster right: how often the cluster of a pair is the most frequent one of its code, counted in other episodes; "
    "by the most frequent: how often it is the most frequent cluster of all. "
    "Variance left: share of the actions' variance among pairs with the same code, 1 for codes that say nothing. R² "
    "alone: of the linear probe from this position; lost without it: what the other positions cannot say. Positions "
    "that each say something of their own have R² alone that add up to that of all."
)
