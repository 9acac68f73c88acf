import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.train import sharding
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task
from tests.train import toy

OPTIM = {"learning_rate": 0.01, "clip_norm": None, "groups": ((".*", {}),)}


def start(optim=OPTIM, weights=None, **step):
    task = Task(toy.Model(), weights or {"mse": 1.0})
    state = init_state(task, lambda params: make_optimizer(optim, 10, params), 0, toy.batch())
    optimizer = make_optimizer(optim, 10, state.variables["params"])
    return state, make_train_step(task, optimizer, seed=0, **step)


def test_noise_depends_on_the_step_alone():
    state, step = start()
    once, again = step(state, toy.batch())[1], jax.jit(step)(state, toy.batch())[1]
    later = step(state.replace(step=jnp.int32(1)), toy.batch())[1]
    np.testing.assert_allclose(float(once["loss"]), float(again["loss"]), rtol=1e-6)
    assert abs(float(once["loss"]) - float(later["loss"])) > 1e-5


def test_frozen_parameters_have_no_slot_and_do_not_move():
    groups = (("first/.*", None), (".*", {}))
    state, step = start({**OPTIM, "groups": groups})
    after, _ = step(state, toy.batch())
    before, now = (tree.flatten(s.variables["params"]) for s in (state, after))
    assert np.array_equal(before["first/kernel"], now["first/kernel"])
    assert not np.array_equal(before["last/kernel"], now["last/kernel"])
    assert not [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.shape == (4, 3)]


def test_norms_of_gradients_are_told_for_each_group():
    groups = (("first/.*", {"learning_rate": 0.1}), ("last/bias", None), (".*", {}))
    state, step = start({**OPTIM, "groups": groups})
    metrics = step(state, toy.batch())[1]
    norms = {name: float(value) for name, value in metrics.items() if name.startswith("grad_norm")}
    assert norms.keys() == {"grad_norm", "grad_norm_0", "grad_norm_2"} and min(norms.values()) > 0
    assert norms["grad_norm"] ** 2 == pytest.approx(norms["grad_norm_0"] ** 2 + norms["grad_norm_2"] ** 2, rel=1e-5)
    state, step = start()
    assert [name for name in step(state, toy.batch())[1] if name.startswith("grad_norm")] == ["grad_norm"]


def test_collections_are_updated_and_metrics_named():
    state, step = start(weights={"mse": 1.0, "l1": 0.5})
    after, metrics = step(state, toy.batch())
    assert int(after.variables["codebook"]["calls"]) == 1
    want = float(metrics["loss_mse"] + 0.5 * metrics["loss_l1"])
    np.testing.assert_allclose(float(metrics["loss"]), want, rtol=1e-6)
    assert {"grad_norm", "learning_rate", "mean"} <= metrics.keys()


def test_accumulated_gradient_is_the_mean_over_the_batch():
    # The toy's noise is 1 % of its features; what is compared is the norm before Adam.
    batch = toy.batch(16)
    model = toy.Model()
    state, step = start(micro_batches=4)
    _, metrics = step(state, batch)

    def loss(params):
        return model.apply({**state.variables, "params": params}, batch, train=False).losses["mse"].mean()

    grads = jax.grad(loss)(state.variables["params"])
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=0.02)
    assert int(step(state, batch)[0].variables["codebook"]["calls"]) == 4


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 4, 1)])
def test_sharded_step_equals_one_device(axes):
    state, step = start()
    want, wanted = step(state, toy.batch(16))
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, axes, strict=True)))
    with jax.set_mesh(mesh):
        placed = jax.device_put(state, sharding.shardings(state, mesh))
        batch = sharding.shard_batch(mesh, {k: np.asarray(v) for k, v in toy.batch(16).items()})
        got, metrics = jax.jit(step)(placed, batch)
    np.testing.assert_allclose(float(metrics["loss"]), float(wanted["loss"]), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got.variables), jax.tree.leaves(want.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_unknown_or_absent_losses_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'mse'"):
        start(weights={"mss": 1.0})[1](start()[0], toy.batch())
    with pytest.raises(ConfigError, match="every loss the weight 0"):
        start(weights={"mse": 0.0})[1](start()[0], toy.batch())
