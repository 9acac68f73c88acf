import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.position import ContinuousPositionBias, NeighbourConv, depthwise_conv
from tests import jitted


def convolution(x, kernel):
    """The same by the library's grouped convolution; x: [B, T, H, W, D]."""
    return jax.lax.conv_general_dilated(
        x, kernel[:, :, :, None], (1, 1, 1), ((2, 0), (1, 1), (1, 1)), feature_group_count=x.shape[-1],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), precision="highest",
    )  # fmt: skip


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2)])
def test_convolution_and_its_gradients_equal_the_library(frames, axes):
    rng = np.random.default_rng(0)
    x, weight = (jnp.float32(rng.normal(size=(2, frames, 3, 5, 4))) for _ in range(2))
    kernel = jnp.float32(rng.normal(size=(3, 3, 3, 4)))
    move = lambda a: jnp.moveaxis(a, (1, 2, 3), axes)  # noqa: E731
    ours = lambda x, k: jnp.sum(depthwise_conv(move(x), k, axes) * move(weight))  # noqa: E731
    theirs = lambda x, k: jnp.sum(convolution(x, k) * weight)  # noqa: E731
    expected = move(convolution(x, kernel))
    got = jax.jit(lambda x: depthwise_conv(x, kernel, axes))(move(x))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    grads = [jax.jit(jax.grad(f, (0, 1)))(x, kernel) for f in (ours, theirs)]
    for got, expected in zip(*grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_frame_sees_no_later_frame():
    module = NeighbourConv()
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 4, 2))
    params = jitted.init(module, jax.random.key(1), x)
    change = jitted.apply(module, params, x.at[:, 1].add(1.0)) - jitted.apply(module, params, x)
    assert np.abs(change[:, 0]).max() == 0
    assert np.abs(change[:, 1]).max() > 0 and np.abs(change[:, 2]).max() > 0


def test_bias_equals_the_network_on_every_pair_of_cells():
    module, grid = ContinuousPositionBias(dim=8, heads=3), (3, 4)
    params = jax.jit(lambda key: module.init(key, grid))(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1, params)
    got = jax.jit(lambda params: module.apply(params, grid))(params)
    p = params["params"]
    cells = [(r, c) for r in range(3) for c in range(4)]
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            d = np.subtract(a, b).astype(np.float32)
            x = np.sign(d) * np.log(np.abs(d) + 1)
            for layer in ("hidden_0", "hidden_1"):
                x = x @ p[layer]["kernel"] + p[layer]["bias"]
                x = np.where(x > 0, x, 0.1 * x)
            np.testing.assert_allclose(got[:, i, j], x @ p["out"]["kernel"] + p["out"]["bias"], rtol=1e-4, atol=1e-5)
