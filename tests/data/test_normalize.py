import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.normalize import MODES, Normalizer
from lapa_jax.data.statistics import column_statistics


def columns(seed: int, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """f32[2000, 5]: two continuous dimensions, one constant, a gripper, a rotation that is hardly used."""
    rng = np.random.default_rng(seed)
    gripper, hardly = (rng.random(2000) < 0.2) * 1.0, np.zeros(2000)
    hardly[::250] = rng.normal(size=8)
    rows = [rng.normal(0, 1, 2000), rng.exponential(1, 2000), np.full(2000, 0.7), gripper, hardly]
    return (np.stack(rows, 1) * scale + offset).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([mode for mode in MODES if mode != "q01_q99_clip"]), st.integers(0, 99),
    st.sampled_from([0.01, 1.0, 300.0]), st.floats(-50, 50),
)  # fmt: skip
def test_it_is_undone_exactly_inside_the_range_and_outside(mode, seed, scale, offset):
    rows = columns(seed, scale, offset)
    normalizer = Normalizer(column_statistics([rows]), mode)
    back = normalizer.unnormalize(normalizer.normalize(rows))
    assert back.dtype == np.float32 and normalizer.normalize(rows).dtype == np.float32
    reach = np.abs(rows).max(0) + 10 * np.ptp(rows, axis=0)
    assert (np.abs(back - rows) <= 1e-6 * reach).all()
    far = rows + 3 * np.ptp(rows, axis=0)
    assert (np.abs(normalizer.unnormalize(normalizer.normalize(far)) - far) <= 1e-5 * reach).all()


def test_the_modes_do_what_they_are_named():
    rows = columns(1)
    summary = column_statistics([rows])
    wide = rows.astype(np.float64)
    got = {mode: Normalizer(summary, mode).normalize(rows)[:, :2].astype(np.float64) for mode in MODES}
    np.testing.assert_array_equal(got["none"], rows[:, :2])
    np.testing.assert_allclose(got["mean_std"], (wide[:, :2] - wide[:, :2].mean(0)) / wide[:, :2].std(0), atol=1e-6)
    q01, q99 = np.quantile(wide[:, :2], [0.01, 0.99], axis=0)
    np.testing.assert_allclose(got["q01_q99"], 2 * (wide[:, :2] - q01) / (q99 - q01) - 1, atol=1e-5)
    assert got["min_max"].min(0).tolist() == [-1, -1] and got["min_max"].max(0).tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["mean_std", "q01_q99", "q01_q99_clip", "min_max"])
def test_constant_binary_and_hardly_used_dimensions(mode):
    rows = columns(2)
    normalizer = Normalizer(column_statistics([rows]), mode)
    got = normalizer.normalize(rows)
    assert np.isfinite(got).all() and set(got[:, 2].tolist()) == {0.0}
    assert set(got[:, 3].tolist()) == {-1.0, 1.0}, "a gripper is -1 and 1"
    np.testing.assert_array_equal(got[:, 3] > 0, rows[:, 3] > 0.5)
    assert got[:, 4].min() == -1 and got[:, 4].max() == 1, "percentiles of 0 and 0 would have exploded"
    wild = normalizer.unnormalize(np.full((3, 4, 5), 0.9, np.float32))
    assert wild.shape == (3, 4, 5) and (wild[..., 2] == np.float32(0.7)).all(), "back to the constant, whatever is said"


def test_clipping_is_asked_for_and_loses_what_lies_outside():
    rows = columns(3)
    summary = column_statistics([rows])
    free, clipped = Normalizer(summary, "q01_q99"), Normalizer(summary, "q01_q99_clip")
    a, b = free.normalize(rows), clipped.normalize(rows)
    assert np.abs(a).max() > 1 and np.abs(b).max() == 1
    np.testing.assert_array_equal(np.clip(a, -1, 1), b)
    assert 0.01 < (np.abs(a[:, 0]) > 1).mean() < 0.03


def test_clipping_keeps_the_resolution_of_a_dimension_with_a_few_values_very_far_out():
    """Where nothing is cut off they are in range, and the others are all the same; where it is, it is the other way."""
    rows = np.random.default_rng(0).normal(1.5692, 2e-4, (4000, 1))
    rows[::500] = 0.0
    summary, ordinary = column_statistics([rows.astype(np.float32)]), np.arange(4000) % 500 > 0
    whole, clipped = (Normalizer(summary, mode).normalize(rows)[:, 0] for mode in ("q01_q99", "q01_q99_clip"))
    assert np.abs(whole).max() <= 1.001 and np.ptp(whole[ordinary]) < 0.002
    assert np.abs(clipped).max() == 1 and clipped[ordinary].std() > 0.3


@pytest.mark.parametrize("mode", MODES)
def test_it_travels_as_json(mode):
    rows = columns(4)
    normalizer = Normalizer(column_statistics([rows]), mode)
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())))
    np.testing.assert_array_equal(again.normalize(rows), normalizer.normalize(rows))
    np.testing.assert_array_equal(again.unnormalize(rows), normalizer.unnormalize(rows))
    assert repr(again) == repr(normalizer)


def test_wrong_modes_and_shapes_are_refused():
    summary = column_statistics([columns(5)])
    with pytest.raises(UserError, match="did you mean 'q01_q99'"):
        Normalizer(summary, "q01-q99")
    with pytest.raises(ValueError, match=r"rows of shape \[3, 4\] for statistics of 5"):
        Normalizer(summary, "mean_std").normalize(np.zeros((3, 4)))
    with pytest.raises(UserError, match="have no 'q01'"):
        Normalizer({"count": 3, "mean": [0.0], "min": [0.0], "max": [1.0], "std": [1.0], "q99": [1.0]}, "min_max")


def test_openvla_scales_what_the_mask_names_and_nothing_else():
    rows, rng = columns(3), np.random.default_rng(0)
    summary = column_statistics([rows])
    q01, q99 = np.array(summary["q01"]), np.array(summary["q99"])
    mask = [True, False, True, False, True]
    normalizer = Normalizer({**summary, "mask": mask}, "openvla")
    given = rng.uniform(-1, 1, (7, 5))
    wanted = np.where(mask, 0.5 * (given + 1) * (q99 - q01) + q01, given)
    np.testing.assert_allclose(normalizer.unnormalize(given), wanted, rtol=0, atol=1e-15)
    np.testing.assert_allclose(normalizer.normalize(rows)[:, 1], rows[:, 1])
    without = Normalizer(summary, "openvla")
    assert (without.normalize(rows)[:, 3:] == rows[:, 3:]).all(), "of two values, and hardly used: as they are"
    assert (without.normalize(rows)[:, :1] == normalizer.normalize(rows)[:, :1]).all()


def test_numbers_come_back_in_the_precision_that_they_were_given_in():
    normalizer = Normalizer(column_statistics([columns(4)]), "q01_q99")
    for dtype in (np.float32, np.float64):
        assert normalizer.unnormalize(np.zeros((2, 5), dtype)).dtype == dtype


@pytest.mark.parametrize("mask", [[True, False], [1, 1, 1, 1, 0], "all"])
def test_a_mask_that_is_none_is_refused(mask):
    with pytest.raises(UserError, match="their mask is"):
        Normalizer({**column_statistics([columns(4)]), "mask": mask}, "openvla")
