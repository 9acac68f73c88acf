"""In-context policies with random weights and statistics, and their full forward pass for comparison."""

import functools

import jax
import ml_collections
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.statistics import column_statistics
from lapa_jax.inference.in_context import InContextPolicy
from lapa_jax.models.pretrained import expected_variables

A, S, T, P, L, SIDE = 3, 5, 6, 2, 4, 8
SMALL = {"name": "policies.icl", "action_dim": A, "state_dim": S, "cameras": 0, "image_size": 0, "context": T,
         "prompts": P, "prompt_length": L, "dim": 16, "depth": 2, "heads": 2, "hidden": 24, "patch": 4, "vit_dim": 12,
         "vit_depth": 1, "vit_heads": 2}  # fmt: skip
TOKENIZER = {"name": "tokenizers.mstcn", "action_dim": A, "context": T, "embed_dim": 8, "width": 8, "layers": 2,
             "stages": 1, "causal": True, "subclusters": 8, "clusters": 4, "dead_age": 1,
             "codebook_init": "normal"}  # fmt: skip


def make(
    prompt_steps: str = "even", normalize: str = "q01_q99", datasets=("table",), data=None, about=None, **changes
) -> InContextPolicy:
    """A policy on one device.

    Args:
      prompt_steps, normalize: of `config.data`, and `data` the whole of it in their place.
      datasets: names, or `about` them what a checkpoint says. changes: fields of the model.
    """
    if changes.get("actions", "raw") != "raw":
        changes["tokenizer"] = TOKENIZER
    data = data or {"fields": ("image", "state", "action"), "prompt_steps": prompt_steps, "normalize": normalize}
    config = ml_collections.ConfigDict({"name": "small", "model": {**SMALL, **changes}, "data": data})
    model = config_lib.build("lapa_jax.models", config.model)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.array(0.4 * rng.normal(size=x.shape), x.dtype), expected_variables(model))
    about = about or {name: {"statistics": statistics(k), "features": {}} for k, name in enumerate(datasets)}
    return InContextPolicy(model, variables, config=config, datasets=about, step=3, devices=jax.devices()[:1])


def statistics(seed: int) -> dict:
    """Of actions whose second dimension is a gripper's, and of states, each on its own scale."""
    action, state = numbers(400, A, seed), numbers(400, S, seed + 10)
    action[:, 1] = np.where(action[:, 1] > action[:, 1].mean(), 1.0, -1.0)
    return {"action": column_statistics([action]), "state": column_statistics([state])}


def numbers(count: int, width: int, seed: int) -> np.ndarray:
    """f32 [count, width] of different means and scales."""
    rng = np.random.default_rng(seed)
    return (3 * np.arange(width) + (1 + np.arange(width)) * rng.normal(size=(count, width))).astype(np.float32)


def episode(policy: InContextPolicy, steps: int, seed: int) -> dict[str, np.ndarray]:
    """A random demonstration: every field that the policy may want."""
    rng, cameras = np.random.default_rng(seed), policy.model.cameras or 1
    views = (cameras,) if cameras > 1 else ()
    picture = rng.integers(0, 256, (steps, *views, SIDE, SIDE, 3)).astype(np.uint8)
    return {"action": numbers(steps, A, seed), "state": numbers(steps, S, seed + 1), "image": picture}


def batch_of(policy: InContextPolicy, prompts, window, normalizers) -> dict[str, np.ndarray]:
    """A batch for `predict`, put together by hand.

    Args:
      prompts: for each row its demonstrations, of L steps at most. window: dict of [rows, T, ...].
      normalizers: {column: Normalizer}.
    """
    rows = len(prompts)
    batch = policy.model.example(rows)
    scaled = lambda name, x: normalizers[name].normalize(x) if name in normalizers else x  # noqa: E731
    for name in ("action", "state", "image"):
        if name in batch:
            batch[name] = scaled(name, window[name])
    for name in [name for name in ("goal_state", "goal_image") if name in batch]:
        batch[name] = scaled(name.removeprefix("goal_"), window[name])
    for name in [name for name in batch if name.startswith("prompt_")]:
        batch[name] = np.zeros_like(batch[name])
    for row, prompt in enumerate(prompts):
        for place, shown in enumerate(prompt):
            count = len(shown["action"])
            for name in ("action", "state", "image"):
                if f"prompt_{name}" in batch:
                    batch[f"prompt_{name}"][row, place, :count] = scaled(name, shown[name])
            batch["prompt_action_mask"][row, place, :count] = batch["prompt_step_mask"][row, place, :count] = 1
    return batch


def predictor(policy: InContextPolicy):
    """`predict(batch)` f32 [B, T, F, A] of the policy's model, normalised."""
    return functools.partial(jax.jit(lambda v, b: policy.model.apply(v, b, method="predict")["action"]),
                             policy.variables)  # fmt: skip


def normalizers(policy: InContextPolicy, dataset: str = "table") -> dict[str, Normalizer]:
    """{column: Normalizer} by the statistics of a dataset."""
    mode, summaries = policy.config.data.normalize, policy.datasets[dataset]["statistics"]
    return {name: Normalizer(summaries[name], mode) for name in summaries}
