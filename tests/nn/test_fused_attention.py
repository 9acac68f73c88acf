"""cuDNN's fused attention: where it is used, and the padding that lets it take any length. No GPU is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn import attention
from lapa_jax.nn.attention import Attention, fused_attention_runs, in_whole_tiles
from tests import jitted

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def stand_in(kind: str, platform: str) -> jax.sharding.AbstractMesh:
    """A mesh of a device that is not here, as a plan compiles for."""
    device = jax.sharding.AbstractDevice(kind, None, platform)
    return jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)


@pytest.mark.parametrize("kind, platform, dtype, features, runs", [
    ("NVIDIA H100 80GB HBM3", "gpu", "bfloat16", 128, True),
    ("NVIDIA H100-80GB", "cuda", "bfloat16", 64, True),
    ("NVIDIA H100-80GB", "cuda", "float32", 64, False),
    ("NVIDIA H100-80GB", "cuda", "bfloat16", 12, False),
    ("NVIDIA H100-80GB", "cuda", "bfloat16", 256, False),
    ("AMD Instinct MI300X", "gpu", "bfloat16", 64, False),
    ("TPU v5", "tpu", "bfloat16", 64, False),
    ("cpu", "cpu", "bfloat16", 64, False),
])  # fmt: skip
def test_it_runs_on_nvidia_gpus_in_half_precision(kind, platform, dtype, features, runs):
    with jax.sharding.use_abstract_mesh(stand_in(kind, platform)):
        assert fused_attention_runs(dtype, features) == runs


def test_gpus_before_ampere_are_left_to_the_compiler(monkeypatch):
    class Old:
        platform, device_kind, compute_capability = "gpu", "NVIDIA Tesla V100", "7.0"

    monkeypatch.setattr(jax, "devices", lambda *args: [Old()])
    assert not fused_attention_runs("bfloat16", 64)
    Old.compute_capability = "8.0"
    assert fused_attention_runs("bfloat16", 64)


@pytest.mark.parametrize(("masked", "lengths"), [
    ("none", (64, 64)), ("none", (65, 130)), ("keys", (1, 3)), ("keys", (65, 130)), ("causal", (64, 64)),
    ("causal", (5, 7)),
])  # fmt: skip
def test_padding_changes_neither_values_nor_gradients(lengths, masked):
    length, keys = lengths
    q, k, v = normal(2, length, 4, 8), normal(2, keys, 2, 8), normal(2, keys, 2, 8)
    mask = {"none": None, "keys": jnp.arange(keys)[None, None, None] < jnp.array([1, keys])[:, None, None, None],
            "causal": (jnp.arange(keys) <= jnp.arange(length)[:, None])[None, None]}[masked]  # fmt: skip

    def plain(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.3, implementation="xla")

    def padded(q, k, v):
        return in_whole_tiles(q, k, v, mask, 0.3, implementation="xla")

    @jax.jit
    def both(q, k, v):
        gradient = lambda f: jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), (0, 1, 2))(q, k, v)  # noqa: E731
        return (plain(q, k, v), *gradient(plain)), (padded(q, k, v), *gradient(padded))

    for expected, got in zip(*both(q, k, v), strict=True):
        # Sums over so many queries are rounded in another order.
        assert np.abs(got - expected).max() <= 2e-6 * max(1, np.abs(expected).max())


def test_the_kernel_gets_whole_tiles_and_the_caller_what_it_asked_for(monkeypatch):
    seen = []

    def kernel(q, k, v, *, mask, scale, implementation):
        seen.append((q.shape[1], k.shape[1], v.shape[1], mask.shape[2:], implementation))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q, k = normal(2, 449, 4, 8), normal(2, 453, 4, 8)
    out = in_whole_tiles(q, k, k, None, 1.0, implementation="cudnn")
    assert seen == [(512, 512, 512, (512, 512), "cudnn")] and out.shape == q.shape


def test_models_that_were_trained_with_it_run_where_it_is_not():
    x = normal(2, 5, 16)
    layer = Attention(2, 8, flash=False, dtype=jnp.bfloat16)
    variables = jitted.init(layer, jax.random.key(0), x)
    np.testing.assert_array_equal(jitted.apply(Attention(2, 8, flash=True, dtype=jnp.bfloat16), variables, x),
                                  jitted.apply(layer, variables, x))  # fmt: skip


def test_it_is_not_used_for_single_queries_or_with_a_bias(monkeypatch):
    used = []

    def kernel(q, *args, **kwargs):
        used.append(q.shape[1])
        return q

    monkeypatch.setattr(attention, "fused_attention_runs", lambda dtype, features: True)
    monkeypatch.setattr(attention, "in_whole_tiles", kernel)
    layer, x = Attention(2, 8, flash=True, dtype=jnp.bfloat16), normal(2, 5, 16)
    variables = jitted.init(layer, jax.random.key(0), x)
    for args in ({}, {"bias": jnp.zeros((2, 5, 5))}):
        jax.eval_shape(lambda x, args=args: layer.apply(variables, x, **args), x)
    jax.eval_shape(lambda x: layer.apply(variables, x[:, :1], x), x)
    assert used == [5, 5], "in init and in the first call"
