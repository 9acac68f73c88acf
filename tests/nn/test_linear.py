"""The linear layer where a single row is multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn import linear
from lapa_jax.nn.int8 import quantize


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_a_sum_of_weighted_rows_is_the_product(stored):
    kernel = jax.random.normal(jax.random.key(0), (96, 40))
    x = jax.random.normal(jax.random.key(1), (1, 96)).astype(jnp.bfloat16)
    given = quantize(kernel)[0] if stored == "int8" else kernel.astype(stored)
    expected = np.asarray(x, np.float64) @ np.asarray(given.astype(jnp.bfloat16), np.float64)
    out = linear._weighted_sum(x, given)
    assert out.dtype == jnp.float32 and out.shape == (1, 40)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
def test_one_row_gives_the_same_layer_either_way(monkeypatch, int8):
    layer = linear.Linear(24, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (1, 1, 64))
    variables = layer.init(jax.random.key(0), x)
    if int8:
        kernel, scale = quantize(variables["params"]["kernel"])
        variables = {"params": {"bias": variables["params"]["bias"], "kernel_int8": kernel, "kernel_scale": scale}}
    expected = layer.apply(variables, x)
    calls = []
    monkeypatch.setattr(linear, "_is_one_row_on_gpu", lambda x: calls.append(x.shape) or x.shape[0] == 1)
    np.testing.assert_allclose(layer.apply(variables, x).astype(np.float32), expected.astype(np.float32), rtol=2**-7)
    assert calls == [(1, 64)]
    batch = jnp.tile(x, (3, 1, 1))
    np.testing.assert_allclose(layer.apply(variables, batch)[2], expected[0], rtol=2**-7)
