"""JAX's fused attention for TPUs, run operation by operation on a CPU: it is the plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from lapa_jax.nn import attention
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.splash import CausalMask, splash_attention, splash_attention_runs
from tests import jitted

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("together", [(0, 0), (1, 90)], ids=["causal", "prefix"])
def test_values_and_gradients_are_those_of_the_plain_attention(together):
    rows, length, heads, kv_heads, features, scale = 2, 140, 2, 1, 64, 0.3
    q, k, v = normal(rows, length, heads, features), *(normal(rows, length, kv_heads, features) for _ in range(2))
    # Padding between what is real, as behind an instruction: queries follow.
    real = np.ones((rows, length), bool)
    real[1, 100:130] = False
    mask = CausalMask(jnp.asarray(real), together)

    def plain(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask.whole()[:, None], scale=scale, implementation="xla")

    def fused(q, k, v):
        return splash_attention(q, k, v, mask, scale, interpret=True)

    @jax.jit
    def both(q, k, v):
        # Of padding nothing is read, here as in a model.
        gradient = lambda f: jax.grad(  # noqa: E731
            lambda *x: jnp.sum(jnp.sin(f(*x)) * real[..., None, None]), (0, 1, 2))(q, k, v)  # fmt: skip
        return (plain(q, k, v) * real[..., None, None], *gradient(plain)), (
            fused(q, k, v) * real[..., None, None], *gradient(fused))  # fmt: skip

    for expected, got in zip(*both(q, k, v), strict=True):
        assert np.abs(got - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_a_rule_says_what_its_mask_says():
    real = jnp.array([[True, True, False, True, True]])
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    np.testing.assert_array_equal(CausalMask(real, (0, 2)).whole()[0], np.array(expected, bool))
    layer, x = Attention(2, 8), normal(1, 5, 16)
    variables = jitted.init(layer, jax.random.key(0), x)
    mask = CausalMask(real)
    np.testing.assert_array_equal(jitted.apply(layer, variables, x, mask=mask),
                                  jitted.apply(layer, variables, x, mask=mask.whole()))  # fmt: skip


@pytest.mark.parametrize("platform, dtype, features, rows, runs", [
    ("tpu", jnp.bfloat16, 128, 8, True), ("tpu", jnp.bfloat16, 128, 6, False), ("tpu", jnp.bfloat16, 72, 8, False),
    ("tpu", jnp.float32, 128, 8, False), ("gpu", jnp.bfloat16, 128, 8, False),
])  # fmt: skip
def test_it_runs_on_tpus_where_batch_and_heads_can_be_split(platform, dtype, features, rows, runs):
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), abstract_device=AbstractDevice("TPU v5", None, platform))
    with jax.sharding.use_abstract_mesh(mesh):
        assert splash_attention_runs(jax.ShapeDtypeStruct((rows, 5, 4, features), dtype), kv_heads=2) == runs
        assert not splash_attention_runs(jax.ShapeDtypeStruct((rows, 5, 4, features), dtype), kv_heads=1)


def test_one_observation_is_left_to_the_compiler():
    mesh = AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"), abstract_device=AbstractDevice("TPU v5", None, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        runs = [splash_attention_runs(jax.ShapeDtypeStruct((n, 5, 4, 128), jnp.bfloat16), 4) for n in (1, 2)]
    assert runs == [False, True]


def test_a_layer_uses_it_for_rules_alone(monkeypatch):
    used = []
    monkeypatch.setattr(attention, "splash_attention_runs", lambda q, kv_heads: True)
    monkeypatch.setattr(attention, "splash_attention", lambda q, *rest: used.append(q.shape[1]) or q)
    layer, x = Attention(2, 8, flash=True), normal(2, 5, 16)
    mask = CausalMask(jnp.ones((2, 5), bool))
    variables = jitted.init(layer, jax.random.key(0), x)
    for given in (mask, mask.whole(), None):
        jax.eval_shape(lambda x, given=given: layer.apply(variables, x, mask=given), x)
    assert used == [5]
    jax.eval_shape(lambda x: Attention(2, 8).apply(variables, x, mask=mask), x)
    assert used == [5], "flash=False leaves it out"
