import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers import replacement

SCHEDULE = ((100, 10), (1000, 100), (5000, 500))
CODEBOOK = jnp.float32(np.random.default_rng(0).normal(size=(6, 4)) * 10)


def counts(hits, tokens=None):
    tokens = hits if tokens is None else tokens
    return {"hits": jnp.int32(hits), "tokens": jnp.int32(tokens), "candidates": jnp.full((6, 4), 77.0)}


def run(rule, counted, step=10, min_hits=7, min_share=0.01, seed=0):
    return replacement.maybe_replace(rule, CODEBOOK, counted, step=jnp.int32(step), rng=jax.random.key(seed),
                                     schedule=SCHEDULE, min_hits=min_hits, min_share=min_share)  # fmt: skip


def nearest(row):
    return int(np.linalg.norm(np.asarray(CODEBOOK) - np.asarray(row), axis=-1).argmin())


def test_due_steps_are_those_of_the_official_schedule():
    expected = [s for s in range(1, 6001) if (s < 100 and s % 10 == 0) or (100 <= s < 1000 and s % 100 == 0)
                or (1000 <= s < 5000 and s % 500 == 0)]  # fmt: skip
    due = jax.vmap(lambda s: replacement.is_due(s, SCHEDULE))(jnp.arange(1, 6001))
    np.testing.assert_array_equal(np.flatnonzero(due) + 1, expected)


def test_official_dead_codes_become_the_first_live_ones_in_order():
    codebook, kept, replaced = run("official", counts([9, 6, 8, 0, 10, 10]))
    np.testing.assert_array_equal(replaced, [False, True, False, True, False, False])
    np.testing.assert_array_equal(codebook[np.array([0, 2, 4, 5])], CODEBOOK[np.array([0, 2, 4, 5])])
    assert [nearest(codebook[1]), nearest(codebook[3])] == [0, 2]
    assert np.abs(codebook[1] - CODEBOOK[0]).max() > 1e-3, "an exact copy would never be chosen"
    assert not np.any(kept["hits"]) and not np.any(kept["tokens"])


def test_official_rule_repeats_live_codes_where_they_are_few():
    used = np.zeros(6, int)
    for seed in range(10):
        codebook, _, replaced = run("official", counts([0, 0, 9, 0, 9, 0]), seed=seed)
        assert list(np.flatnonzero(replaced)) == [0, 1, 3, 5]
        sources = [nearest(codebook[i]) for i in (0, 1, 3, 5)]
        assert set(sources) <= {2, 4} and len(set(sources)) == 2
        used += np.bincount(sources, minlength=6)
    assert 10 <= used[2] <= 30 and used[2] + used[4] == 40


def test_share_rule_counts_vectors_and_copies_in_proportion_to_use():
    tokens = [0, 900, 5, 95, 0, 0]
    sources = []
    for seed in range(30):
        codebook, _, replaced = run("share", counts([1] * 6, tokens), seed=seed)
        np.testing.assert_array_equal(replaced, [True, False, True, False, True, True])
        sources += [nearest(codebook[i]) for i in (0, 2, 4, 5)]
    assert set(sources) == {1, 3} and np.mean(np.equal(sources, 1)) > 0.8


def test_residual_rule_takes_the_far_vectors():
    codebook, _, replaced = run("residual", counts([0] * 6, [0, 50, 50, 50, 50, 50]))
    assert list(np.flatnonzero(replaced)) == [0]
    np.testing.assert_allclose(codebook[0], 77.0, atol=5)


@pytest.mark.parametrize("rule", ["official", "share", "residual"])
def test_nothing_happens_between_inspections(rule):
    counted = counts([0, 9, 9, 9, 9, 9])
    codebook, kept, replaced = run(rule, counted, step=11)
    np.testing.assert_array_equal(codebook, CODEBOOK)
    np.testing.assert_array_equal(kept["hits"], counted["hits"])
    assert not np.any(replaced)


def test_without_a_live_code_every_code_only_gets_noise():
    codebook, _, replaced = run("official", counts([0] * 6))
    assert np.all(replaced)
    assert 0 < np.abs(codebook - CODEBOOK).max() < 0.5 * np.std(CODEBOOK)


@pytest.mark.parametrize("schedule", [((100, 10), (50, 5)), ((100, 0),), ((100,),)])
def test_a_schedule_that_cannot_be_followed_is_refused(schedule):
    with pytest.raises(UserError, match="replacement_schedule"):
        replacement.check_schedule(schedule)
