"""Metrics of predicted actions over a data set. Plain numpy, on the host."""

from collections.abc import Mapping, Sequence

import numpy as np


def summarize(arrays: Mapping[str, np.ndarray], binary: Sequence[int]) -> dict[str, float]:
    """Scalars of normalised actions f32 [..., A]; entries of weight 0 do not count.

    Args:
      arrays: "prediction", "action" and "weight"; optionally "loss" and, of bins, "near" bool [..., A].
      binary: dimensions of two values, -1 and 1.

    Returns:
      For every dimension that counts those of `dimension`, "action_mse_<i>" and so on, and under the bare name their
      means; of "action_p99_error" and "action_max_error" not the means, but those of all dimensions together.
      "gripper_accuracy" of dimensions of two values: share on the right side of 0. "bin_accuracy" of the others:
      share whose bin is right or next to it. "loss": the mean.
    """
    weighted = arrays["weight"] > 0
    counts = [i for i in range(weighted.shape[-1]) if weighted[..., i].any()]
    column = lambda name, i: arrays[name][..., i][weighted[..., i]]  # noqa: E731
    per_dimension = {i: dimension(column("prediction", i), column("action", i)) for i in counts}
    # Means over the dimensions that have a metric: one that does not vary has no r2, and must not make the mean NaN.
    metrics = {name: float(np.mean([values[name] for values in per_dimension.values() if name in values]))
               for name in dict.fromkeys(name for values in per_dimension.values() for name in values)}  # fmt: skip
    if counts:
        metrics |= tail(np.concatenate([column("prediction", i) - column("action", i) for i in counts]))
    metrics |= {f"{name}_{i}": value for i, values in per_dimension.items() for name, value in values.items()}
    if two := [i for i in counts if i in binary]:
        right = [(column("prediction", i) > 0) == (column("action", i) > 0) for i in two]
        metrics["gripper_accuracy"] = float(np.mean([steps.mean() for steps in right]))
    if "near" in arrays and (fine := [i for i in counts if i not in binary]):
        metrics["bin_accuracy"] = float(np.mean([column("near", i).mean() for i in fine]))
    if "loss" in arrays and counts:
        metrics["loss"] = float(arrays["loss"][weighted].mean())
    return metrics


def errors(prediction: np.ndarray, action: np.ndarray) -> dict[str, float]:
    """Of rows f32 [N, A]: "action_mse", "action_mae" and those of `tail` over all dimensions, and "action_r2", see
    `r2`."""
    error = prediction - action
    return {"action_mse": float((error**2).mean()), "action_mae": float(np.abs(error).mean()), **tail(error),
            "action_r2": r2(prediction, action)}  # fmt: skip


def tail(error: np.ndarray) -> dict[str, float]:
    """Of errors f32 [...]: "action_p99_error", which 1 % of their sizes exceed, and the largest, "action_max_error".

    A robot is hurt by its worst action, which a mean over a thousand good ones does not show.
    """
    size = np.abs(error)
    return {"action_p99_error": float(np.percentile(size, 99)), "action_max_error": float(size.max())}


def r2(prediction: np.ndarray, action: np.ndarray) -> float:
    """Mean coefficient of determination of rows f32 [N, A] over the dimensions that vary; NaN where none does."""
    spread = np.square(action - action.mean(0)).mean(0)
    # Below this the variance is rounding of float32, and r2 would divide by noise.
    varies = spread > 1e-8
    error = np.square(prediction - action).mean(0)
    return float((1 - error[varies] / spread[varies]).mean()) if varies.any() else float("nan")


def dimension(prediction: np.ndarray, action: np.ndarray) -> dict[str, float]:
    """Of numbers f32 [N]: "action_mse", "action_mae" and those of `tail`, and where the actions vary "action_r2",
    1 - squared error over that of always giving their mean, and "action_distance", see `distance`."""
    # float32 sums over a million steps lose the digits that r2 of a nearly perfect prediction is made of.
    prediction, action = prediction.astype(np.float64), action.astype(np.float64)
    mse = float(np.square(prediction - action).mean())
    metrics = {"action_mse": mse, "action_mae": float(np.abs(prediction - action).mean()), **tail(prediction - action)}
    # Of a dimension that does not vary r2 and distance would divide by zero: it has neither.
    if (variance := float(action.var())) > 1e-8:
        metrics |= {"action_r2": 1 - mse / variance, "action_distance": distance(prediction, action)}
    return metrics


def distance(prediction: np.ndarray, action: np.ndarray) -> float:
    """How far apart the distributions of numbers [N] are: Wasserstein's distance, divided by
    the actions' standard deviation.

    0 for the same numbers in any order; 0.8 for always giving the mean of numbers with a normal distribution.
    """
    # In one dimension Wasserstein's distance pairs the sorted values, so that no transport problem has to be solved.
    prediction, action = np.sort(prediction.astype(np.float64)), np.sort(action.astype(np.float64))
    return float(np.abs(prediction - action).mean() / action.std())
