"""Losses of actions, and what held-out windows say about a policy and its prompts."""

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.models.policies import action_measures

TRANSLATION = 3
"""The first numbers of an action, whose direction the cosine loss compares."""


def action_losses(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """The plan's losses, each a mean over the weighted steps and all dimensions.

    "l2" is the squared error; "smooth_l1" e^2 / 2 for errors under 1 and |e| - 1/2 above; "cosine" 1 minus the cosine
    between the first three numbers, the translation, of steps that have one.

    Args:
      prediction, target: f32 [B, N, F, A]. weight: f32 [B, N, F], 1 for what counts.

    Returns:
      f32 [B] each; 0 where nothing counts.
    """
    error = prediction - target
    size = jnp.abs(error)
    smooth = jnp.where(size < 1, 0.5 * jnp.square(error), size - 0.5)
    a, b = prediction[..., :TRANSLATION], target[..., :TRANSLATION]
    length = jnp.linalg.norm(b, axis=-1)
    # under the root, so that a prediction of exactly 0 has a gradient
    cosine = jnp.sum(a * b, -1) / (jnp.sqrt(jnp.sum(a * a, -1) + 1e-12) * jnp.maximum(length, 1e-6))
    return {
        "l2": _mean(jnp.square(error).mean(-1), weight),
        "smooth_l1": _mean(smooth.mean(-1), weight),
        "cosine": _mean(1 - cosine, weight * (length > 1e-6)),
    }


def _mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(values * weight, (1, 2)) / jnp.maximum(jnp.sum(weight, (1, 2)), 1)


def summarize(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Of windows with their predictions, see `Model.evaluate`, in normalised units.

    Returns:
      "action_mse", "action_mae", "action_r2" (over predicting the mean of these actions; the mean over the dimensions
      that vary), and with prompts "action_mse_no_prompt" and "prompt_gain", the share of the error without a prompt
      that the right one takes away; where there are several tasks "action_mse_wrong_prompt", of the windows for which
      there was one, and "prompt_wins", the share of tasks in which the right prompt does better than a wrong one.
    """
    mask = arrays["action_mask"] > 0
    squared = per_window(arrays, "prediction")
    found = action_measures.errors(arrays["prediction"][mask], arrays["action"][mask])
    if "prediction_none" not in arrays:
        return found
    none, wrong = per_window(arrays, "prediction_none"), per_window(arrays, "prediction_wrong")
    steps, there = mask.sum(1), arrays["has_wrong"] > 0
    without = float(np.average(none, weights=steps))
    found["action_mse_no_prompt"] = without
    if without > 0:
        found["prompt_gain"] = 1 - found["action_mse"] / without
    if there.any():
        better = [squared[rows].mean() < wrong[rows].mean() for rows in by_task(arrays["task_id"], there)]
        found["action_mse_wrong_prompt"] = float(np.average(wrong[there], weights=steps[there]))
        found["prompt_wins"] = float(np.mean(better))
    return found


def per_window(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Mean squared error f32 [N] of each window's prediction `name`, over its steps and all dimensions."""
    squared = np.square(arrays[name] - arrays["action"]).mean(-1) * arrays["action_mask"]
    return squared.sum(1) / np.maximum(arrays["action_mask"].sum(1), 1)


def by_task(task: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """bool [N] for each task that has a chosen window: these windows."""
    return [(task == number) & chosen for number in np.unique(task[chosen])]
