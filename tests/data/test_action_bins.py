import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.action_bins import KINDS, ActionBins
from lapa_jax.data.statistics import column_statistics

SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.lognormal(0, 1.5, n),
    "many zeros": lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.normal(size=n)),
    "clipped": lambda rng, n: np.clip(rng.normal(size=n) * 2, -1, 1),
    "gripper": lambda rng, n: (rng.random(n) < 0.3) * 1.0,
    "hardly used": lambda rng, n: np.where(np.arange(n) % 300 == 7, rng.normal(size=n), 0.0),
    "constant": lambda rng, n: np.full(n, 0.25),
    "three values": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n),
}


def rows_of(names, seed, scale=1.0, offset=0.0, n=1500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([SHAPES[name](rng, n) * scale + offset for name in names], 1).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=4), st.sampled_from(KINDS), st.integers(0, 10**6),
    st.sampled_from([1e-4, 0.02, 1.0, 400.0]), st.sampled_from([0.0, -1.0, 3e3]), st.sampled_from([2, 16, 256]),
)  # fmt: skip
def test_round_trips_over_random_statistics(names, kind, seed, scale, offset, count):
    rows = rows_of(names, seed, scale, offset)
    bins = ActionBins(column_statistics([rows]), kind, count)
    codes = bins.encode(rows)
    assert codes.dtype == np.int32 and codes.shape == rows.shape
    assert (codes >= 0).all() and (codes < bins.counts).all() and (bins.counts <= count).all()
    back = bins.decode(codes)
    for i, edges in enumerate(bins.edges):
        if bins.constant[i]:
            rounding = 2.0**-20 * np.abs(rows[:, i]).max()
            assert np.ptp(rows[:, i]) <= rounding and bins.counts[i] == 1
            assert np.abs(back[:, i] - rows[:, i]).max() <= rounding
            continue
        assert (np.diff(edges) > 0).all()
        inside = (rows[:, i] >= edges[0]) & (rows[:, i] <= edges[-1])
        half = np.diff(edges.astype(np.float64))[codes[:, i]] / 2
        error = np.abs(back[:, i].astype(np.float64) - rows[:, i])
        assert (error[inside] <= half[inside] + np.spacing(np.abs(edges).max())).all(), "half a bin, and rounding"
        every = np.arange(bins.counts[i])
        grid = np.tile(bins.decode(np.zeros_like(codes[:1])), (len(every), 1))
        grid[:, i] = bins._centres[i]
        np.testing.assert_array_equal(bins.encode(grid)[:, i], every, "a centre lies in its bin")
        order = np.argsort(rows[:, i], kind="stable")
        assert (np.diff(codes[order, i]) >= 0).all() and (np.diff(back[order, i]) >= 0).all(), "monotone"


def test_uniform_bins_are_the_formula_of_the_spec():
    rows = rows_of(["normal", "skewed"], 0)
    summary = column_statistics([rows])
    for kind, ends in (("uniform_quantile", ("q01", "q99")), ("uniform_min_max", ("min", "max"))):
        low, high = (np.array(summary[end]) for end in ends)
        share = (rows.astype(np.float64) - low) / (high - low)
        expected = np.clip(np.floor(256 * share), 0, 255)
        bins = ActionBins(summary, kind)
        differ = bins.encode(rows) != expected  # a number within float32's rounding of an edge may go either way
        assert differ.mean() < 1e-3 and np.abs(256 * share - np.round(256 * share))[differ].max(initial=0) < 1e-3
        centres = low + (expected + 0.5) / 256 * (high - low)
        np.testing.assert_allclose(bins.decode(bins.encode(rows))[~differ], centres[~differ], atol=1e-5)
        error = (bins.decode(bins.encode(rows)) - rows)[(share > 0).all(1) & (share < 1).all(1)]
        assert (np.abs(error.mean(0)) < (high - low) / 256 * 0.05).all(), "no bias, which decoding at edges has"


