import jax
import numpy as np
import pytest

from lapa_jax.nn.norm import RunningNorm, RunningWhitening
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


def correlated(seed, examples=512):
    """[examples, 2, 2] with four features of other sizes and strong correlations."""
    mix = np.random.default_rng(7).normal(size=(4, 4)) * [5.0, 1.0, 2.0, 0.5]
    return (np.random.default_rng(seed).normal(size=(examples, 4)) @ mix + 3.0).reshape(-1, 2, 2).astype(np.float32)


def test_whitened_features_are_uncorrelated_and_say_what_those_before_do_not():
    x, module = correlated(0), RunningWhitening()
    y, variables = module.init_with_output(jax.random.key(0), x, train=True)
    flat = np.asarray(y).reshape(-1, 4)
    np.testing.assert_allclose(np.cov(flat.T, bias=True), np.eye(4), atol=0.02)
    # The residual of a regression on the features before it, which is another way to the same numbers.
    features = x.reshape(-1, 4) - x.reshape(-1, 4).mean(0)
    for i in range(4):
        left = features[:, i] - features[:, :i] @ np.linalg.lstsq(features[:, :i], features[:, i])[0]
        assert np.corrcoef(left, flat[:, i])[0, 1] > 0.99
    np.testing.assert_allclose(jitted.apply(module, variables, x, train=False), y, rtol=1e-3, atol=1e-3)


def test_whitening_in_evaluation_is_by_what_was_seen():
    module = RunningWhitening(momentum=0.5)
    variables = jitted.init(module, jax.random.key(0), correlated(0), train=True)
    _, updated = jitted.apply(module, variables, correlated(1), train=True, mutable=["codebook"])
    expected = np.mean([np.cov(correlated(seed).reshape(-1, 4).T, bias=True) for seed in (0, 1)], axis=0)
    np.testing.assert_allclose(updated["codebook"]["covariance"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("module", [RunningNorm(per_position=True), RunningWhitening()])
def test_evaluation_follows_features_that_shrink_while_a_network_learns(module):
    def passes(i):
        return 0.992**i * correlated(i, examples=32)

    variables = jitted.init(module, jax.random.key(0), passes(0), train=True)
    for i in range(1, 160):
        _, variables = jitted.apply(module, variables, passes(i), train=True, mutable=["codebook"])
    y = np.asarray(jitted.apply(module, variables, 0.992**160 * correlated(500), train=False)).reshape(-1, 2, 2)
    size = np.mean(np.square(y), axis=(0, 2)) if isinstance(module, RunningNorm) else np.var(y, axis=0)
    assert (0.65 < size).all() and (size < 1.35).all()


def test_a_direction_that_hardly_varies_is_not_blown_up():
    x = correlated(0)
    x[:, 1, 1] = 2 * x[:, 0, 0] + 1e-4 * x[:, 1, 1]
    y, _ = RunningWhitening().init_with_output(jax.random.key(0), x, train=True)
    assert np.isfinite(y).all() and np.std(y[:, 1, 1]) < 0.1
    still, _ = RunningWhitening().init_with_output(jax.random.key(0), np.zeros_like(x), train=True)
    np.testing.assert_array_equal(still, 0)


@pytest.mark.parametrize("module", [RunningNorm(), RunningNorm(per_position=True), RunningWhitening()])
def test_statistics_may_be_those_of_the_first_examples(module):
    x, others = correlated(0), 100 * correlated(1, examples=8)
    alone, variables = module.init_with_output(jax.random.key(0), x, train=True)
    both, state = module.init_with_output(jax.random.key(0), np.concatenate([x, others]), train=True, count=len(x))
    np.testing.assert_allclose(both[: len(x)], alone, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, variables)
    assert np.abs(both[len(x) :]).mean() > 10
