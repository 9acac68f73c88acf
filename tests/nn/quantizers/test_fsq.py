import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers.fsq import FSQ

LEVELS = (8, 5, 3, 4)


def by_hand(z, levels):
    """Bound, rounding and index in float64; the outermost levels may differ where z is within 1e-6 of a boundary."""
    bounded = []
    for value, level in zip(z, levels, strict=True):
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        bounded.append(np.tanh(value + np.arctanh(offset / half)) * half - offset)
    rounded = np.round(bounded)
    index, weight = 0, 1
    for value, level in zip(rounded, levels, strict=True):
        index += int(value + level // 2) * weight
        weight *= level
    return np.array(bounded), rounded / np.array([level // 2 for level in levels]), index


def test_equations_hold_one_number_at_a_time():
    quantizer = FSQ(LEVELS)
    z = np.random.default_rng(0).normal(size=(50, 4)) * 2
    quantized, codes = quantizer(jnp.float32(z))
    for row, vector, code, bounded in zip(z, quantized, codes, quantizer.bound(jnp.float32(z)), strict=True):
        expected_bound, expected, index = by_hand(row, LEVELS)
        np.testing.assert_allclose(bounded, expected_bound, atol=1e-5)
        np.testing.assert_allclose(vector, expected, atol=1e-6)
        assert int(code) == index


@pytest.mark.parametrize("level", [3, 4, 5, 6, 7, 8, 9, 16, 100, 1000])
def test_every_level_is_reached_and_none_beyond(level):
    quantizer = FSQ((level,))
    quantizer.check()
    z = jnp.linspace(-8, 8, 20001)[:, None]
    quantized, codes = quantizer(z)
    assert set(np.asarray(codes).tolist()) == set(range(level))
    low = -(level // 2)
    np.testing.assert_allclose(np.unique(np.round(np.asarray(quantized) * (level // 2))), np.arange(low, low + level))


@pytest.mark.parametrize("level", range(3, 17))
def test_zero_is_bounded_to_zero(level):
    """With the paper's `tan` in place of `atanh` even levels miss it: -4e-4 at 4 levels, and -0.043 at 2."""
    assert abs(float(FSQ((level,)).bound(jnp.zeros((1, 1)))[0, 0])) < 2e-6
    half = (level - 1) * 1.001 / 2
    if level in (4, 6):
        assert abs(np.tanh(np.tan(0.5 / half)) * half - 0.5) > 4e-5


def test_codes_and_vectors_map_to_each_other_for_every_code():
    quantizer = FSQ(LEVELS)
    codes = jnp.arange(quantizer.size)
    vectors = np.asarray(quantizer.lookup(codes))
    grids = [np.arange(-(level // 2), -(level // 2) + level) / (level // 2) for level in LEVELS]
    # The first feature counts least: it runs fastest.
    expected = np.array([combination[::-1] for combination in itertools.product(*grids[::-1])])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    inverse = np.arctanh((vectors * [level // 2 for level in LEVELS] + [0.5 * (1 - level % 2) for level in LEVELS])
                         / [(level - 1) * 1.001 / 2 for level in LEVELS])  # fmt: skip
    shift = [np.arctanh(0.5 * (1 - level % 2) / ((level - 1) * 1.001 / 2)) for level in LEVELS]
    quantized, found = quantizer(jnp.float32(inverse - shift))
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(quantized, vectors, atol=1e-6)
    np.testing.assert_array_equal(quantizer.nearest(jnp.float32(inverse - shift)), codes)


def test_the_gradient_is_that_of_the_bound():
    quantizer = FSQ(LEVELS)
    z = jnp.float32(np.random.default_rng(1).normal(size=(6, 4)))
    got = jax.grad(lambda z: jnp.sum(quantizer(z)[0]))(z)
    levels = np.array(LEVELS)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2 == 0, 0.5, 0)
    expected = half * (1 - np.tanh(np.asarray(z) + np.arctanh(offset / half)) ** 2) / (levels // 2)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(got) > 0)


def test_bfloat16_is_quantised_in_float32_and_loses_no_codes():
    quantizer = FSQ((8, 8, 8))
    z = jnp.float32(np.random.default_rng(2).normal(size=(20000, 3)))
    quantized, codes = quantizer(z.astype(jnp.bfloat16))
    assert quantized.dtype == jnp.float32 and codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, quantizer(z.astype(jnp.bfloat16).astype(jnp.float32))[1])
    assert len(np.unique(codes)) == 512


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((8, 2), "2 levels; give at least 3: to reach both"),
        ((1001,), "at most 1000"),
        ((), "whole numbers"),
        ((8.0, 5), "whole numbers"),
        ((1000, 1000, 1000, 1000), "int32"),
    ],
)
def test_levels_that_cannot_work_are_refused_with_the_reason(levels, message):
    with pytest.raises(UserError, match=message):
        FSQ(levels).check()


def test_two_levels_would_need_the_shift_that_the_refusal_names():
    assert np.arctanh(0.5 / (1.001 / 2)) == pytest.approx(3.8, abs=0.02)
