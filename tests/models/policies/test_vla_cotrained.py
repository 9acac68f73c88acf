"""Co-training: a policy of stage 3 that predicts latent actions besides; rows of a batch have one or both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lapa_jax.core.errors import UserError
from lapa_jax.models.llama import Model as Llama
from lapa_jax.models.policies import vla_action, vla_cotrained
from lapa_jax.models.policies.heads import chunk, latent
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.models.vision import film_conv
from lapa_jax.train.task import Task

ROWS, A, T, N, K = 4, 3, 2, 2, 5
VALUES = {
    "vision": film_conv.Model(widths=(4,), condition=4, tokens=2, dim=8),
    "llm": Llama(vocab=40, dim=16, depth=1, heads=2, kv_heads=1, hidden=16, head="none"),
    "image_size": 8, "cameras": 1, "text_length": 3, "action_dim": A, "chunk_length": T, "state_dim": 0,
    "constant": (), "binary": (), "head": chunk.Model(width=8),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    model = vla_cotrained.Model(**VALUES, code_length=N, codebook_size=K)
    model.check()
    return model


@pytest.fixture(scope="module")
def variables(model):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.array(0.3 * rng.normal(size=x.shape), x.dtype), expected_variables(model))


@pytest.fixture(scope="module")
def batch(model):
    """Two rows of a robot, of which the second has no whole pair, and two of video."""
    rng = np.random.default_rng(0)
    batch = {name: np.array(value) for name, value in model.example(ROWS).items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["text"] = rng.integers(3, 40, batch["text"].shape).astype(np.int32)
    batch["action"] = rng.uniform(-1, 1, batch["action"].shape).astype(np.float32)
    batch["action_mask"][2:] = 0
    batch["latent"] = rng.integers(0, K, (ROWS, N)).astype(np.int32)
    batch["latent_mask"] = np.array([1, 0, 1, 1], np.float32)
    return batch


@pytest.fixture(scope="module")
def losses(model, variables):
    task = Task(model, {"action": 1.0, "latent": 0.5})
    return jax.jit(lambda batch: task.loss(variables, batch, jax.random.key(0)))


def of(losses, batch) -> tuple[float, float]:
    """The losses of actions and of latents."""
    metrics = losses(batch)[1][1]
    return float(metrics["loss_action"]), float(metrics["loss_latent"])


def test_each_row_teaches_what_it_has(model, variables, batch, losses):
    predicted = np.asarray(model.apply(variables, batch, method="predict")["action"])
    action, latent_loss = of(losses, batch)
    assert action == pytest.approx(np.abs(predicted - batch["action"])[:2].mean(), rel=1e-5)
    assert float(losses(batch)[0]) == pytest.approx(action + 0.5 * latent_loss, rel=1e-5)
    elsewhere = {**batch, "action": batch["action"] + (batch["action_mask"] == 0)[..., None]}
    elsewhere["latent"] = np.where(batch["latent_mask"][:, None] > 0, batch["latent"], 0)
    assert of(losses, elsewhere) == pytest.approx((action, latent_loss)), "what is masked counts for nothing"
    moved = {**batch, "latent": (batch["latent"] + 1) % K}
    assert of(losses, moved)[0] == pytest.approx(action) and of(losses, moved)[1] != pytest.approx(latent_loss)


def test_acting_is_that_of_a_policy_without_codes(model, variables, batch):
    plain = vla_action.Model(**VALUES)
    new = ("queries", "codes_norm", "to_codes")
    params = {name: values for name, values in variables["params"].items() if name not in new}
    found, expected = (np.asarray(each.apply(values, batch, method="predict")["action"])
                       for each, values in ((model, variables), (plain, {"params": params})))  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_codes_are_those_of_the_cross_entropy(model, variables, batch, losses):
    """The logits stand in the loss alone: here all rows have the same ones."""
    kernel, bias = variables["params"]["to_codes"]["kernel"], variables["params"]["to_codes"]["bias"]
    sure = {"kernel": np.zeros_like(kernel), "bias": np.arange(K, dtype=bias.dtype)}
    task = Task(model, {"action": 1.0, "latent": 1.0})
    changed = {"params": {**variables["params"], "to_codes": sure}}
    found = float(task.loss(changed, batch, jax.random.key(0))[1][1]["loss_latent"])
    kept = batch["latent_mask"] > 0
    expected = scipy.special.logsumexp(np.arange(K)) - batch["latent"][kept].astype(float)
    assert found == pytest.approx(expected.mean(), rel=1e-5)


def test_the_head_of_codes_is_refused():
    values = {**VALUES, "head": latent.Model(width=8, heads=2), "code_length": N, "codebook_size": K}
    with pytest.raises(UserError, match="co-training has another head"):
        vla_cotrained.Model(**values).check()
