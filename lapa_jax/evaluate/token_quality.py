"""What tokens of feature vectors are worth beside their reconstruction: how much shorter they are than the features,
and how well they still tell episodes apart. Plain numpy."""

from collections.abc import Sequence

import numpy as np

FLOAT_BITS = 32
"""Bits of a stored feature."""


def compression(features: np.ndarray, codes: np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
    """How much shorter tokens are than the features that they stand for.

    Args:
      features: f32[N, F]. Those that do not vary cost nothing, as any coder would leave them out.
      codes: int[N, P]. sizes: of the P codebooks.

    Returns:
      "bits_per_row": log2 of the codebooks' sizes, summed. "entropy_per_row": the entropies of the P codes, summed, in
      bits: what a coder that knows how often each code occurs needs on average (Shannon 1948); at most the former.
      "compression_ratio": 32 bits for each feature that varies, divided by "bits_per_row".
    """
    bits = float(np.sum(np.log2(sizes)))
    varying = int(np.sum(features.min(0) < features.max(0)))
    shares = [np.bincount(column) / len(codes) for column in codes.T]
    entropy = -sum(float(np.sum(share[share > 0] * np.log2(share[share > 0]))) for share in shares)
    return {"bits_per_row": bits, "entropy_per_row": entropy, "compression_ratio": FLOAT_BITS * varying / bits}


def discriminability(
    features: np.ndarray, codes: np.ndarray, episode: np.ndarray, step: np.ndarray
) -> dict[str, float]:
    """How much of what tells episodes apart in the features is still in the tokens.

    The rows of an episode are halved by time. A row of the second half belongs to the episode whose mean over the first
    half is the nearest, see `_nearest_mean`: once by the features, once by the codes, one-hot. Features have no labels
    of their own, and rows of one episode belong together whatever they measure.

    Args:
      features: f32[N, F]. codes: int[N, P]. episode, step: int[N], of each row. An episode with a single row does not
        count.

    Returns:
      "episode_accuracy_features" and "episode_accuracy_codes": the share of rows that are given the right episode;
      "episode_accuracy_chance": one of the number of episodes; "discriminability": what the codes have above chance,
      divided by what the features have, where these have anything. Nothing where fewer than two episodes count.
    """
    _, labels, counts = np.unique(episode, return_inverse=True, return_counts=True)
    order = np.lexsort((step, labels))
    # The rank of each row within its episode; the first half are ranks below half of its rows.
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    counted = counts[labels] > 1
    first = counted & (rank < counts[labels] // 2)
    second = counted & ~first
    if (counts > 1).sum() < 2:
        return {}
    one_hot = np.concatenate([np.eye(column.max() + 1)[column] for column in codes.T], axis=1)
    chance = 1 / (counts > 1).sum()
    of_features, of_codes = (_nearest_mean(rows, labels, first, second) for rows in (features, one_hot))
    result = {"episode_accuracy_features": of_features, "episode_accuracy_codes": of_codes,
              "episode_accuracy_chance": float(chance)}  # fmt: skip
    if of_features > chance:
        result["discriminability"] = (of_codes - chance) / (of_features - chance)
    return result


def _nearest_mean(rows: np.ndarray, labels: np.ndarray, fitted: np.ndarray, scored: np.ndarray) -> float:
    """The share of the scored rows whose nearest class mean of the fitted rows is that of their class.

    Distances are in units of the variance within classes (linear discriminant analysis with a diagonal covariance),
    shrunk by a hundredth of the whole variance, since a code may never change within an episode.
    """
    rows = rows.astype(np.float64)
    classes, of_row = np.unique(labels[fitted], return_inverse=True)
    means = np.stack([rows[fitted][of_row == c].mean(0) for c in range(len(classes))])
    whole = rows[fitted].var(0)
    variance = np.square(rows[fitted] - means[of_row]).mean(0) + 0.01 * whole
    weights = np.where(whole > 0, 1 / np.where(whole > 0, variance, 1), 0)
    # |x - m|^2 without |x|^2, which is the same for all means.
    distances = means**2 @ weights - 2 * (rows[scored] * weights) @ means.T
    return float(np.mean(classes[distances.argmin(1)] == labels[scored]))