def test_equal_frequency_bins_are_those_of_pandas():
    """Against pandas.qcut(x, 8, duplicates="drop", retbins=True), pandas 3.1.1; 0 is every other number."""
    column = np.array([-3, 0, 5, 0, 1, 0, -1, 0, 2, 0, 8, 0, 13, 0, -7, 0, 21, 0, 4, 0], np.float32)
    codes = [0, 1, 3, 1, 2, 1, 0, 1, 2, 1, 4, 1, 4, 1, 0, 1, 4, 1, 3, 1]
    edges = [-7.0, -0.625, 0.0, 2.5, 6.875, 21.0]
    bins = ActionBins(column_statistics([column[:, None]]), "equal_frequency", 8)
    np.testing.assert_allclose(bins.edges[0], edges)
    assert bins.encode(column[:, None])[:, 0].tolist() == codes and bins.counts.tolist() == [len(edges) - 1]
    np.testing.assert_allclose(bins.decode(np.array([[0], [3]]))[:, 0], [np.mean(edges[:2]), np.mean(edges[3:5])])


def test_equal_frequency_bins_hold_equally_many():
    rows = rows_of(["skewed"], 3, n=25_600)
    counts = np.bincount(ActionBins(column_statistics([rows]), "equal_frequency").encode(rows)[:, 0], minlength=256)
    assert counts.min() >= 99 and counts.max() <= 101
    uniform = np.bincount(ActionBins(column_statistics([rows])).encode(rows)[:, 0], minlength=256)
    assert uniform.max() > 500, "whereas uniform bins do not"


@pytest.mark.parametrize("kind", KINDS)
def test_constant_binary_and_hardly_used_dimensions(kind):
    rows = rows_of(["normal", "constant", "gripper", "hardly used"], 1)
    bins = ActionBins(column_statistics([rows]), kind)
    assert bins.counts.tolist() == [256, 1, 2, 256] and bins.loss_mask.tolist() == [True, False, True, True]
    back = bins.decode(bins.encode(rows))
    np.testing.assert_array_equal(back[:, 1:3], rows[:, 1:3], "the constant and the gripper come back exactly")
    noisy = rows.copy()
    noisy[:, 2] += np.random.default_rng(0).uniform(-0.45, 0.45, len(rows)).astype(np.float32)
    np.testing.assert_array_equal(bins.decode(bins.encode(noisy))[:, 2], rows[:, 2])
    assert np.abs(back[:, 3] - rows[:, 3]).max() <= np.ptp(rows[:, 3]) / 512 * 1.001, "0 stays 0"


def test_binary_dimensions_can_be_named():
    rows = rows_of(["three values", "gripper", "gripper"], 1)
    summary = column_statistics([rows])
    assert ActionBins(summary, "uniform_min_max").counts.tolist() == [256, 2, 2]
    assert ActionBins(summary, "uniform_min_max", binary=[0]).counts.tolist() == [2, 256, 256]
    assert ActionBins(summary, "uniform_min_max", binary=[-1]).counts.tolist() == [256, 256, 2]
    with pytest.raises(UserError, match="binary dimension -4 does not exist; the column has 3"):
        ActionBins(summary, binary=[-4])


def test_equal_frequency_keeps_the_values_of_a_dimension_apart_that_has_only_a_few():
    rows = rows_of(["three values", "gripper", "gripper"], 1)
    bins = ActionBins(column_statistics([rows]), "equal_frequency", binary=[2])
    assert bins.counts.tolist() == [256, 256, 2]
    codes = bins.encode(rows)
    for i in range(3):
        assert len({*zip(codes[:, i].tolist(), rows[:, i].tolist())}) == len(set(rows[:, i].tolist()))


def test_what_lies_outside_goes_to_the_edge_bins_and_nan_nowhere():
    rows = rows_of(["normal", "skewed"], 2)
    for kind in KINDS:
        bins = ActionBins(column_statistics([rows]), kind)
        assert bins.encode([[-1e30, 1e30], [1e30, -1e30]]).tolist() == [[0, 255], [255, 0]]
        for bad in (np.nan, np.inf, 1e300):
            with pytest.raises(ValueError, match=r"the action at \[1\], dimension 0 is (nan|inf)"):
                bins.encode([[0.0, 0.0], [bad, 0.0]])


