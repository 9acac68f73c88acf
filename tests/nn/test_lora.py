"""Adapters: nothing at the start, a product beside the kernel afterwards, merged kernels that do the same; training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.llama import Model as Llama
from lapa_jax.nn import lora
from lapa_jax.nn.linear import Linear
from tests import jitted

SIZES = {"vocab": 11, "dim": 16, "depth": 2, "heads": 2, "hidden": 24, "kv_heads": 1}
TOKENS = jnp.asarray([[1, 4, 2, 9, 3], [5, 5, 0, 7, 10]])
QUERY, DOWN = "llm/decoder/layers/attention/query", "llm/decoder/layers/feedforward/down"
MODULES, RANK, ALPHA = r"llm/.*/(query|down)|llm/to_logits", 3, 6.0


class Policy(nn.Module):
    """A model that holds another and adapts it, as policies do."""

    llm: Llama
    rank: int = 0
    modules: str = MODULES

    @nn.compact
    def __call__(self, tokens):
        with lora.adapters(self.rank, ALPHA, self.modules):
            return Linear(1, name="out")(self.llm.logits(self.llm(tokens)))[..., 0]


def policy(rank=RANK, modules=MODULES, **sizes) -> Policy:
    return Policy(Llama(**SIZES | sizes), rank, modules)


def run(params, rank=RANK, **sizes):
    return jax.jit(policy(rank, **sizes).apply)({"params": params}, TOKENS)


def moved(params, by=0.3):
    """With adapters that no longer start at 0."""
    noise = lambda name, x: x + by * jax.random.normal(jax.random.key(len(name)), x.shape)  # noqa: E731
    return tree.map_named(lambda name, x: noise(name, x) if name.endswith("lora_b") else x, params)


@pytest.fixture(scope="module")
def adapted():
    return jax.jit(policy().init)(jax.random.key(0), TOKENS)["params"]


def without(params):
    return tree.split(params, r".*/lora_[ab]")[1]


def test_fresh_adapters_change_nothing(adapted):
    before = jax.eval_shape(policy(0).init, jax.random.key(0), TOKENS)["params"]
    assert tree.diff(before, without(adapted)) == ""
    after = tree.flatten(adapted)
    shapes = {name: leaf.shape for name, leaf in after.items() if name not in tree.flatten(before)}
    assert shapes == {
        f"{QUERY}/lora_a": (2, 16, 3), f"{QUERY}/lora_b": (2, 3, 16), f"{DOWN}/lora_a": (2, 24, 3),
        f"{DOWN}/lora_b": (2, 3, 16), "llm/to_logits/lora_a": (16, 3), "llm/to_logits/lora_b": (3, 11),
    }  # fmt: skip
    a = after[f"{QUERY}/lora_a"]
    assert not np.allclose(a[0], a[1]) and np.abs(a).max() <= 1 / 4  # each layer its own, within 1 / sqrt(in)
    np.testing.assert_array_equal(run(adapted), run(without(adapted), 0))


def test_a_layer_adds_the_product_of_its_input():
    class One(nn.Module):
        rank: int

        @nn.compact
        def __call__(self, x):
            with lora.adapters(self.rank, 5.0, "layer"):
                return Linear(4, name="layer")(x)

    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    params = moved(jitted.init(One(2), jax.random.key(1), x)["params"])
    a, b, kernel = (np.asarray(params["layer"][name], np.float64) for name in ("lora_a", "lora_b", "kernel"))
    want = x @ kernel + 5.0 / 2 * (x @ a) @ b
    np.testing.assert_allclose(jitted.apply(One(2), {"params": params}, x), want, atol=1e-5)
    assert not np.allclose(want, jitted.apply(One(0), {"params": params}, x), atol=0.1)


@pytest.mark.parametrize("sizes", [{}, {"remat": "full"}], ids=["scan", "scan with remat"])
def test_merged_kernels_give_the_same(adapted, sizes):
    trained = moved(adapted)
    want = run(trained, **sizes)
    assert np.abs(want - run(adapted, **sizes)).max() > 0.1
    merged = lora.merge(jax.device_get(trained), ALPHA)
    assert not [name for name in tree.flatten(merged) if "lora" in name]
    np.testing.assert_allclose(run(merged, 0, **sizes), want, atol=1e-5)


def test_bfloat16_is_of_the_computation_alone(adapted):
    sizes = {"dtype": "bfloat16", "remat": "dots"}
    made = jax.eval_shape(policy(**sizes).init, jax.random.key(0), TOKENS)["params"]
    assert tree.diff(made, adapted) == "" and made["llm"]["embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(run(adapted, **sizes), run(without(adapted), 0, **sizes))
    np.testing.assert_allclose(run(moved(adapted), **sizes), run(moved(adapted)), atol=0.15)
    frozen = tree.map_named(lambda name, x: x if "lora" in name else x.astype(jnp.bfloat16), moved(adapted))
    merged = tree.flatten(lora.merge(frozen, ALPHA))
    assert merged[f"{QUERY}/kernel"].dtype == jnp.float32 and merged["llm/embedding"].dtype == jnp.bfloat16


def test_training_them_alone_lowers_the_loss(adapted):
    model = policy(remat="full")
    trained, frozen = tree.split(adapted, r".*/lora_[ab]")
    target = jnp.sin(jnp.arange(10.0)).reshape(2, 5)
    optimizer = optax.adam(0.02)

    def loss(trained):
        return jnp.mean((model.apply({"params": tree.merge(trained, frozen)}, TOKENS) - target) ** 2)

    @jax.jit
    def step(trained, state):
        value, gradients = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(trained, updates), state, value, gradients

    state, values = optimizer.init(trained), []
    for _ in range(30):
        trained, state, value, gradients = step(trained, state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    "rank, modules, words",
    [(2, "nothing/.*", "matches no linear layer; there are llm/decoder/layers/attention/key"),
     (2, "(", "no regular expression"), (-1, MODULES, "lora_rank is -1")],
)  # fmt: skip
def test_what_cannot_be_adapted_is_refused(rank, modules, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(policy(rank, modules).init, jax.random.key(0), TOKENS)
