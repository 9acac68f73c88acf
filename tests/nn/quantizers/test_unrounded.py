"""No quantiser: vectors as they are, noise of the stated size in training alone, and bits by the entropies."""

import jax
import numpy as np
import pytest
from scipy import stats

from lapa_jax.nn.quantizers.unrounded import Unrounded, capacity


def test_training_adds_noise_of_the_stated_size_and_evaluation_none():
    x = np.random.default_rng(0).normal(size=(500, 4, 8)).astype(np.float32)
    quantizer, rngs = Unrounded(0.25), {"noise": jax.random.key(0)}
    np.testing.assert_array_equal(quantizer.apply({}, x, train=False), x)
    np.testing.assert_array_equal(quantizer.nearest(x), x)
    np.testing.assert_array_equal(Unrounded().apply({}, x, train=True), x)
    noise = np.asarray(quantizer.apply({}, x, train=True, rngs=rngs)) - x
    assert stats.kstest(noise.ravel() / 0.25, "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise.ravel(), x.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("noise", [0.05, 0.125, 1.0])
def test_the_capacity_is_what_the_noise_leaves_of_the_entropy(noise):
    """I(x; x + n) = h(x + n) - h(n) of Gaussian x, whose entropies scipy knows."""
    entropy = stats.norm(scale=np.sqrt(1 + noise**2)).entropy() - stats.norm(scale=noise).entropy()
    assert capacity(noise) == pytest.approx(entropy / np.log(2))
    assert capacity(0.125) == pytest.approx(3, abs=0.02), "the three bits of one of eight codes"
