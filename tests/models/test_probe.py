import numpy as np
import pytest

from lapa_jax.models import probe

RNG = np.random.default_rng(0)
EPISODE = np.repeat(np.arange(20), 20)


def test_codes_that_determine_the_action_score_high_and_unrelated_ones_do_not():
    codes = RNG.integers(0, 8, (400, 4))
    table = RNG.normal(size=(4, 8, 2))
    action = sum(table[i, codes[:, i]] for i in range(4))
    found = probe.probe_codes(codes, action, EPISODE, 8)
    assert found.r2 > 0.95 and found.prediction.shape == (400, 2)
    np.testing.assert_array_equal(found.scored, EPISODE % 2 == 1)
    assert probe.probe_codes(codes, RNG.normal(size=(400, 2)), EPISODE, 8).r2 < 0.05


def test_what_holds_on_fitted_episodes_only_does_not_count():
    codes = RNG.integers(0, 8, (400, 1))
    action = np.where(EPISODE[:, None] % 2 == 0, codes, 7 - codes).astype(float)
    assert probe.probe_codes(codes, action, EPISODE, 8).r2 < -1


def test_ridge_equals_least_squares_with_penalty_rows():
    x, y = RNG.normal(size=(400, 3)), RNG.normal(size=(400, 2))
    found = probe.probe(x, y, EPISODE, penalty=5.0)
    fit = EPISODE % 2 == 0
    mean_x, mean_y = x[fit].mean(0), y[fit].mean(0)
    rows = np.concatenate([x[fit] - mean_x, np.sqrt(5.0) * np.eye(3)])
    weights = np.linalg.lstsq(rows, np.concatenate([y[fit] - mean_y, np.zeros((3, 2))]), rcond=None)[0]
    np.testing.assert_allclose(found.prediction, (x - mean_x) @ weights + mean_y, rtol=1e-8)


def test_a_dimension_that_does_not_vary_has_no_score():
    codes = RNG.integers(0, 8, (400, 1))
    action = np.concatenate([codes, np.full((400, 1), 3)], 1).astype(float)
    found = probe.probe_codes(codes, action, EPISODE, 8)
    assert np.isnan(found.r2_per_dimension[1]) and found.r2 == pytest.approx(found.r2_per_dimension[0])


def test_without_two_halves_there_is_no_probe():
    x, y = RNG.normal(size=(10, 3)), RNG.normal(size=(10, 2))
    assert probe.probe(x, y, np.zeros(10, int), 1.0) is None
    assert probe.probe(x, y * 0, np.arange(10), 1.0) is None


def test_delta_probe_does_not_depend_on_scale_or_offset():
    delta = RNG.normal(size=(400, 4, 3))
    action = delta.reshape(400, -1) @ RNG.normal(size=(12, 2))
    plain = probe.probe_delta(delta, action, EPISODE).r2
    assert plain > 0.95
    assert probe.probe_delta(delta * 1e3 + 50, action, EPISODE).r2 == pytest.approx(plain, abs=1e-4)


def test_a_small_network_reads_what_codes_say_only_together():
    episode = np.repeat(np.arange(40), 30)
    codes = RNG.integers(0, 2, (1200, 2))
    together = (codes[:, 0] ^ codes[:, 1])[:, None] + np.array([0.0, 5.0])  # an exclusive or, of two numbers
    action = together + 0.1 * RNG.normal(size=together.shape)
    assert probe.probe_codes(codes, action, episode, 2).r2 < 0.1
    network = probe.mlp_probe_codes(codes, action, episode, 2)
    assert network.r2 > 0.9
    np.testing.assert_array_equal(network.scored, episode % 2 == 1)
    scored = action[network.scored]
    residual = np.sum((scored - network.prediction[network.scored]) ** 2, 0)
    np.testing.assert_allclose(network.r2_per_dimension, 1 - residual / np.sum((scored - scored.mean(0)) ** 2, 0))
    # The scored half plays no part in fitting.
    action[network.scored] = 0
    np.testing.assert_array_equal(probe.mlp_probe_codes(codes, np.where(network.scored[:, None], action + RNG.normal(
        size=action.shape), action), episode, 2).prediction, network.prediction)  # fmt: skip


def test_the_small_network_finds_nothing_where_there_is_nothing():
    episode, codes = np.repeat(np.arange(40), 30), RNG.integers(0, 8, (1200, 4))
    assert -0.2 < probe.mlp_probe_codes(codes, RNG.normal(size=(1200, 2)), episode, 8).r2 < 0.05
    assert probe.mlp_probe_codes(codes[:40], RNG.normal(size=(40, 2)), np.arange(40) % 2, 8) is None
