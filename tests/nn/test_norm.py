import jax
import numpy as np

from lapa_jax.nn.norm import RunningNorm
from tests import jitted


def batch(seed, scale=3.0):
    return (np.random.default_rng(seed).normal(5.0, scale, (64, 2, 3))).astype(np.float32)


def test_training_normalises_by_the_batch_and_evaluation_by_what_was_seen():
    module = RunningNorm(momentum=0.5)
    y, variables = module.init_with_output(jax.random.key(0), batch(0), train=True)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(y))), 1, rtol=1e-4)
    # The first statistics are those of the first batch.
    np.testing.assert_allclose(jitted.apply(module, variables, batch(0), train=False), y, rtol=1e-4, atol=1e-5)

    _, updated = jitted.apply(module, variables, batch(1), train=True, mutable=["codebook"])
    expected = (batch(0).mean(0) + batch(1).mean(0)) / 2
    np.testing.assert_allclose(updated["codebook"]["mean"], expected, rtol=1e-5)
    spread = [np.sqrt(np.mean((b - b.mean(0)) ** 2)) for b in (batch(0), batch(1))]
    np.testing.assert_allclose(updated["codebook"]["scale"], np.mean(spread), rtol=1e-4)


def test_the_scale_is_one_for_all_features():
    x = batch(0) * np.float32([1.0, 10.0, 1.0])
    module = RunningNorm()
    y, _ = module.init_with_output(jax.random.key(0), x, train=True)
    ratio = y[..., 1].std() / y[..., 0].std()
    assert 8 < ratio < 12, "the relative size of features is information"


def test_scaled_per_position_each_position_has_unit_size():
    x = np.random.default_rng(3).normal(size=(64, 3, 5)) * np.array([1.0, 10.0, 0.1])[:, None] + 2.0
    module = RunningNorm(per_position=True)
    variables = jitted.init(module, jax.random.key(0), x, train=True)
    y, _ = jitted.apply(module, variables, x, train=True, mutable=["codebook"])
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(y), axis=(0, 2))), 1.0, rtol=1e-4)
    np.testing.assert_allclose(jitted.apply(module, variables, x, train=False), y, rtol=1e-4, atol=1e-4)
