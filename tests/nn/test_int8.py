"""8-bit kernels: the rounding and the product against numpy, stacked layers, and that they stay small in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.policies.vision_language import Projector
from lapa_jax.nn import int8
from lapa_jax.nn.decoder import Decoder
from lapa_jax.nn.linear import Linear

RNG = np.random.default_rng(0)


def by_numpy(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column by column, in float64."""
    integers, scales = np.zeros(kernel.shape, np.int64), np.zeros((*kernel.shape[:-2], kernel.shape[-1]))
    for place in np.ndindex(scales.shape):
        column = kernel[(*place[:-1], slice(None), place[-1])].astype(np.float64)
        scales[place] = np.abs(column).max() / 127 or 1.0
        integers[(*place[:-1], slice(None), place[-1])] = np.round(column / scales[place])
    return integers, scales


@pytest.mark.parametrize("shape", [(12, 5), (3, 12, 5)])
def test_columns_are_rounded_to_255_steps(shape):
    kernel = (RNG.normal(size=shape) * np.arange(1, 6)).astype(np.float32)
    kernel[..., 2] = 0
    integers, scales = (np.asarray(x) for x in int8.quantize(kernel))
    expected, steps = by_numpy(kernel)
    assert integers.dtype == np.int8 and scales.dtype == np.float32
    np.testing.assert_array_equal(integers, expected)
    np.testing.assert_allclose(scales, steps, rtol=1e-6)
    assert (np.abs(integers).max(-2)[..., [0, 1, 3, 4]] == 127).all() and (integers[..., 2] == 0).all()
    assert (np.abs(integers * scales[..., None, :] - kernel) <= scales[..., None, :] * 0.5001).all()


@pytest.mark.parametrize(("dtype", "near"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_a_linear_layer_multiplies_by_the_dequantised_kernel(dtype, near):
    kernel, bias = RNG.normal(size=(24, 7)).astype(np.float32), RNG.normal(size=7).astype(np.float32)
    x = RNG.normal(size=(2, 3, 24)).astype(np.float32)
    x = np.asarray(jnp.asarray(x, dtype), np.float32)
    params = int8.quantize_layers({"a": {"kernel": kernel, "bias": bias}}, ["a"])["a"]
    assert sorted(params) == ["bias", "kernel_int8", "kernel_scale"]
    y = Linear(7, dtype=dtype).apply({"params": params}, x)
    integers, scales = by_numpy(kernel)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), x @ (integers * scales) + bias, rtol=near, atol=near)


@pytest.fixture(scope="module")
def stack():
    """A decoder of 16 blocks: (apply(variables), float variables, int8 variables)."""
    model = Decoder(depth=16, heads=2, dim_head=32, hidden=128)
    x, positions = RNG.normal(size=(2, 4, 64)).astype(np.float32), np.zeros((2, 4), np.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, positions=positions))["params"]
    params = tree.map_named(lambda _, leaf: (0.1 * RNG.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
    layers = [name.removesuffix("/kernel") for name in tree.flatten(params) if name.endswith("/kernel")]
    apply = jax.jit(lambda params: model.apply({"params": params}, x, positions=positions))
    return apply, params, int8.quantize_layers(params, layers)


def test_stacked_layers_take_their_own_scales(stack):
    apply, params, small = stack
    flat = tree.flatten(params)
    for name, leaf in flat.items():
        if name.endswith("/kernel"):
            integers, scales = by_numpy(leaf)
            flat[name] = (integers * scales[:, None]).astype(np.float32)
    np.testing.assert_allclose(apply(small), apply(tree.unflatten(flat)), rtol=0, atol=5e-5)
    assert np.abs(apply(small) - apply(params)).max() > 3e-4


def test_integers_stay_integers_while_the_program_runs(stack):
    """Converted one layer at a time: a copy of the whole stack as floats would show in the program's own memory."""
    apply, params, small = stack
    whole, little = (apply.lower(p).compile().memory_analysis() for p in (params, small))
    assert little.argument_size_in_bytes < 0.3 * whole.argument_size_in_bytes
    assert little.temp_size_in_bytes < 0.2 * whole.argument_size_in_bytes


def test_what_is_expected_follows_what_was_found(stack):
    _, params, small = stack
    assert int8.is_int8(small) and not int8.is_int8(params)
    assert tree.diff(int8.expected(params, small), small) == ""
    assert tree.diff(int8.expected(params, params), params) == ""
    broken = tree.flatten(small)
    broken.pop("layers/attention/out/kernel_scale")
    assert "missing: layers/attention/out/kernel_scale" in tree.diff(
        int8.expected(params, tree.unflatten(broken)), tree.unflatten(broken)
    )


def test_layers_are_found_and_chosen_by_their_whole_path():
    class Model(Projector):
        def example(self, rows):
            return np.zeros((rows, 4), np.float32)

        def __call__(self, batch, *, train):
            return super().__call__(batch)

    layers = int8.linear_layers(Model(8, "openvla", jnp.float32))
    assert list(layers) == ["hidden", "out", "widen"] and set(layers.values()) == {jnp.dtype("float32")}
    assert int8.choose(layers, "hidden|out") == ["hidden", "out"]
    with pytest.raises(UserError, match="'hid' matches no linear layer; there are hidden, out, widen"):
        int8.choose(layers, "hid")
    with pytest.raises(UserError, match="no regular expression"):
        int8.choose(layers, "(")
