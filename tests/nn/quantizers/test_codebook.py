"""Distances to codes and first codes hold at any scale of the data, and far from zero, checked in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.quantizers.codebook import kmeans, nearest_code, squared_distances


def _exact(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Squared distances f64 [M, K]."""
    return np.square(x[:, None].astype(np.float64) - codes[None].astype(np.float64)).sum(-1)


def _vectors(count: int, scale: float, offset: float) -> np.ndarray:
    drawn = np.random.default_rng(count).normal(size=(count, 6))
    return ((drawn + offset) * scale).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_distances_and_nearest_codes_are_those_of_float64(scale, offset):
    x, codes = _vectors(200, scale, offset), _vectors(30, scale, offset)
    exact = _exact(x, codes)
    found = squared_distances(jnp.asarray(x), jnp.asarray(codes))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    nearest = np.asarray(nearest_code(jnp.asarray(x), jnp.asarray(codes)))
    np.testing.assert_allclose(exact[np.arange(len(x)), nearest], exact.min(1), rtol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 1000.0])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_centres_of_two_far_clusters_lie_within_them(size, spread):
    clusters = [_vectors(50, spread, 0.0) + 1e6, _vectors(51, spread, 0.0) - 1e6]
    centres = np.asarray(kmeans(jax.random.key(0), jnp.asarray(np.concatenate(clusters)), size))
    limits = [(cluster.min(0) - 1, cluster.max(0) + 1) for cluster in clusters]
    inside = np.array([[(low <= c).all() and (c <= high).all() for low, high in limits] for c in centres])
    assert (inside.sum(1) == 1).all() and inside.any(0).all()
    if size == 2:
        means = np.array([cluster.astype(np.float64).mean(0) for cluster in clusters])
        # 0.1 is one and a half steps of float32 at 1e6.
        assert np.sqrt(_exact(means.astype(np.float32), centres).min(1)).max() < 0.1 * np.sqrt(6)


@pytest.mark.parametrize("exponent", [-20, 20])
def test_scaled_vectors_have_scaled_centres(exponent):
    x = jnp.asarray(_vectors(100, 1.0, 0.5))
    scaled = kmeans(jax.random.key(3), x * 2.0**exponent, 8)
    np.testing.assert_allclose(scaled, kmeans(jax.random.key(3), x, 8) * 2.0**exponent, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_centres_of_equal_vectors_are_parted_and_stay_close(value):
    centres = np.asarray(kmeans(jax.random.key(0), jnp.full((10, 3), value), 5))
    assert len(np.unique(centres, axis=0)) == 5
    assert np.abs(centres - value).max() <= 1e-4 * max(value, 1.0)
    assert (centres[0] == value).all()


def test_centres_that_do_not_coincide_are_means_of_their_vectors():
    x = _vectors(300, 1.0, 0.0)
    centres = np.asarray(kmeans(jax.random.key(1), jnp.asarray(x), 4, iterations=100))
    nearest = _exact(x, centres).argmin(1)
    means = np.stack([x[nearest == k].mean(0) for k in range(4)])
    np.testing.assert_allclose(centres, means, atol=1e-5)
