import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.attention import Attention, attention_on_cpu
from tests import jitted


def reference(params, x, context, bias, *, heads, dim_head, cosine):
    """One query at a time, in numpy and float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    split = lambda name, y: (y @ p[name]["kernel"]).reshape(len(y), heads, dim_head)  # noqa: E731
    q, k, v = split("query", x), split("key", context), split("value", context)
    nulls = 0
    if "null_key" in p:
        nulls = len(p["null_key"])
        k, v = np.concatenate([p["null_key"], k]), np.concatenate([p["null_value"], v])
    scale = dim_head**-0.5
    if cosine:
        unit = lambda y: y / np.linalg.norm(y, axis=-1, keepdims=True)  # noqa: E731
        q, k, scale = unit(q) * p["query_scale"], unit(k) * p["key_scale"], 8.0
    out = np.zeros_like(q)
    for head in range(heads):
        for i in range(len(q)):
            logits = k[:, head] @ q[i, head] * scale
            if bias is not None:
                logits[nulls:] += bias[head, i]
            weights = np.exp(logits - logits.max())
            out[i, head] = weights / weights.sum() @ v[:, head]
    return out.reshape(len(q), -1) @ p["out"]["kernel"]


@pytest.mark.parametrize(("cosine", "null_kv", "cross"), [(False, 0, False), (False, 2, True), (True, 0, True),
                                                          (True, 2, False)])  # fmt: skip
def test_matches_one_query_at_a_time(cosine, null_kv, cross):
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 5, 12)), rng.normal(size=(2, 3, 7)) if cross else None
    bias = None if cross else rng.normal(size=(3, 5, 5))
    module = Attention(heads=3, dim_head=4, cosine=cosine, null_kv=null_kv)
    args = jnp.float32(x), None if context is None else jnp.float32(context)
    params = jitted.init(module, jax.random.key(0), *args)["params"]
    # Scales other than one, so that a forgotten one shows.
    params = jax.tree.map(lambda p: p * 1.3 if p.ndim == 1 else p, params)
    got = jitted.apply(module, {"params": params}, *args, bias=None if bias is None else jnp.float32(bias))
    for row in range(2):
        expected = reference(params, x[row], x[row] if context is None else context[row], bias,
                             heads=3, dim_head=4, cosine=cosine)  # fmt: skip
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys", "with_bias", "with_mask"), [
    (2, 2, True, False), (2, 2, False, False), (1, 4, False, False), (2, 2, False, True), (5, 3, True, True),
    (6, 6, True, False)])  # fmt: skip
def test_the_form_for_cpus_and_its_gradients_are_those_of_jax(queries, keys, with_bias, with_mask):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.float32(rng.normal(size=shape))  # noqa: E731
    q, k, v = draw(3, queries, 2, 8), draw(3, keys, 2, 8), draw(3, keys, 2, 8)
    bias = draw(1, 2, queries, keys) if with_bias else None
    # The last row sees nothing at all, whose values are then a mean.
    mask = jnp.arange(keys) < jnp.array([keys, 1, 0])[:, None, None, None] if with_mask else None
    weight = draw(3, queries, 2, 8)
    ours = lambda q, k, v, bias: attention_on_cpu(q, k, v, bias, mask, 0.3)  # noqa: E731
    jaxs = lambda q, k, v, bias: jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=0.3)  # noqa: E731
    np.testing.assert_allclose(ours(q, k, v, bias), jaxs(q, k, v, bias), rtol=1e-5, atol=1e-6)
    wanted = (0, 1, 2, 3) if with_bias else (0, 1, 2)
    grads = [jax.jit(jax.grad(lambda *args: (f(*args) * weight).sum(), wanted))(q, k, v, bias) for f in (ours, jaxs)]  # noqa: B023
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_zero_token_is_finite():
    module = Attention(heads=2, dim_head=4, cosine=True)
    x = jnp.zeros((1, 3, 8)).at[0, 1].set(1.0)
    params = jitted.init(module, jax.random.key(0), x)
    grads = jax.jit(jax.grad(lambda p: module.apply(p, x).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_bfloat16_computation_keeps_float32_parameters():
    module = Attention(heads=2, dim_head=4, cosine=True, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (1, 3, 8))
    params = jitted.init(module, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    got, exact = module.apply(params, x), jitted.apply(module.copy(dtype=jnp.float32), params, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), exact, atol=0.02)


@pytest.mark.parametrize(("null_kv", "cross"), [(0, True), (2, False)])
def test_masked_keys_are_as_if_they_were_not_there(null_kv, cross):
    rng = np.random.default_rng(0)
    x, context = jnp.float32(rng.normal(size=(2, 5, 12))), jnp.float32(rng.normal(size=(2, 4, 12)))
    module = Attention(heads=3, dim_head=4, cosine=True, null_kv=null_kv)
    keys = context if cross else x
    params = jitted.init(module, jax.random.key(0), x, keys)
    mask = jnp.arange(keys.shape[1]) < jnp.array([[2], [3]])
    got = jitted.apply(module, params, x, keys, mask=mask)
    for row, length in enumerate((2, 3)):
        alone = jitted.apply(module, params, x[row : row + 1], keys[row : row + 1, :length])
        np.testing.assert_allclose(got[row], alone[0], rtol=1e-4, atol=1e-5)
    other = jitted.apply(module, params, x, jnp.where(mask[..., None], keys, 1e4), mask=mask)
    np.testing.assert_array_equal(got, other)
