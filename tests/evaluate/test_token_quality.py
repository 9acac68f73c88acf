"""Compression and discriminability of tokens, on rows for which both are known."""

import numpy as np
import pytest
import scipy.stats

from lapa_jax.evaluate.token_quality import compression, discriminability


def test_bits_of_tokens_against_those_of_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 5)).astype(np.float32)
    features[:, 3] = 2  # does not vary, and costs nothing
    codes = np.stack([rng.integers(0, 8, 4000), np.zeros(4000, int), rng.choice(4, 4000, p=[0.5, 0.25, 0.25, 0])], 1)
    figures = compression(features, codes, (8, 16, 4))
    assert figures["bits_per_row"] == 3 + 4 + 2
    assert figures["compression_ratio"] == pytest.approx(32 * 4 / 9)
    expected = sum(scipy.stats.entropy(np.unique(column, return_counts=True)[1], base=2) for column in codes.T)
    assert figures["entropy_per_row"] == pytest.approx(expected) and expected == pytest.approx(3 + 0 + 1.5, abs=0.01)


def rows(per_episode=40, episodes=5, seed=0):
    """Features whose first number is near their episode's own, in an order that is not that of time."""
    rng = np.random.default_rng(seed)
    episode, step = np.repeat(np.arange(episodes), per_episode) + 7, np.tile(np.arange(per_episode), episodes)
    features = rng.normal(size=(len(episode), 4)).astype(np.float32)
    features[:, 0] += 12 * (episode - 7)
    order = rng.permutation(len(episode))
    return features[order], episode[order], step[order]


def test_codes_that_tell_episodes_apart_and_codes_that_do_not():
    features, episode, step = rows()
    telling = discriminability(features, np.stack([episode - 7, step % 3], 1), episode, step)
    assert telling["episode_accuracy_features"] > 0.95 and telling["episode_accuracy_chance"] == 0.2
    assert telling["episode_accuracy_codes"] == 1 and telling["discriminability"] >= 1
    noise = np.random.default_rng(1).integers(0, 8, (len(episode), 2))
    silent = discriminability(features, noise, episode, step)
    assert silent["episode_accuracy_codes"] < 0.4 and silent["discriminability"] < 0.3
    assert silent["episode_accuracy_features"] == telling["episode_accuracy_features"]


def test_the_nearest_mean_is_found_by_a_search_over_all():
    features, episode, step = rows(per_episode=9, episodes=4, seed=3)
    rng = np.random.default_rng(2)
    codes = np.stack([(episode + rng.integers(0, 2, len(episode))) % 3, rng.integers(0, 4, len(episode))], 1)
    fitted = step < 4  # the first half of nine steps
    one_hot = np.array([[float(row[p] == k) for p, size in ((0, 3), (1, 4)) for k in range(size)] for row in codes])
    means = {e: one_hot[fitted & (episode == e)].mean(0) for e in np.unique(episode)}
    within = np.mean([(one_hot[i] - means[episode[i]]) ** 2 for i in np.flatnonzero(fitted)], axis=0)
    variance = within + 0.01 * np.var(one_hot[fitted], axis=0)
    right = []
    for i in np.flatnonzero(~fitted):
        distance = {e: np.sum((one_hot[i] - mean) ** 2 / variance) for e, mean in means.items()}
        right.append(min(distance, key=distance.get) == episode[i])
    assert discriminability(features, codes, episode, step)["episode_accuracy_codes"] == pytest.approx(np.mean(right))


def test_one_episode_has_nothing_to_be_told_from():
    features, episode, step = rows(episodes=2)
    assert discriminability(features, step[:, None], np.zeros_like(episode), step) == {}
    assert discriminability(features, step[:, None], np.arange(len(step)), step) == {}, "rows that stand alone"
