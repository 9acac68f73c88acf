"""Micro-batches add up to the batch: gradients, losses and metrics, however unevenly labels are spread over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.train.step import _gradients
from lapa_jax.train.task import Task

ROWS = 8
LLM = {"name": "llama", "vocab": 40, "dim": 16, "depth": 1, "heads": 2, "hidden": 16, "head": "none"}
VISION = {"name": "vision.film_conv", "widths": (4,), "condition": 4, "tokens": 2, "dim": 8}
BODY = {"vision": VISION, "llm": LLM, "image_size": 8, "cameras": 1, "text_length": 3}
TOWER = {"name": "vision.siglip", "image_size": 14, "patch": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 8}
TOWERS = {"siglip": TOWER, "dinov2": {**TOWER, "name": "vision.dinov2"}, "image_size": 14, "cameras": 1}
ACTION = {"action_dim": 2, "chunk_length": 4, "state_dim": 0, "constant": (1,), "binary": ()}
# Examples with labels, and how many steps of a chunk have an action: no two micro-batches have as many.
LABELLED = np.array([1, 0, 1, 0, 0, 0, 1, 1], np.float32)
STEPS = np.array([4, 1, 0, 1, 3, 0, 4, 4])
MODELS = {
    "vla": ({"name": "policies.vla", **BODY, "code_length": 2, "codebook_size": 4}, "latent"),
    "bins": ({"name": "policies.vla_action", **BODY, **ACTION, "head": {"name": "policies.heads.bins", "bins": 8}},
             "action"),
    "chunk": ({"name": "policies.vla_action", **BODY, **ACTION, "head": {"name": "policies.heads.chunk", "width": 8}},
              "action"),
    "openvla": ({"name": "policies.openvla", **TOWERS, "llm": LLM, "text_length": 3, "action_dim": 2, "action_end": 40,
                 "edges": 9, "end": 2}, "action"),
}  # fmt: skip


@functools.cache
def task_and_batch(name: str):
    spec, loss = MODELS[name]
    task, rng = Task(config_lib.build("lapa_jax.models", spec), {loss: 1.0}), np.random.default_rng(3)
    batch = {field: np.array(values) for field, values in task.model.example(ROWS).items()}
    batch["image"] = rng.integers(0, 255, batch["image"].shape).astype(np.uint8)
    batch["text"] = rng.integers(0, 30, batch["text"].shape).astype(np.int32)
    if loss == "latent":
        batch |= {"latent": rng.integers(0, 4, batch["latent"].shape).astype(np.int32), "latent_mask": LABELLED}
    else:
        shape = batch["action"].shape
        batch["action"] = rng.uniform(-1, 1, shape).astype(np.float32)
        batch["action_mask"] = (np.arange(shape[1]) < STEPS[:, None]).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, batch)
    return task, batch, jax.jit(lambda batch: task.init(jax.random.key(1), batch))(batch)["params"]


@functools.cache
def computed(name: str, micro_batches: int):
    """Gradients as one vector, and metrics."""
    task, batch, params = task_and_batch(name)
    run = jax.jit(lambda p, b: _gradients(task, p, {}, {}, b, jax.random.key(1), micro_batches))
    grads, _, metrics = run(params, batch)
    return np.concatenate([np.ravel(leaf) for leaf in tree.flatten(grads).values()]), jax.device_get(metrics)


# Slices of one example, of which some have no label; and of several, of one model.
@pytest.mark.parametrize(("name", "micro_batches"), [*((name, 8) for name in MODELS), ("chunk", 2)])
def test_gradients_and_metrics_are_those_of_the_whole_batch(name, micro_batches):
    whole, metrics = computed(name, 1)
    gradient, parts = computed(name, micro_batches)
    assert np.linalg.norm(whole) > 1e-3
    assert np.linalg.norm(gradient - whole) <= 1e-6 * np.linalg.norm(whole)
    assert parts.keys() == metrics.keys()
    for metric, value in metrics.items():
        assert parts[metric] == pytest.approx(value, rel=1e-5), metric


def test_the_loss_is_the_mean_over_what_has_a_label():
    task, batch, params = task_and_batch("vla")
    logits = np.float64(jax.jit(task.predict)({"params": params}, batch)["logits"])
    chosen = np.take_along_axis(logits, np.asarray(batch["latent"])[..., None], -1)[..., 0]
    entropy = np.log(np.exp(logits).sum(-1)) - chosen
    assert computed("vla", 8)[1]["loss"] == pytest.approx(entropy[LABELLED > 0].mean(), rel=1e-5)


def test_the_loss_of_a_chunk_is_the_mean_over_the_numbers_that_count():
    task, batch, params = task_and_batch("chunk")
    action = np.float64(jax.jit(task.predict)({"params": params}, batch)["action"])
    error = np.abs(action - batch["action"])
    counts = (np.asarray(batch["action_mask"]) > 0)[..., None] & (np.arange(2) == 0)
    assert computed("chunk", 2)[1]["loss"] == pytest.approx(error[counts].mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["vla", "chunk"])
def test_a_batch_without_labels_has_no_loss_and_no_gradient(name):
    task, batch, params = task_and_batch(name)
    mask = "latent_mask" if name == "vla" else "action_mask"
    empty = {**batch, mask: jnp.zeros_like(batch[mask])}
    grads, _, metrics = jax.jit(lambda p, b: _gradients(task, p, {}, {}, b, jax.random.key(1), 2))(params, empty)
    assert metrics["loss"] == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_weights_of_what_a_model_does_not_give_are_a_mistake_of_the_model(monkeypatch):
    task, batch, params = task_and_batch("vla")
    monkeypatch.setattr(type(task.model), "weights", lambda self, batch: {"latents": batch["latent_mask"]})
    with pytest.raises(ValueError, match=r"policies.vla weighs \['latents'\]"):
        jax.eval_shape(task.loss, {"params": params}, batch, jax.random.key(0))
