import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.data.statistics import ColumnStatistics, column_statistics


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_chunks_merge_to_the_whole(lengths, seed, offset):
    rows = np.random.default_rng(seed).normal(offset, 2.0, (sum(lengths) + 1, 3))
    chunks = np.split(rows, np.cumsum(lengths))
    got = column_statistics(chunks)
    assert got["count"] == len(rows)
    for name, value in {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got["q01"], np.quantile(rows, 0.01, axis=0))
    np.testing.assert_allclose(got["q99"], np.quantile(rows, 0.99, axis=0))


def test_sampled_quantiles_do_not_depend_on_the_order_of_merging():
    rows = np.random.default_rng(0).normal(size=(50_000, 2))
    parts = []
    for start in range(0, 50_000, 10_000):
        parts.append(ColumnStatistics(sample=4096))
        parts[-1].update(rows[start : start + 10_000], start)
    forward, backward = ColumnStatistics(4096), ColumnStatistics(4096)
    for one, other in zip(parts, reversed(parts)):
        forward.merge(one)
        backward.merge(other)
    one, other = forward.summary(), backward.summary()
    assert one["q01"] == other["q01"] and one["q99"] == other["q99"] and one["count"] == other["count"] == 50_000
    ranks = [(rows[:, d] < one["q01"][d]).mean() for d in range(2)]
    assert np.abs(np.array(ranks) - 0.01).max() < 5 * np.sqrt(0.01 * 0.99 / 4096), "within 5 standard errors"
    assert len(forward.rows) == 4096
