"""What predicted actions are worth over a data set. Plain numpy, on the host."""

from collections.abc import Sequence

import numpy as np


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


def gripper_accuracy(prediction: np.ndarray, action: np.ndarray, binary: Sequence[int]) -> float:
    """Share of rows f32 [N, A], normalised, in which a dimension of two values, -1 and 1, is on the right side of 0."""
    return float(((prediction > 0) == (action > 0))[:, list(binary)].mean())
