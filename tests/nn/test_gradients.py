"""`mesh.grad_dtype`: gradients of kernels are rounded after everything is added up, not before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import gradients
from lapa_jax.nn import lora
from lapa_jax.nn.linear import Linear, product

RNG = np.random.default_rng(0)
X, G = (jnp.asarray(RNG.normal(size=(64, width)), jnp.bfloat16) for width in (8, 5))
KERNEL = jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32)


def vjp(dtype):
    """The product, and its gradients to x and to the kernel for the cotangent G."""
    with gradients.in_dtype(dtype):
        y, back = jax.vjp(lambda x, kernel: product(x, kernel), X, KERNEL)
    return y, *back(G)


def test_gradients_of_kernels_are_those_of_float64():
    exact = np.float64(X).T @ np.float64(G)
    (y, dx, kernel), (y32, dx32, kernel32) = vjp(None), vjp("float32")
    np.testing.assert_array_equal(y, y32)
    np.testing.assert_array_equal(dx, dx32)
    assert dx32.dtype == jnp.bfloat16 and kernel32.dtype == kernel.dtype == jnp.float32
    assert np.abs(kernel32 - exact).max() < 1e-5 < 1e-3 < np.abs(kernel - exact).max()


@pytest.mark.parametrize("dtype", gradients.CHOICES)
def test_devices_send_that_type(dtype):
    """A device's part is what its product gives: nothing of the kernel's shape is bfloat16 on its way."""
    trace = str(jax.make_jaxpr(lambda x: vjp(dtype)[2])(X))
    assert ("bf16[8,5] = dot_general" in trace or "bf16[5,8] = dot_general" in trace) == (dtype is None)


def test_layers_and_adapters_follow():
    model = Linear(5, dtype=jnp.bfloat16)

    def grads(dtype):
        def loss(params):
            with lora.adapters(2, 1.0, ".*"):
                return jnp.sum(jnp.sin(model.apply({"params": params}, X).astype(jnp.float32)))

        with lora.adapters(2, 1.0, ".*"):
            params = model.init(jax.random.key(0), X)["params"]
        params["lora_b"] = jnp.ones_like(params["lora_b"])
        with gradients.in_dtype(dtype):
            return jax.grad(loss)(params)

    rounded = lambda x: np.asarray(x == x.astype(jnp.bfloat16).astype(jnp.float32)).mean()  # noqa: E731
    half, full = grads(None), grads("float32")
    for name in ("kernel", "lora_a", "lora_b"):
        assert rounded(half[name]) == 1 and rounded(full[name]) < 0.2, name
        np.testing.assert_allclose(full[name], half[name], rtol=0.02, atol=0.05)


def test_models_in_float32_are_left_alone():
    with gradients.in_dtype("float32"):
        trace = str(jax.make_jaxpr(lambda x: product(x, KERNEL))(X.astype(jnp.float32)))
    assert "custom_vjp" not in trace
