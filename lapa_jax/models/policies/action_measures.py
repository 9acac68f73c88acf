"""What predicted actions are worth over a data set. Plain numpy, on the host."""

from collections.abc import Mapping, Sequence

import numpy as np


def summarize(arrays: Mapping[str, np.ndarray], binary: Sequence[int]) -> dict[str, float]:
    """Scalars of actions f32 [..., A], normalised; what has the weight 0 does not count.

    Args:
      arrays: "prediction", "action" and "weight", and where they are known "loss" and of bins "near" bool [..., A].
      binary: dimensions of two values, -1 and 1.

    Returns:
      For every dimension that counts those of `dimension`, "action_mse_<i>" and so on, and under the bare name their
      means. "gripper_accuracy" of dimensions of two values: share on the right side of 0. "bin_accuracy" of the others:
      share whose bin is right or next to it. "loss": the mean.
    """
    there = arrays["weight"] > 0
    counts = [i for i in range(there.shape[-1]) if there[..., i].any()]
    column = lambda name, i: arrays[name][..., i][there[..., i]]  # noqa: E731
    told = {i: dimension(column("prediction", i), column("action", i)) for i in counts}
    found = {name: float(np.mean([of[name] for of in told.values() if name in of]))
             for name in dict.fromkeys(name for of in told.values() for name in of)}  # fmt: skip
    found |= {f"{name}_{i}": value for i, of in told.items() for name, value in of.items()}
    if two := [i for i in counts if i in binary]:
        right = [(column("prediction", i) > 0) == (column("action", i) > 0) for i in two]
        found["gripper_accuracy"] = float(np.mean([rows.mean() for rows in right]))
    if "near" in arrays and (fine := [i for i in counts if i not in binary]):
        found["bin_accuracy"] = float(np.mean([column("near", i).mean() for i in fine]))
    if "loss" in arrays and counts:
        found["loss"] = float(arrays["loss"][there].mean())
    return found


def errors(prediction: np.ndarray, action: np.ndarray) -> dict[str, float]:
    """Of rows f32 [N, A]: "action_mse", "action_mae" over all dimensions, and "action_r2", see `r2`."""
    error = prediction - action
    return {"action_mse": float((error**2).mean()), "action_mae": float(np.abs(error).mean()),
            "action_r2": r2(prediction, action)}  # fmt: skip


def r2(prediction: np.ndarray, action: np.ndarray) -> float:
    """Mean coefficient of determination of rows f32 [N, A] over the dimensions that vary; NaN where none does."""
    spread = np.square(action - action.mean(0)).mean(0)
    varies = spread > 1e-8
    error = np.square(prediction - action).mean(0)
    return float((1 - error[varies] / spread[varies]).mean()) if varies.any() else float("nan")


def dimension(prediction: np.ndarray, action: np.ndarray) -> dict[str, float]:
    """Of numbers f32 [N]: "action_mse" and "action_mae", and where the actions vary "action_r2", 1 - squared error over
    that of always giving their mean, and "action_distance", see `distance`."""
    prediction, action = prediction.astype(np.float64), action.astype(np.float64)
    mse = float(np.square(prediction - action).mean())
    found = {"action_mse": mse, "action_mae": float(np.abs(prediction - action).mean())}
    if (variance := float(action.var())) > 1e-8:
        found |= {"action_r2": 1 - mse / variance, "action_distance": distance(prediction, action)}
    return found


def distance(prediction: np.ndarray, action: np.ndarray) -> float:
    """How far apart the distributions of numbers [N] are: Wasserstein's distance, over the actions' deviation.

    0 for the same numbers in any order; 0.8 for always giving the mean of numbers with a normal distribution.
    """
    prediction, action = np.sort(prediction.astype(np.float64)), np.sort(action.astype(np.float64))
    return float(np.abs(prediction - action).mean() / action.std())
