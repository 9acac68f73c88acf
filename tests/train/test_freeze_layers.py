"""The first layers of a stack can be frozen by their number: no update, no moments, no gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.transformer import Transformer
from lapa_jax.train.checkpoint import Checkpointer
from lapa_jax.train.flops import count_flops
from lapa_jax.train.optim import join, make_optimizer
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task

DEPTH = 4


class Model(base.Model):
    """A stack between two linear layers."""

    depth: int = DEPTH
    remat: str = "none"

    @nn.compact
    def __call__(self, batch, *, train: bool) -> Output:
        x = Linear(8, name="before")(batch["x"])
        x = Transformer(self.depth, 2, 4, None, remat=self.remat, name="stack")(x)
        return Output({"mse": jnp.square(Linear(1, name="after")(x)).mean((1, 2))}, {})

    def evaluate(self, batch):
        return self(batch, train=False).losses


BATCH = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 6)), jnp.float32)}
STACK = ("stack/layers/.*", {"freeze_layers": 3})


def start(groups, model=Model(), **optim):  # noqa: B008
    config = {"learning_rate": 0.01, "clip_norm": 1.0, "groups": groups, **optim}
    task = Task(model, {"mse": 1.0})
    make = lambda params: make_optimizer(config, 10, params)  # noqa: E731
    state = jax.jit(lambda batch: init_state(task, make, 0, batch))(BATCH)
    optimizer = make(state.variables["params"])
    return state, optimizer, make_train_step(task, optimizer, seed=0)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_frozen_layers_stay_and_the_others_move_as_they_would(remat):
    """With plain Adam at its first step an update depends on its own gradient alone."""
    model = Model(remat=remat)
    state, _, step = start((STACK, (".*", {})), model, clip_norm=None)
    after, _ = jax.jit(step)(state, BATCH)
    free, _, step = start(((".*", {}),), model, clip_norm=None)
    usual, _ = jax.jit(step)(free, BATCH)
    before, now, others = (tree.flatten(s.variables["params"]) for s in (state, after, usual))
    for name in before:
        first = 3 if name.startswith("stack/layers/") else 0
        np.testing.assert_array_equal(before[name][:first], now[name][:first], err_msg=name)
        np.testing.assert_allclose(now[name][first:], others[name][first:], atol=1e-6, err_msg=name)
        assert not np.array_equal(before[name][first:], now[name][first:]), name


def test_frozen_layers_have_no_moments_and_do_not_count_in_the_norm():
    state, optimizer, step = start((STACK, (".*", {})))
    kernel = state.variables["params"]["stack"]["layers"]["attention"]["query"]["kernel"]
    kept = [x.shape for x in jax.tree.leaves(state.opt_state) if x.shape[1:] == kernel.shape[1:]]
    assert kept and {shape[0] for shape in kept} == {DEPTH - 3}
    params = state.variables["params"]
    grads = jax.jit(jax.grad(lambda p: Model().apply({"params": p}, BATCH, train=True).losses["mse"].mean()))(params)
    trained, _ = optimizer.split(grads)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(trained)))
    assert float(jax.jit(step)(state, BATCH)[1]["grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_nothing_is_differentiated_below_the_first_trained_layer():
    """What is below is frozen too: each frozen layer then costs one forward pass, a trained one three."""

    def flops(frozen: int) -> float:
        stack = ("stack/layers/.*", {"freeze_layers": frozen} if frozen else {})
        state, _, step = start((("before/.*", None), stack, (".*", {})))
        return count_flops(step, state, BATCH)

    def forward(depth: int) -> float:
        model = Model(depth)
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, train=False))
        return count_flops(lambda v: model.apply(v, BATCH, train=False).losses["mse"], variables)

    layer = forward(DEPTH) - forward(DEPTH - 1)
    assert [flops(n) - flops(n + 1) for n in (1, 2)] == [2 * layer] * 2


def test_split_and_join_are_inverse_and_tell_shapes():
    state, optimizer, _ = start((STACK, ("after/.*", None), (".*", {})))
    params = state.variables["params"]
    jax.tree.map(np.testing.assert_array_equal, join(*optimizer.split(params)), params)
    shapes = jax.eval_shape(lambda: params)
    assert jax.tree.map(jnp.shape, optimizer.split(params)) == jax.tree.map(lambda s: s.shape, optimizer.split(shapes))
    assert optimizer.frozen_stacks(params) == {"stack/layers": 3}


def test_a_stack_that_is_frozen_in_part_only_keeps_its_gradients():
    """The kernels of two frozen layers and of no more: the layers' other parameters are trained."""
    groups = (("stack/layers/.*/kernel", {"freeze_layers": 2}), (".*", {}))
    state, optimizer, step = start(groups)
    assert optimizer.frozen_stacks(state.variables["params"]) == {}
    after, _ = jax.jit(step)(state, BATCH)
    before, now = (s.variables["params"]["stack"]["layers"]["attention_norm"]["scale"] for s in (state, after))
    assert (before != now).any(axis=1).all()


def test_averages_and_checkpoints_hold_whole_stacks(tmp_path):
    state, _, step = start((STACK, (".*", {})), ema_decay=0.5)
    after, _ = jax.jit(step)(state, BATCH)
    average = after.variables["ema"]["stack"]["layers"]["attention_norm"]["scale"]
    before, now = (s.variables["params"]["stack"]["layers"]["attention_norm"]["scale"] for s in (state, after))
    np.testing.assert_allclose(average, (before + now) / 2, rtol=1e-6)
    checkpoints = Checkpointer(tmp_path, keep_last=1, best_metric=None)
    checkpoints.save(after, 1, {}, None)
    checkpoints.close()
    again = Checkpointer(tmp_path, keep_last=1, best_metric=None).restore(jax.eval_shape(lambda: after))
    jax.tree.map(np.testing.assert_array_equal, again, after)


@pytest.mark.parametrize(
    "groups, words",
    [
        ((("stack/layers/.*", {"freeze_layers": 4}), (".*", {})), "'stack/layers' has 4 layers"),
        ((("before/.*", {"freeze_layers": 1}), (".*", {})), "matches no stack of layers"),
        ((("stack/.*", {"freeze_layers": -1}), (".*", {})), "freeze_layers is -1"),
        ((("stack/.*", {"freeze_layers": True}), (".*", {})), "freeze_layers is True"),
    ],
)
def test_refusals(groups, words):
    with pytest.raises(ConfigError) as error:
        start(groups)
    assert words in str(error.value)


def test_layers_are_frozen_for_all_groups_at_once():
    _, optimizer, _ = start(((".*", {}),), freeze_layers=2)
    assert set(optimizer.frozen_layers.values()) == {2}
    assert all(name.startswith("stack/layers/") for name in optimizer.frozen_layers)
    with pytest.raises(ConfigError, match="the model has no stack"):
        make_optimizer({"learning_rate": 1.0, "clip_norm": None, "groups": ((".*", {}),), "freeze_layers": 1}, 1,
                       {"kernel": jnp.ones(3)})  # fmt: skip
