"""Success rates: Wilson's interval against its definition and published figures, differences against a formula."""

import math

import numpy as np
import pytest

from lapa_jax.sim import scores

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(successes, trials, low, high):
    assert scores.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("trials", [1, 7, 50])
def test_the_ends_are_where_the_observed_rate_is_z_standard_errors_away(trials):
    for successes in range(trials + 1):
        for end in scores.wilson(successes, trials):
            away = abs(successes / trials - end)
            assert away == pytest.approx(Z * math.sqrt(end * (1 - end) / trials), abs=1e-7)


def test_all_and_none_are_mirror_images_and_not_certain():
    assert scores.wilson(0, 10)[0] == 0 and scores.wilson(0, 10)[1] > 0.2
    low, high = scores.wilson(3, 10)
    assert (1 - high, 1 - low) == pytest.approx(scores.wilson(7, 10))
    with pytest.raises(ValueError, match="3 successes of 2"):
        scores.wilson(3, 2)


def test_a_summary_counts_tasks_apart():
    episodes = [{"task": task, "success": success, "steps": steps}
                for task, success, steps in (("b", True, 10), ("a", False, 150), ("b", True, 20), ("b", False, 150))]
    whole, parts = scores.summarize(episodes), scores.by_task(episodes)
    assert (whole["success_rate"], whole["successes"], whole["steps"]) == (0.5, 2, 15)
    assert list(parts) == ["b", "a"] and parts["b"]["success_rate"] == 2 / 3 and parts["a"]["steps"] is None
    assert (parts["b"]["low"], parts["b"]["high"]) == scores.wilson(2, 3)


def test_the_difference_of_two_controllers_on_the_same_starts():
    rng = np.random.default_rng(1)
    one, other = rng.random(400) < 0.6, rng.random(400) < 0.4
    mean, low, high = scores.paired_difference([one], [other])
    paired = one.astype(float) - other
    # With many starts and one seed the bootstrap's interval is that of the normal approximation.
    half = 1.96 * paired.std() / 20
    assert mean == pytest.approx(paired.mean()) and low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)
    assert scores.paired_difference([one, one], [one, one]) == (0, 0, 0)


def test_seeds_that_differ_widen_the_interval_of_a_difference():
    always, never = [True] * 50, [False] * 50
    assert scores.paired_difference([always, never], [never, never]) == (0.5, 0, 1)
    with pytest.raises(ValueError, match="starts against"):
        scores.paired_difference([always], [never[:49]])


def test_the_interval_of_a_rate_knows_that_seeds_differ():
    rng = np.random.default_rng(0)
    alike = [rng.random(50) < 0.5 for _ in range(5)]
    apart = [rng.random(50) < rate for rate in (0.1, 0.3, 0.5, 0.7, 0.9)]
    (mean, low, high), (_, wider_low, wider_high) = map(scores.clustered_mean, (alike, apart))
    assert mean == pytest.approx(np.mean(alike)) and low < mean < high
    assert wider_high - wider_low > 2 * (high - low)