def test_bins_and_shapes_that_do_not_exist_are_refused():
    bins = ActionBins(column_statistics([rows_of(["normal", "gripper"], 2)]))
    with pytest.raises(ValueError, match=r"bin 2 at \[0\]: dimension 1 has bins 0 to 1"):
        bins.decode([[0, 2]])
    with pytest.raises(ValueError, match="bin -1"):
        bins.decode([[-1, 0]])
    with pytest.raises(ValueError, match="not float64"):
        bins.decode([[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"shape \[1, 3\] for bins of 2"):
        bins.encode([[0.0, 1.0, 2.0]])


def test_token_ids_of_their_own_are_beyond_the_vocabulary():
    rows = rows_of(["normal"] * 6 + ["gripper"], 4)
    bins = ActionBins(column_statistics([rows]))
    codes = bins.encode(rows)
    ids = bins.to_token_ids(codes, 32000)
    assert ids.dtype == np.int32 and bins.token_count() == 7 * 256
    np.testing.assert_array_equal(ids, 32000 + 256 * np.arange(7) + codes)
    assert ids.min() >= 32000 and ids.max() < 32000 + bins.token_count() == 33792
    np.testing.assert_array_equal(bins.from_token_ids(ids, 32000), codes)
    for place, bad, told in ((0, 31999, "32000 to 32255"), (0, 32256, "32000 to 32255"), (6, 33538, "33536 to 33537")):
        wrong = ids[:1].copy()
        wrong[0, place] = bad
        with pytest.raises(ValueError, match=rf"token {bad} at \[0\] is no action: dimension {place} has ids {told}"):
            bins.from_token_ids(wrong, 32000)


def test_token_ids_can_take_the_last_ones_of_the_vocabulary():
    """As OpenVLA: id = vocabulary - digitize(action, edges), which counts from 1."""
    rows = rows_of(["normal"] * 2 + ["gripper"], 5)
    bins = ActionBins(column_statistics([rows]))
    codes = bins.encode(rows)
    ids = bins.to_token_ids(codes, 32000, "overwrite")
    edges = np.linspace(*np.quantile(rows[:, 0].astype(np.float64), [0.01, 0.99]), 257)
    digits = np.clip(np.digitize(rows[:, 0], edges), 1, 256)
    assert (ids[:, 0] == 32000 - digits).mean() > 0.999 and ids.min() >= 31744 and ids.max() == 31999
    np.testing.assert_array_equal(bins.from_token_ids(ids, 32000, "overwrite"), codes)
    assert bins.token_count("overwrite") == 256
    with pytest.raises(ValueError, match="token 31743 .* 31744 to 31999"):
        bins.from_token_ids([[31743, 31999, 31999]], 32000, "overwrite")
    with pytest.raises(ValueError, match="token 31997 .* dimension 2 has ids 31998 to 31999"):
        bins.from_token_ids([[31744, 31999, 31997]], 32000, "overwrite")
    with pytest.raises(UserError, match="no room for 256"):
        bins.to_token_ids(codes, 100, "overwrite")
    with pytest.raises(UserError, match="did you mean 'append'"):
        bins.token_count("apend")


@pytest.mark.parametrize("kind", KINDS)
def test_they_travel_as_json(kind):
    rows = rows_of(sorted(SHAPES), 6)
    bins = ActionBins(column_statistics([rows]), kind)
    again = ActionBins.from_json(json.loads(json.dumps(bins.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.encode(rows), bins.encode(rows))
    np.testing.assert_array_equal(again.decode(again.encode(rows)), bins.decode(bins.encode(rows)))
    assert repr(again) == repr(bins) and again.loss_mask.tolist() == bins.loss_mask.tolist()


def test_wrong_settings_are_refused():
    summary = column_statistics([rows_of(["normal"], 0)])
    with pytest.raises(UserError, match="did you mean 'equal_frequency'"):
        ActionBins(summary, "equal_freq")
    with pytest.raises(UserError, match="must divide 256"):
        ActionBins(summary, "equal_frequency", 100)
    with pytest.raises(UserError, match="too few"):
        ActionBins(summary, bins=1)
    old = {name: value for name, value in summary.items() if name != "quantiles"}
    assert ActionBins(old).counts.tolist() == [256]
    with pytest.raises(UserError, match="no 'quantiles'.*convert the data again"):
        ActionBins(old, "equal_frequency")
