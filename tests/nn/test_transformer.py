import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.transformer import Block, Transformer
from tests import jitted

SIZES = {"heads": 2, "dim_head": 4, "view": (1, 2, 3)}


def stack(depth=3, **fields):
    module = Transformer(depth, **{**SIZES, **fields})
    x, context = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in ((0, 6), (1, 4)))
    bias = jax.random.normal(jax.random.key(2), (2, 6, 6))
    inputs = {"bias": bias, "context": context if module.cross else None}
    return module, jax.jit(lambda key: module.init(key, x, **inputs))(jax.random.key(3)), x, inputs


def apply(module, params, x, inputs):
    return jax.jit(lambda p: module.apply(p, x, **inputs))(params)


@pytest.mark.parametrize("raw_kv", [False, True])
def test_the_scan_equals_blocks_one_after_another(raw_kv):
    module, params, x, inputs = stack(cross=True, raw_kv=raw_kv)
    expected, block = x, Block(2, 4, (1, 2, 3), (1, 2, 3), True, raw_kv, 4.0, jnp.float32)
    for layer in range(3):
        own = {"params": jax.tree.map(lambda p, layer=layer: p[layer], params["params"]["layers"])}
        expected, _ = jitted.apply(block, own, expected, inputs["bias"], inputs["context"])
    norm = LayerNorm(use_bias=False)
    expected = jitted.apply(norm, {"params": params["params"]["norm_out"]}, expected)
    np.testing.assert_allclose(apply(module, params, x, inputs), expected, rtol=1e-5, atol=1e-6)


def test_raw_keys_and_values_differ_from_normalised_ones():
    module, params, x, inputs = stack(raw_kv=True)
    # Per-token norms that differ: otherwise normalising changes little.
    x = x * jnp.arange(1.0, 7.0)[:, None]
    other = module.copy(raw_kv=False)
    assert np.abs(apply(module, params, x, inputs) - apply(other, params, x, inputs)).max() > 1e-3


def test_recomputation_changes_neither_values_nor_gradients():
    module, params, x, inputs = stack(depth=2)
    loss = lambda m: jax.jit(jax.value_and_grad(lambda p: jnp.sum(m.apply(p, x, **inputs) ** 2)))(params)  # noqa: E731
    plain = loss(module)
    for remat in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                     plain, loss(module.copy(remat=remat)))  # fmt: skip


def test_parameters_are_stacked_on_axis_0_and_float32():
    _, params, _, _ = stack(depth=3, dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(params["params"]["layers"])
    assert {leaf.shape[0] for leaf in leaves} == {3}
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    first, second = params["params"]["layers"]["feedforward"]["up"]["kernel"][:2]
    assert np.abs(first - second).max() > 0, "every layer needs its own initial values"


def test_layer_norm_equals_its_definition():
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 16)).astype(np.float32)
    params = {"params": {"scale": jnp.linspace(0.5, 2, 16), "bias": jnp.linspace(-1, 1, 16)}}
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = expected * np.linspace(0.5, 2, 16) + np.linspace(-1, 1, 16)
    np.testing.assert_allclose(LayerNorm().apply(params, x), expected, rtol=1e-5, atol=1e-5)


def test_without_a_view_masked_tokens_influence_no_other():
    module, params, x, _ = stack(view=None)
    assert "neighbours" not in params["params"]["layers"]
    mask = jnp.arange(6) < jnp.array([[4], [6]])
    run = jax.jit(lambda y: module.apply(params, y, mask=mask))
    got, other = run(x), run(jnp.where(mask[..., None], x, 9.0))
    np.testing.assert_array_equal(np.where(mask[..., None], got, 0), np.where(mask[..., None], other, 0))
    short = jax.jit(lambda y: module.apply(params, y))(x[:1, :4])
    np.testing.assert_allclose(got[:1, :4], short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mlp_ratio", "hidden"), [(4.0, 21), (3.0, 16), (0.5, 2)])
def test_the_width_of_the_feed_forward(mlp_ratio, hidden):
    """Two thirds of the ratio, since the gate takes half as much again."""
    module = Transformer(1, 2, 4, view=None, mlp_ratio=mlp_ratio)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3, 8)))["params"]["layers"]["feedforward"]
    assert shapes["up"]["kernel"].shape == (1, 8, 2 * hidden) and shapes["down"]["kernel"].shape == (1, hidden, 8)
