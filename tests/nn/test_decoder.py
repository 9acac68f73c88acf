"""The policies' transformer against a reimplementation in numpy, token by token, and its cache against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.decoder import Decoder
from lapa_jax.nn.position import rotate
from tests import jitted

DEPTH, HEADS, KV, DIM, HIDDEN = 2, 4, 2, 6, 10


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def turn(x, position, base=10000.0):
    """One head's features at a position, as complex numbers: an independent way to rotate."""
    half = len(x) // 2
    angle = position * base ** (-np.arange(half) / half)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def reference(params, x, positions, mask):
    """One sequence [L, D], one query at a time, in float64."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for layer in range(DEPTH):
        p = jax.tree.map(lambda a, layer=layer: a[layer], params["layers"])
        y = rms(x, p["attention_norm"]["scale"])
        q = (y @ p["attention"]["query"]["kernel"]).reshape(len(x), HEADS, DIM)
        k = (y @ p["attention"]["key"]["kernel"]).reshape(len(x), KV, DIM)
        v = (y @ p["attention"]["value"]["kernel"]).reshape(len(x), KV, DIM)
        out = np.zeros_like(q)
        for i in range(len(x)):
            for head in range(HEADS):
                group = head // (HEADS // KV)
                seen = np.flatnonzero(mask[i])
                query = turn(q[i, head], positions[i])
                logits = np.array([turn(k[j, group], positions[j]) @ query for j in seen]) / np.sqrt(DIM)
                weights = np.exp(logits - logits.max())
                out[i, head] = weights / weights.sum() @ v[seen, group]
        x = x + out.reshape(len(x), -1) @ p["attention"]["out"]["kernel"]
        y, f = rms(x, p["feedforward_norm"]["scale"]), p["feedforward"]
        gate = y @ f["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ f["up"]["kernel"])) @ f["down"]["kernel"]
    return rms(x, params["norm_out"]["scale"])


@pytest.fixture(scope="module")
def built():
    rng = np.random.default_rng(0)
    module = Decoder(DEPTH, HEADS, DIM, HIDDEN, kv_heads=KV)
    x = rng.normal(size=(2, 7, 16)).astype(np.float32)
    positions = np.broadcast_to(np.arange(7), (2, 7))
    mask = np.tril(np.ones((7, 7), bool))[None] & (rng.random((2, 7, 7)) > 0.2) | np.eye(7, dtype=bool)
    mask[1, :3, :3] = True  # a prefix that sees itself whole
    params = jitted.init(module, jax.random.key(0), x, positions=positions)["params"]
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), params)
    return module, params, x, positions, mask


def test_matches_one_query_at_a_time(built):
    module, params, x, positions, mask = built
    got = jitted.apply(module, {"params": params}, x, positions=positions, mask=jnp.asarray(mask))
    for row in range(2):
        np.testing.assert_allclose(got[row], reference(params, x[row].astype(np.float64), positions[row], mask[row]),
                                   atol=2e-5)  # fmt: skip


@pytest.mark.parametrize("pieces", [(1,) * 7, (3, 1, 2, 1), (7,)])
def test_the_cache_gives_what_the_whole_gives(built, pieces):
    module, params, x, positions, mask = built
    mask = mask & np.tril(np.ones((7, 7), bool))
    whole = jitted.apply(module, {"params": params}, x, positions=positions, mask=jnp.asarray(mask))
    cache, at, parts = module.new_cache(2, 9), 0, []
    for count in pieces:
        rows = slice(at, at + count)
        seen = jnp.pad(jnp.asarray(mask[:, rows]), ((0, 0), (0, 0), (0, 2)))
        part, cache = jitted.apply(module, {"params": params}, x[:, rows], positions=positions[:, rows], mask=seen,
                                   cache=cache, at=jnp.int32(at))  # fmt: skip
        parts.append(part)
        at += count
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-6)


def test_rotary_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    product = lambda i, j: float(jnp.sum(rotate(q, jnp.array([[i]]), 100.0) * rotate(k, jnp.array([[j]]), 100.0)))  # noqa: E731
    assert product(5, 2) == pytest.approx(product(13, 10), abs=1e-5)
    assert abs(product(5, 2) - product(5, 3)) > 1e-3


def test_recomputation_changes_no_gradient(built):
    module, params, x, positions, mask = built

    def gradient(remat):
        loss = lambda p: jnp.sum(module.clone(remat=remat).apply({"params": p}, x, positions=positions, mask=mask) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient("none"), gradient("full"))
