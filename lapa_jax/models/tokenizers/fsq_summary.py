"""What a data set's worth of `evaluate` arrays says about a tokenizer of action chunks. Plain numpy, on the host."""

from collections.abc import Sequence

import numpy as np

from lapa_jax.nn.quantizers.usage import dataset_usage


def summarize(
    arrays: dict[str, np.ndarray], *, levels: Sequence[int], moving: np.ndarray, grippers: Sequence[int],
    middle: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Scalars of a data set, over the steps that exist and the dimensions that move, in normalised units.

    Args:
      arrays: the arrays of `fsq.Model.evaluate`, over all examples (padding removed).
      levels: of the features of a code.
      moving: bool[A]: dimensions that are not constant. grippers: among them.
      middle: f[A]: a gripper is open on one side of it and closed on the other.

    Returns:
      "action_mse" and "action_mae", and per dimension "action_mse_<i>", "action_mae_<i>".
      "action_r2_<i>": 1 - squared error over that of the dimension's mean, where it varies; "action_r2", their mean.
      "gripper_accuracy": share of the steps at which the side is right; where the data has grippers.
      usage of the codebook as of `dataset_usage`; "level_utilization": share of the levels of the features that occur,
      the mean over the features; "bits_per_chunk" and "tokens_per_chunk".
    """
    real = arrays["action_mask"] > 0
    there = np.broadcast_to(moving, (len(real), len(moving))) & (arrays.get("action_dims", moving) > 0)
    there = np.broadcast_to(there[:, None], arrays["action"].shape)[real]
    action, guess = (arrays[name][real].astype(np.float64) for name in ("action", "reconstruction"))
    codes, size = arrays["codes"], int(np.prod(levels))
    result = _errors(action, guess, there)
    if any(there[:, i].any() for i in grippers):
        right = ((action > middle) == (guess > middle))[:, list(grippers)]
        result["gripper_accuracy"] = float(right[there[:, list(grippers)]].mean())
    return {
        **result,
        **dataset_usage(codes, size),
        "level_utilization": level_utilization(codes, levels),
        "tokens_per_chunk": float(codes.shape[1]),
        "bits_per_chunk": float(codes.shape[1] * np.log2(size)),
    }


def level_utilization(codes: np.ndarray, levels: Sequence[int]) -> float:
    """The share of its levels that a feature takes anywhere in codes int[M, N], averaged over the features."""
    used, rest = [], np.asarray(codes)
    for level in levels:
        used.append(len(np.unique(rest % level)) / level)
        rest = rest // level
    return float(np.mean(used))


def _errors(action: np.ndarray, guess: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """Of steps f64[M, A]; `there` bool[M, A] marks what counts."""
    squared, absolute = np.square(action - guess), np.abs(action - guess)
    result = {"action_mse": float(squared[there].mean()), "action_mae": float(absolute[there].mean())}
    scores = {}
    for i, rows in enumerate(there.T):
        if not rows.any():
            continue
        error, variance = float(squared[rows, i].mean()), float(action[rows, i].var())
        result |= {f"action_mse_{i}": error, f"action_mae_{i}": float(absolute[rows, i].mean())}
        if variance > 1e-12:
            scores[f"action_r2_{i}"] = 1 - error / variance
    return result | scores | ({"action_r2": float(np.mean(list(scores.values())))} if scores else {})
