import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.shards import step_shards
from lapa_jax.data.statistics import ColumnStatistics, column_statistics, kinds, values


def parts_of(rows, cuts, sample):
    """Statistics of pieces of `rows`, as hosts would make them of their shards."""
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)]):
        parts.append(ColumnStatistics(sample))
        parts[-1].update(rows[start:stop], start)
    return parts


def merged(parts):
    whole = ColumnStatistics(parts[0].sample)
    for part in parts:
        whole.merge(part)
    return whole.summary()


def assert_same(one, other, rows):
    """Equal counts, extremes and quantiles; moments to 1e-12 of the size of the data."""
    assert one["count"] == other["count"] == len(rows)
    for name in ("min", "max", "q01", "q99", "quantiles"):
        assert one[name] == other[name], name
    scale = np.abs(rows).max(0)
    np.testing.assert_array_less(np.abs(np.subtract(one["mean"], other["mean"])), 1e-12 * scale + 1e-300)
    np.testing.assert_allclose(one["std"], other["std"], rtol=1e-12, atol=1e-15 * scale.max())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 500), max_size=8), st.randoms(use_true_random=False), st.integers(0, 1000),
    st.sampled_from([0.0, 1.0, -1e3, 1e6]), st.sampled_from([16, 100, 1 << 18]),
)  # fmt: skip
def test_any_split_and_order_give_the_same(cuts, random, seed, offset, sample):
    rows = np.random.default_rng(seed).normal(offset, 2.0, (501, 3)).astype(np.float32)
    parts = parts_of(rows, sorted(cuts), sample)
    random.shuffle(parts)
    while len(parts) > 2:  # merge in the shape of a random tree, not only one after the other
        one = parts.pop(random.randrange(len(parts)))
        parts[random.randrange(len(parts))].merge(one)
    assert_same(merged(parts), column_statistics([rows], sample), rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_small_data_agree_with_numpy_exactly(count, seed, offset):
    rows = np.random.default_rng(seed).normal(offset, 2.0, (count, 2))
    got = column_statistics([rows[: count // 3], rows[count // 3 :]])
    for name, value in {"mean": rows.mean(0), "std": rows.std(0)}.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-9)
    assert got["min"] == rows.min(0).tolist() and got["max"] == rows.max(0).tolist()
    np.testing.assert_allclose(got["q01"], np.quantile(rows, 0.01, axis=0))
    np.testing.assert_allclose(got["q99"], np.quantile(rows, 0.99, axis=0))
    edges = np.array(got["quantiles"])
    assert edges.shape == (2, 257)
    np.testing.assert_allclose(edges, [[np.quantile(c, k / 256) for k in range(257)] for c in rows.T])
    shares = [np.histogram(column, np.unique(e))[0] for column, e in zip(rows.T, edges)]
    assert count < 257 or all(np.ptp(s) <= 2 for s in shares), "every bin holds equally many"


def test_sampled_quantiles_have_the_error_that_is_told():
    """A skewed column against its exact quantiles, in ranks, over many samples: mean 0 and the told deviation."""
    limit, count, wanted = 1024, 40_000, np.array([0.01, 0.5, 0.99])
    column = np.sort(np.random.default_rng(0).lognormal(0, 2, count))
    ranks = []
    for trial in range(60):
        rows = np.random.default_rng(trial).permutation(column)[:, None]
        got = column_statistics(np.array_split(rows, 7), limit)
        found = [got["q01"][0], got["quantiles"][0][128], got["q99"][0]]
        ranks.append(np.searchsorted(column, found) / count)
        assert got["quantiles"][0][0] == column[0] and got["quantiles"][0][-1] == column[-1], "all rows count here"
    told = np.sqrt(wanted * (1 - wanted) / limit)
    deviation = np.sqrt(((np.array(ranks) - wanted) ** 2).mean(0))
    assert (deviation < 1.3 * told).all() and (deviation > 0.6 * told).all(), deviation / told
    assert np.abs((np.array(ranks) - wanted).mean(0) / told).max() < 4 / np.sqrt(60), "no bias"
    rising = column_statistics([column[:, None]], limit)  # sampled evenly over time: not the first rows, or the last
    found = np.searchsorted(column, np.array(rising["quantiles"][0])[1:-1]) / count
    assert np.abs(found - np.arange(1, 256) / 256).max() < 4 * np.sqrt(0.25 / limit)


def test_a_large_offset_costs_no_digits():
    noise = np.random.default_rng(1).integers(-1000, 1000, (5000, 1)) / 1024.0
    expected = column_statistics([noise])
    for offset in (2.0**20, 2.0**30):  # exact in float64, so only the method could lose digits
        for size in (1, 77, 5000):
            pieces = np.array_split(noise + offset, len(noise) // size)
            got = column_statistics(pieces)
            assert abs(got["std"][0] / expected["std"][0] - 1) < 1e-12, (offset, size)
            assert abs(got["mean"][0] - offset - expected["mean"][0]) <= 1e-16 * offset * 2
    constant = column_statistics([np.full((1000, 1), 0.1), np.full((77, 1), 0.1)])
    assert constant["std"] == [0.0] and constant["mean"] == [0.1] and set(constant["quantiles"][0]) == {0.1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused(bad):
    rows = np.zeros((10, 3))
    rows[7, 2] = bad
    with pytest.raises(ValueError, match="row 107, dimension 2 is"):
        ColumnStatistics().update(rows, 100)
    with pytest.raises(ValueError, match="row 17, dimension 2 is"):
        column_statistics([np.zeros((10, 3)), rows])


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match=r"rows of shape \[4, 2\] where \[N, 3\] is expected"):
        column_statistics([np.zeros((4, 3)), np.zeros((4, 2))])
    with pytest.raises(ValueError, match=r"rows of shape \[4\]"):
        column_statistics([np.zeros(4)])
    with pytest.raises(ValueError, match="without rows"):
        column_statistics([np.zeros((0, 3))])
    one, other = ColumnStatistics(8), ColumnStatistics(9)
    with pytest.raises(ValueError, match="cannot be merged"):
        one.merge(other)


def test_the_sample_of_a_wide_column_is_bounded(monkeypatch):
    monkeypatch.setattr("lapa_jax.data.statistics.VALUES", 4096)
    statistics = ColumnStatistics()
    for start in range(0, 2000, 10):
        statistics.update(np.random.default_rng(start).normal(size=(10, 64)), start)
        assert sum(rows.size for _, rows in statistics._parts) <= 2 * 4096 + 640
    assert np.shape(statistics.summary()["quantiles"]) == (64, 257) and statistics.count == 2000


def test_the_summary_is_json_and_comes_back_equal():
    rows = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    summary = column_statistics([rows])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    zeros = np.where(np.arange(6)[:, None] % 2, 0.0, -0.0)
    assert json.dumps(column_statistics([zeros])) == json.dumps(column_statistics([zeros[::-1]]))


def test_kinds_of_dimensions():
    rng = np.random.default_rng(0)
    n = 20_000
    columns = {
        "continuous": rng.normal(size=n), "gripper": (rng.random(n) < 0.3).astype(float),
        "gripper that hardly closes": (rng.random(n) < 5e-4) * 2.0 - 1,
        "gripper with a few steps between": np.where(np.arange(n) % 400 == 0, 0.5, rng.random(n) < 0.5),
        "three values": rng.choice([-1.0, 0.0, 1.0], n), "half-way often": rng.choice([0.0, 0.5, 1.0], n),
        "hardly used": np.where(rng.random(n) < 1e-3, rng.normal(size=n) * 0.1, 0.0),
        "hardly ever left": np.select([rng.random(n) < 0.005, rng.random(n) < 0.05], [-3.75, 3.75], 0.0),
        "limited": np.minimum(rng.normal(size=n), 0.0), "pressed": np.where(rng.random(n) < 0.6, 0.0, rng.random(n)),
        "constant": np.full(n, 0.3), "rounding": 0.3 + rng.normal(size=n) * 1e-8,
        "rounding, large": 1e6 + rng.integers(0, 2, n) * 0.0625, "small but real": rng.normal(size=n) * 1e-3,
        "clipped": np.clip(rng.normal(size=n) * 3, -1, 1), "in small units": rng.normal(size=n) * 1e-7,
        "narrow": 0.3 + rng.normal(size=n) * 1e-5, "rounding of float64 about zero": rng.normal(size=n) * 1e-16,
        "hardly moves, with zeros": np.where(np.arange(n) % 500 == 0, 0.0, rng.normal(1.5692, 2e-4, n)),
        "heavy tails": rng.standard_t(2, n).clip(-30, 30),
        "glitches": np.where(np.arange(n) % 999, rng.normal(size=n), 1e3),
        "one huge glitch": np.where(np.arange(n) == 7, 1e6, rng.normal(size=n)),
    }  # fmt: skip
    got = dict(zip(columns, kinds(column_statistics([np.stack(list(columns.values()), 1).astype(np.float32)]))))
    assert got == {
        "continuous": "continuous", "gripper": "binary", "gripper that hardly closes": "binary",
        "gripper with a few steps between": "binary", "three values": "continuous", "half-way often": "continuous",
        "hardly used": "sparse", "hardly ever left": "sparse", "limited": "continuous", "pressed": "continuous",
        "constant": "constant", "rounding": "constant", "rounding, large": "constant",
        "small but real": "continuous", "clipped": "continuous", "in small units": "continuous", "narrow": "continuous",
        "rounding of float64 about zero": "constant", "hardly moves, with zeros": "sparse", "heavy tails": "continuous",
        "glitches": "sparse", "one huge glitch": "sparse",
    }  # fmt: skip


def test_kinds_do_not_depend_on_the_unit():
    """But for the rounding of the unit itself: powers of two leave none."""
    rng = np.random.default_rng(1)
    wide, rarely = rng.normal(size=5000), (rng.random(5000) < 1e-3) * rng.normal(size=5000)
    rows = np.stack([wide, rng.random(5000) < 0.1, np.full(5000, 0.7), 3 + wide * 1e-8, rarely], 1)
    expected = ["continuous", "binary", "constant", "constant", "sparse"]
    for power in (-60, -30, 0, 30):
        assert kinds(column_statistics([(rows * 2.0**power).astype(np.float32)])) == expected, power


def test_kinds_can_be_told_which_are_binary():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=500), rng.random(500) < 0.5, np.zeros(500)], 1)
    summary = column_statistics([rows])
    assert kinds(summary, [0]) == ["binary", "continuous", "constant"]
    assert kinds(summary, [-2]) == ["continuous", "binary", "constant"]
    with pytest.raises(UserError, match="binary dimension 3 does not exist; the column has 3"):
        kinds(summary, [3])


def test_statistics_of_another_version_are_refused_with_the_remedy():
    with pytest.raises(UserError, match="have no 'quantiles'.*convert the data again"):
        values({"count": 1, "mean": [0.0]}, "mean", "quantiles")
    with pytest.raises(UserError, match="damaged"):
        values({"min": [0.0], "max": [1.0, 2.0]}, "min", "max")


def test_real_columns_agree_with_numpy(shared):
    """Meta-World's actions, read from the npz files that the shards would be made of."""
    files = sorted((shared / "data" / "metaworld_mt10").rglob("*.npz"))[:40]
    rows = [np.load(file)["action"] for file in files]
    got, whole = column_statistics(rows), np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(got["std"], whole.std(0), rtol=1e-12)
    np.testing.assert_allclose(got["quantiles"], np.quantile(whole, np.linspace(0, 1, 257), axis=0).T, rtol=1e-12)
    assert [kind == "constant" for kind in kinds(got)] == (np.ptp(whole, axis=0) == 0).tolist()


def test_columns_are_read_without_the_pictures(tmp_path):
    """A shard whose pictures cannot be decoded: only the numeric members are read."""
    rows = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    with step_shards.ShardWriter(tmp_path / "train-00000.tar") as writer:
        for step, row in enumerate(rows):
            writer.add(
                step_shards.step_key("a", step),
                {"action.npy": step_shards.array_bytes(row), "image.jpg": b"no picture"},
            )
    features = {"action": {"shape": [2], "dtype": "float32"}, "image": {"shape": [8, 8, 3], "codec": "jpeg"}}
    splits = {"train": {"episodes": 1, "steps": 6, "shards": [writer.summary]}}
    step_shards.write_dataset(tmp_path, features=features, fps=5, source={}, splits=splits, statistics={})
    got = column_statistics(step_shards.StepShards(tmp_path).column("action"))
    assert got["count"] == 6 and got["max"] == rows.astype(np.float64).max(0).tolist()
