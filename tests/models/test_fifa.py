"""FIFA against sums by hand, all label sequences, and all borders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.models import fifa


def units(count, width, seed):
    x = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


Z, Q = units(6, 4, seed=0), units(4, 4, seed=1)
HIERARCHY = np.int32([0, 1, 1, 3, 0, 1])  # cluster 2 has no subcluster


def distances_by_hand(embedding):
    """d2 of the nearest subcluster + the mean of d1 over a cluster's own subclusters, one number at a time."""
    e = embedding / np.linalg.norm(embedding)
    first = [1 - e @ z for z in Z]
    nearest = Z[int(np.argmin(first))]
    found = []
    for k, q in enumerate(Q):
        own = [first[v] for v in range(len(Z)) if HIERARCHY[v] == k]
        found.append(1 - nearest @ q + np.mean(own) if own else 4.0)
    return found


def test_distances_are_those_to_the_cluster_and_to_its_own_subclusters():
    embeddings = 3 * np.random.default_rng(2).normal(size=(2, 5, 4)).astype(np.float32)
    got = fifa.cluster_distances(embeddings, Z, Q, HIERARCHY)
    want = [[distances_by_hand(e) for e in row] for row in embeddings]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_soft_assignment_depends_on_the_embedding():
    """The spec's equation 8 sums over all subclusters for every cluster: its probabilities never change."""
    embeddings = units(50, 4, seed=3)
    ours = np.exp(fifa.log_probabilities(fifa.cluster_distances(embeddings, Z, Q, HIERARCHY), 0.5))
    similarity = (embeddings @ Z.T)[:, :, None] + (Z @ Q.T)[None]
    spec = np.asarray(jax.nn.softmax(similarity.sum(1), -1))
    assert np.ptp(spec, axis=0).max() < 1e-5
    assert np.ptp(ours, axis=0).max() > 0.4
    # Not through the nearest subcluster alone either: two embeddings near the same one differ.
    near = Z[:1] + 0.05 * units(2, 4, seed=4)
    two = np.asarray(fifa.cluster_distances(near, Z, Q, HIERARCHY))
    assert np.abs(two[0] - two[1])[[0, 1, 3]].min() > 1e-3
    np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("seed", "steps"), [(0, 6), (1, 6), (2, 4), (3, 1)])
def test_viterbi_finds_the_best_of_all_sequences(seed, steps):
    cost = np.random.default_rng(seed).exponential(size=(6, 3)).astype(np.float32)
    mask = np.float32(np.arange(6) < steps)

    def price(labels):
        changes = sum(a != b for a, b in itertools.pairwise(labels))
        return sum(cost[t, k] for t, k in enumerate(labels)) + 0.7 * changes

    best = min(itertools.product(range(3), repeat=steps), key=price)
    got = np.asarray(fifa.viterbi(cost, mask, 0.7))
    np.testing.assert_array_equal(got[:steps], best)
    assert set(got[steps:]) <= {got[steps - 1]}


def plateaus_by_hand(shares, steps, s, length):
    found, begin = [], 0.0
    for share in shares:
        c, h = (begin + share / 2) * steps, share * steps / 2
        t = np.arange(length) + 0.5
        found.append(1 / ((np.exp(s * (t - c - h)) + 1) * (np.exp(s * (-t + c - h)) + 1)))
        begin += share
    return np.array(found)


def test_plateaus_and_energy_equal_the_equations():
    rng = np.random.default_rng(5)
    shares, expected = np.float32([0.2, 0.5, 0.3]), np.float32([0.3, 0.3, 0.4])
    cost = rng.exponential(size=(12, 3)).astype(np.float32)
    mask = np.float32(np.arange(12) < 10)
    want = plateaus_by_hand(shares, 10, 0.8, 12)
    np.testing.assert_allclose(fifa.plateaus(shares, 10.0, 0.8, 12), want, rtol=1e-4, atol=1e-6)
    observed = np.mean([sum(cost[t, n] * want[n, t] for n in range(3)) for t in range(10)])
    total = observed + 0.25 * np.abs(shares - expected).sum()
    np.testing.assert_allclose(fifa.energy(shares, cost, expected, mask, 0.8, 0.25), total, rtol=1e-5)


def test_sharp_plateaus_are_segments():
    got = fifa.plateaus(jnp.float32([0.2, 0.5, 0.3]), 10.0, 50.0, 10)
    want = [[1] * 2 + [0] * 8, [0] * 2 + [1] * 5 + [0] * 3, [0] * 7 + [1] * 3]
    np.testing.assert_allclose(got, want, atol=1e-6)


def planted(seed, length=24, segments=3, clusters=5):
    """Noisy costs f32 [T, N] of a transcript with known borders."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(3, length - 3, 3), segments - 1, replace=False))
    labels = np.repeat(np.arange(segments), np.diff([0, *cuts, length]))
    logits = rng.normal(size=(length, clusters))
    logits[np.arange(length), labels] += 2.5
    cost = -np.asarray(jax.nn.log_softmax(logits, -1), np.float32)
    return cost[:, :segments], cuts


def price_of(cost, border):
    return sum(cost[a:b, n].sum() for n, (a, b) in enumerate(itertools.pairwise(border))) / len(cost)


def best_borders(cost):
    """The cheapest of all ways to cut T steps into N segments."""
    length, segments = cost.shape
    ways = itertools.combinations(range(1, length), segments - 1)
    return min(((0, *way, length) for way in ways), key=lambda border: price_of(cost, border))


def run(cost, start, mask, **settings):
    settings = fifa.Settings(length_weight=0.0, **settings)
    shares = jax.jit(lambda *a: fifa.optimise(*a, settings))(cost, np.float32(start), np.float32(start), mask)
    return np.asarray(shares), np.asarray(fifa.borders(shares, mask))


def test_optimised_borders_are_the_best_of_all():
    """From equal lengths, as if nothing were known; the noise sets the best borders a little apart from the planted."""
    excess, same = [], 0
    for seed in range(12):
        cost, _ = planted(seed)
        shares, border = run(cost, [1 / 3] * 3, np.ones(24, np.float32))
        best = best_borders(cost)
        excess.append(price_of(cost, border) - price_of(cost, best))
        same += tuple(border) == best
        assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert np.mean(excess) < 0.01 and max(excess) < 0.05 and same >= 9, (excess, same)


def test_expensive_steps_are_not_left_out():
    """With the sum of the lengths as a penalty of weight 1, costs over 1 nat a step would shrink all segments."""
    cost = np.full((20, 2), 6.0, np.float32)
    cost[:8, 0] = cost[8:, 1] = 3.0
    _, border = run(cost, [0.5, 0.5], np.ones(20, np.float32))
    np.testing.assert_array_equal(border, [0, 8, 20])


def test_padding_changes_nothing():
    cost, _ = planted(1)
    _, border = run(cost, [1 / 3] * 3, np.ones(24, np.float32))
    wide = np.full((40, 5), 7.0, np.float32)
    wide[:24, :3] = cost
    shares, padded = run(wide, [1 / 3] * 3 + [0, 0], np.float32(np.arange(40) < 24))
    np.testing.assert_array_equal(padded[:4], border)
    assert not shares[3:].any()


def test_expected_lengths_decide_where_the_costs_do_not():
    cost = np.ones((20, 2), np.float32)
    settings = fifa.Settings(length_weight=0.5)
    shares = fifa.optimise(cost, jnp.float32([0.5, 0.5]), jnp.float32([0.2, 0.8]), jnp.ones(20), settings)
    np.testing.assert_allclose(shares, [0.2, 0.8], atol=0.03)
