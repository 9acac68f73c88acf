"""The actions of few pairs as a loss of latent action models: whom its gradient reaches, and what is measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config, tree
from lapa_jax.core.config import ConfigError
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.train.task import Task

MODELS = {
    "laq": {"name": "tokenizers.laq", "image_size": 16, "patch_size": 8, "dim": 8, "heads": 1, "dim_head": 8,
            "quant_dim": 4, "spatial_depth": 1, "temporal_depth": 1, "decoder_depth": 1},
    "laq_conv": {"name": "tokenizers.laq_conv", "image_size": 16, "channels": (8, 16), "blocks": 1, "groups": 4,
                 "embed": 16, "quant_dim": 4, "delta_norm": "none", "codebook_init": "normal"},
}  # fmt: skip
EACH = pytest.mark.parametrize("name", MODELS)
ROWS = 6


@functools.cache
def small(name):
    """(model with a head of three numbers, its variables)."""
    model = config.build("lapa_jax.models", {**MODELS[name], "action_dim": 3})
    return model, jax.jit(Task(model, {}).init)(jax.random.key(0), model.example(ROWS))


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    mask = np.zeros((ROWS, 3), np.float32)
    mask[1], mask[4, :2] = 1, 1  # pair 4 has an action of two numbers, as of another robot
    return {"frames": rng.random((ROWS, 2, 16, 16, 3), np.float32), "pair_action_mask": mask,
            "pair_action": rng.normal(size=(ROWS, 3)).astype(np.float32)}  # fmt: skip


@functools.cache
def gradients(name):
    """(loss, gradients by variables' parameters and by the batch) of the loss of actions alone."""
    model, variables = small(name)
    task = Task(model, {"action": 1.0})

    def loss(params, frames, rest):
        total, (_, metrics) = task.loss({**variables, "params": params}, {"frames": frames, **rest}, jax.random.key(1))
        return total, metrics

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return lambda batch: grad(variables["params"], batch["frames"], {n: v for n, v in batch.items() if n != "frames"})


@EACH
def test_the_gradient_comes_from_the_pairs_that_have_an_action_alone(name):
    (total, metrics), (of_params, of_frames) = gradients(name)(batch_of())
    largest = jnp.abs(of_frames).max((1, 2, 3, 4))
    assert np.flatnonzero(largest).tolist() == [1, 4]
    norms = {part: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(g)) for part, g in of_params.items()}
    assert norms["encoder"] > 0 and norms["action_head"] > 0 and norms["decoder"] == 0
    assert total == metrics["loss_action"] and float(metrics["action_r2"]) == pytest.approx(1 - float(total), abs=1e-5)


@EACH
def test_pairs_without_an_action_contribute_nothing(name):
    batch = batch_of()
    other = dict(batch, pair_action=np.where(batch["pair_action_mask"] > 0, batch["pair_action"], 99).astype("f4"))
    assert gradients(name)(batch)[0][0] == gradients(name)(other)[0][0]
    without = dict(batch, pair_action_mask=np.zeros((ROWS, 3), np.float32))
    (total, _), (of_params, of_frames) = gradients(name)(without)
    assert total == 0 and all((np.asarray(x) == 0).all() for x in jax.tree.leaves((of_params, of_frames)))


@EACH
def test_the_scores_are_those_of_numpy(name):
    model, variables = small(name)
    batch = {**batch_of(), "pair_action_mask": np.ones((ROWS, 3), np.float32)}
    batch["pair_action_mask"][2] = batch["pair_action_mask"][3, 0] = 0
    arrays = jax.device_get(jax.jit(Task(model, {}).evaluate)(variables, batch))
    metrics = model.summarize(arrays)
    by_hand, errors = [], []
    for i in range(3):
        rows = batch["pair_action_mask"][:, i] > 0
        truth, guess = (x[rows, i].astype(np.float64) for x in (batch["pair_action"], arrays["action_prediction"]))
        by_hand.append(1 - np.sum((truth - guess) ** 2) / np.sum((truth - truth.mean()) ** 2))
        errors += ((truth - guess) ** 2).tolist()
    assert [metrics[f"action_r2_{i}"] for i in range(3)] == pytest.approx(by_hand)
    assert metrics["action_r2"] == pytest.approx(np.mean(by_hand))
    assert metrics["loss_action"] == pytest.approx(np.mean(errors))
    # From the codes and nothing else: pairs of equal codes have equal predictions.
    vectors = model.apply(variables, arrays["codes"], method=lambda m, c: m.action_head(m.quantization.lookup(c)))
    np.testing.assert_allclose(vectors, arrays["action_prediction"], rtol=1e-5, atol=1e-6)


@EACH
def test_without_such_pairs_the_model_has_no_head(name):
    plain = config.build("lapa_jax.models", MODELS[name])
    names = tree.flatten(expected_variables(plain)["params"])
    assert not any(n.startswith("action_head") for n in names)
    with_head = tree.flatten(expected_variables(small(name)[0])["params"])
    assert {n.split("/")[0] for n in set(with_head) - set(names)} == {"action_head"}
    batch = plain.example(2)
    variables = jax.eval_shape(Task(plain, {}).init, jax.random.key(0), batch)
    off = Task(plain, {"reconstruction": 1.0, "action": 0.0})
    _, (_, metrics) = jax.eval_shape(off.loss, variables, batch, jax.random.key(0))
    assert "loss_action" not in metrics
    with pytest.raises(ConfigError, match="config.loss.action is 0.1, and the samples have no 'pair_action': add it"):
        jax.eval_shape(Task(plain, {"action": 0.1}).loss, variables, batch, jax.random.key(0))
