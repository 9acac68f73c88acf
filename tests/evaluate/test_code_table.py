"""Figures of codes against actions, by other formulas and on codes whose meaning is known."""

import collections

import numpy as np
import pytest

from lapa_jax.evaluate.latent_actions import code_table


def planted(rows=2000, seed=0):
    """Codes [M, 2] of four values that are drawn at random, actions of two numbers, one told by each, and episodes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (rows, 2))
    return codes, codes * [1.0, 10.0] + rng.normal(0, 1e-3, (rows, 2)), np.arange(rows) % 10


def test_information_is_that_of_entropies():
    rng = np.random.default_rng(1)
    a, noise = rng.integers(0, 5, 400), rng.integers(0, 3, 400)
    b = np.where(rng.random(400) < 0.5, a % 3, noise)
    both = np.unique(np.stack([a, b], 1), axis=0, return_inverse=True)[1].ravel()
    by_entropies = code_table.entropy(a) + code_table.entropy(b) - code_table.entropy(both)
    assert code_table.information(a, b) == pytest.approx(by_entropies)
    assert code_table.entropy(np.arange(8)) == pytest.approx(3) and code_table.entropy(np.zeros(8, int)) == 0


def test_the_variance_left_is_one_minus_the_adjusted_r2_of_group_means():
    rng = np.random.default_rng(2)
    groups = rng.choice([0, 2, 3], 60)
    rows = rng.normal(size=(60, 2)) + groups[:, None]
    rows -= rows.mean(0)
    hot = np.eye(4)[groups][:, [0, 2, 3]]
    residual = rows - hot @ np.linalg.lstsq(hot, rows, rcond=None)[0]
    r2 = 1 - (residual**2).sum() / (rows**2).sum()
    assert code_table.variance_left(groups, rows) == pytest.approx((1 - r2) * 59 / 57)
    assert np.isnan(code_table.variance_left(np.arange(60), rows))


def test_the_lookup_is_counted_on_rows_that_it_was_not_made_of():
    rng = np.random.default_rng(4)
    groups, fitted = rng.choice([0, 1, 5, 6], 300), np.arange(300) < 200
    clusters = np.where(rng.random(300) < 0.6, groups % 3, rng.integers(0, 3, 300))
    groups[groups == 6] = np.where(fitted[groups == 6], 1, 6)  # a code that no fitted row has
    most = lambda rows: collections.Counter(rows).most_common(1)[0][0]  # noqa: E731
    of_all = most(clusters[fitted])
    guesses = {g: most(clusters[fitted & (groups == g)]) for g in (0, 1, 5)} | {6: of_all}
    right = np.mean([guesses[g] == c for g, c in zip(groups[200:], clusters[200:])])
    assert code_table.lookup(groups, clusters, fitted) == pytest.approx((right, np.mean(clusters[200:] == of_all)))
    assert right > np.mean(clusters[200:] == of_all) + 0.1 and 6 in groups[200:]


def test_positions_that_tell_a_number_each_add_up():
    codes, action, episode = planted()
    table = code_table.measure(codes, action, episode, 4)
    assert list(table) == ["0", "1", "all"]
    alone = [table[name]["r2_alone"] for name in ("0", "1")]
    assert alone == pytest.approx([0.5, 0.5], abs=0.01) and table["all"]["r2_alone"] == pytest.approx(1, abs=1e-3)
    assert [table[name]["r2_lost"] for name in ("0", "1")] == pytest.approx(alone, abs=0.01)
    assert table["all"]["variance_left"] < 1e-4 and table["0"]["variance_left"] == pytest.approx(0.5, abs=0.02)
    # 16 clusters for 16 combinations of codes: k-means may merge or split some of them.
    assert table["all"]["lookup"] > 0.9 and table["0"]["lookup"] == pytest.approx(0.25, abs=0.06)
    assert table["all"]["nmi_adjusted"] > 0.9 and 1 < table["0"]["bits"] <= 2


def test_random_codes_say_nothing_however_many_there_are():
    codes, action, episode = planted()
    rng = np.random.default_rng(3)
    row = code_table.measure(rng.integers(0, 4, (len(codes), 4)), action, episode, 4)["all"]
    assert row["bits"] > 0.5, "by chance, with 256 combinations"
    assert row["nmi_adjusted"] == pytest.approx(0, abs=0.01) and row["variance_left"] == pytest.approx(1, abs=0.03)
    assert row["lookup"] < row["majority"] + 0.03


def test_actions_that_do_not_vary_have_no_table():
    codes, _, episode = planted(100)
    assert code_table.measure(codes, np.ones((100, 2)), episode, 4) == {}
    assert code_table.metrics({}) == {}
