"""Codecs without a network, each against an independent computation."""

import itertools
import json
import math

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.statistics import column_statistics
from lapa_jax.evaluate.codecs.bins import Bins
from lapa_jax.evaluate.codecs.comparison import baselines
from lapa_jax.evaluate.codecs.fast import Fast
from lapa_jax.evaluate.codecs.spline import Spline, operators
from tests.evaluate.codecs.action_shards import episodes

STEPS = 8


def chunks(seed=0, count=40, width=4):
    """Chunks f32[count, STEPS, width]: walks, then a constant, then a gripper of two values."""
    return np.stack(episodes(np.random.default_rng(seed), [STEPS] * count, width=width))


def fitted(codec, seed=0):
    data = chunks(seed)
    return codec.fit(data, column_statistics([data.reshape(-1, data.shape[-1])])), data


def all_codecs():
    return baselines(STEPS)


@pytest.mark.parametrize("codec", all_codecs(), ids=lambda codec: codec.name)
def test_every_codec_decodes_what_it_encodes(codec):
    codec, data = fitted(codec)
    tokens = codec.encode(chunks(1, 7))
    assert len(tokens) == 7 and all(sequence.dtype == np.int32 and sequence.ndim == 1 for sequence in tokens)
    decoded, failed = codec.decode(tokens)
    assert decoded.shape == (7, STEPS, 4) and decoded.dtype == np.float32 and not failed.any()
    assert (decoded[..., 2] == np.float32(0.25)).all(), "a dimension that is constant needs no tokens"
    for one, alone in zip(tokens, chunks(1, 7)):
        np.testing.assert_array_equal(codec.encode(alone[None])[0], one)


def radix_write(digits, sizes):
    """The whole number whose digits of mixed radix these are, the first digit counting least."""
    number = 0
    for digit, size in reversed(list(zip(digits, sizes, strict=True))):
        number = number * int(size) + int(digit)
    return number


def radix_read(number, sizes):
    digits = []
    for size in sizes:
        number, digit = divmod(number, int(size))
        digits.append(digit)
    return digits


@pytest.mark.parametrize(
    "codec", [Bins("equal_frequency", 16), Bins("uniform_min_max", 5), Spline(3, 6), Fast(3, 64)], ids=str
)
def test_a_chunk_fits_into_its_bits_and_no_fewer(codec):
    """A bit writer and reader: tokens as digits of one number in ceil(bits) bits, which the largest number needs."""
    codec, _ = fitted(codec)
    tokens = codec.encode(chunks(1, 12))
    for sequence, bits in zip(tokens, codec.bits(tokens), strict=True):
        sizes, _ = codec.alphabets(sequence)
        written = format(radix_write(sequence, sizes), "b").zfill(math.ceil(bits))
        assert len(written) == math.ceil(bits)
        assert radix_read(int(written, 2), sizes) == sequence.tolist()
        largest = radix_write([size - 1 for size in sizes], sizes)
        assert largest.bit_length() == math.ceil(bits)


def test_bits_of_bins():
    """256 bins a number and step; two for a binary dimension, none for a constant one."""
    codec, data = fitted(Bins("uniform_min_max", 256))
    tokens = codec.encode(data)
    assert {len(sequence) for sequence in tokens} == {STEPS * 3}
    np.testing.assert_allclose(codec.bits(tokens), STEPS * (8 + 8 + 1))


@pytest.mark.parametrize("bins", [2, 8, 256])
def test_bins_err_by_half_a_bin_at_most(bins):
    codec, data = fitted(Bins("uniform_min_max", bins))
    decoded, _ = codec.decode(codec.encode(data))
    low, high = data.min((0, 1)).astype(np.float64), data.max((0, 1)).astype(np.float64)
    for i in (0, 1):
        half = (high[i] - low[i]) / bins / 2
        expected = np.minimum(np.floor((data[..., i] - low[i]) / (high[i] - low[i]) * bins), bins - 1)
        np.testing.assert_allclose(decoded[..., i], low[i] + (2 * expected + 1) * half, atol=1e-3 * half + 1e-5)
        assert np.abs(decoded[..., i] - data[..., i]).max() <= half * (1 + 1e-5) + 1e-6
    np.testing.assert_array_equal(decoded[..., 3], data[..., 3])


def cosines(steps):
    """The orthonormal DCT-II by its formula, f64[frequency, time]."""
    k, t = np.arange(steps)[:, None], np.arange(steps)
    matrix = np.cos(np.pi * k * (2 * t + 1) / (2 * steps)) * np.sqrt(2 / steps)
    matrix[0] /= np.sqrt(2)
    return matrix


def test_coefficients_are_those_of_the_cosine_matrix():
    codec, data = fitted(Fast(10))
    rows = data.reshape(-1, 4).astype(np.float64)
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
    low, high = np.where(np.arange(4) == 3, -1.0, q01), np.where(np.arange(4) == 3, 1.0, q99)
    moving = [0, 1, 3]
    normal = (2 * (data - low) / np.where(high > low, high - low, 1.0) - 1)[..., moving]
    expected = np.rint(10 * np.einsum("kt,nta->nka", cosines(STEPS), normal))
    np.testing.assert_array_equal(codec.coefficients(data), expected.reshape(len(data), -1))
    still = codec.coefficients(np.broadcast_to(data[:1, :1], data.shape))
    assert (still[:, 3:] == 0).all() and (still[:, :3] != 0).any(), "lowest frequencies come first"


@pytest.mark.parametrize("scale", [1, 10])
def test_rounding_of_coefficients_bounds_the_error(scale):
    """The transform is orthonormal: half a step in each coefficient is sqrt(T) / 2 in length, in normalised units."""
    codec, data = fitted(Fast(scale))
    decoded, _ = codec.decode(codec.encode(data))
    for i, half_range in ((0, None), (3, 1.0)):
        q01, q99 = np.quantile(data[..., i].astype(np.float64), [0.01, 0.99])
        unit = half_range or (q99 - q01) / 2
        length = np.sqrt((((decoded - data)[..., i] / unit) ** 2).sum(1))
        assert length.max() <= np.sqrt(STEPS) / 2 / scale + 1e-4


def test_bpe_loses_nothing():
    codec, data = fitted(Fast(5, 256))
    rng = np.random.default_rng(3)
    seen = codec.coefficients(data)
    random = rng.integers(seen.min(), seen.max() + 1, (50, seen.shape[1]))
    for rows in (seen, random):
        for row, tokens in zip(rows, codec.pieces(rows), strict=True):
            np.testing.assert_array_equal(codec.joined(tokens), row)
    assert sum(map(len, codec.pieces(seen))) < seen.size / 1.5, "merges shorten what they were trained on"


def merged_by_hand(text, merges):
    """BPE as defined: of all neighbours that are a merge the earliest one in the list is joined, until none is left."""
    parts = list(text)
    while True:
        ranked = [(merges[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in merges]
        if not ranked:
            return parts
        _, i = min(ranked)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_tokens_are_those_of_the_merges():
    codec, data = fitted(Fast(5, 128))
    model = json.loads(codec._bpe.to_str())["model"]
    merges = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    texts = codec._texts(codec.coefficients(data[:10]))
    for text, tokens in zip(texts, codec.encode(data[:10]), strict=True):
        assert [model["vocab"][part] for part in merged_by_hand(text, merges)] == tokens.tolist()


def test_training_bpe_gives_the_same_tokens_again():
    first, data = fitted(Fast(5, 128))
    second, _ = fitted(Fast(5, 128))
    assert first._bpe.to_str() == second._bpe.to_str() and first.size <= 128


def test_coefficients_beyond_the_training_data_are_cut_off():
    codec, data = fitted(Fast(5))
    tokens = codec.encode(100 * data)
    assert all(len(codec.joined(sequence)) == STEPS * 3 for sequence in tokens)
    least, most = codec.coefficients(data).min(), codec.coefficients(data).max()
    wanted = np.clip(codec.coefficients(100 * data), least, most)
    np.testing.assert_array_equal([codec.joined(sequence) for sequence in tokens], wanted)


def test_a_vocabulary_without_room_for_merges_grows():
    codec, data = fitted(Fast(40, 16))
    different = np.ptp(codec.coefficients(data)) + 1
    assert different > 16 and different < codec.size <= 2 * different


@pytest.mark.parametrize("codec", [Fast(0.5), Spline(4), Bins("uniform_quantile", 2)], ids=str)
def test_decoded_actions_stay_in_the_range_of_the_training_data(codec):
    codec, data = fitted(codec)
    decoded, _ = codec.decode(codec.encode(100 * data))
    assert (decoded >= data.min((0, 1))).all() and (decoded <= data.max((0, 1))).all()


def test_malformed_chunks_are_counted_and_replaced():
    codec, data = fitted(Fast(5, 128))
    tokens = codec.encode(data[:20])
    rng = np.random.default_rng(0)
    damaged = [sequence.copy() for sequence in tokens]
    for sequence in damaged:
        sequence[rng.integers(len(sequence))] = rng.integers(codec.size)
    damaged += [tokens[0][:-1], np.append(tokens[0], 0), np.array([codec.size]), np.array([-1]), np.empty(0, np.int32)]
    lengths = [sum(len(codec._bpe.id_to_token(int(t)) or "") if t >= 0 else 0 for t in sequence)
               for sequence in damaged]  # fmt: skip
    decoded, failed = codec.decode(damaged)
    np.testing.assert_array_equal(failed, [length != STEPS * 3 for length in lengths])
    assert 0 < failed[:20].sum() < 20 and failed[20:].all()
    np.testing.assert_allclose(decoded[failed], np.broadcast_to(data.mean((0, 1)), decoded[failed].shape), rtol=1e-4)


def test_tokens_of_fixed_length_fail_where_they_are_none():
    codec, data = fitted(Bins("uniform_min_max", 16))
    good = codec.encode(data[:1])[0]
    beyond, below, binary = good.copy(), good.copy(), good.copy()
    beyond[0], below[0], binary[2] = 16, -1, 2
    _, failed = codec.decode([good, good[:-1], beyond, below, binary])
    assert failed.tolist() == [False, True, True, True, True]


def basis(knots, degree, i, t):
    """The i-th B-spline at t by the recursion of Cox and de Boor; the last interval is closed."""
    if degree == 0:
        last = t == knots[-1] and knots[i] < knots[i + 1] == knots[-1]
        return 1.0 if knots[i] <= t < knots[i + 1] or last else 0.0
    left, right = knots[i + degree] - knots[i], knots[i + degree + 1] - knots[i + 1]
    rising = (t - knots[i]) / left * basis(knots, degree - 1, i, t) if left else 0.0
    falling = (knots[i + degree + 1] - t) / right * basis(knots, degree - 1, i + 1, t) if right else 0.0
    return rising + falling


@pytest.mark.parametrize(("steps", "points", "degree"), [(9, 5, 3), (16, 16, 3), (16, 3, 2), (10, 4, 0), (7, 7, 0)])
def test_splines_are_least_squares_in_the_basis_of_cox_and_de_boor(steps, points, degree):
    if degree:
        places = np.linspace(0, 1, points)
        inner = [places[j : j + degree].mean() for j in range(1, points - degree)]
    else:
        inner = np.arange(1, points) / points
    knots = np.concatenate([np.zeros(degree + 1), inner, np.ones(degree + 1)])
    times = np.linspace(0, 1, steps)
    design = np.array([[basis(knots, degree, i, t) for i in range(points)] for t in times])
    fit, evaluate = operators(steps, points, degree)
    np.testing.assert_allclose(evaluate, design, atol=1e-12)
    values = np.random.default_rng(0).normal(size=steps)
    np.testing.assert_allclose(fit @ values, np.linalg.lstsq(design, values, rcond=None)[0], atol=1e-10)


@pytest.mark.parametrize("points", [4, 5, 8])
def test_splines_reproduce_cubics(points):
    codec, _ = fitted(Spline(points))
    times = np.linspace(-1, 2, STEPS)
    cubics = np.stack([np.polyval(np.random.default_rng(i).normal(size=4), times) for i in range(6)])
    chunk = np.zeros((3, STEPS, 4))
    chunk[..., :2] = cubics.reshape(3, 2, STEPS).transpose(0, 2, 1)
    np.testing.assert_allclose(codec.curves(codec.control_points(chunk)), chunk, atol=1e-10)


def test_a_binary_dimension_is_piecewise_constant_with_a_bit_a_piece():
    codec, data = fitted(Spline(4, 256))
    tokens = codec.encode(data)
    np.testing.assert_allclose(codec.bits(tokens), 4 * (8 + 8 + 1))
    gripper = np.array([-1, -1, 1, 1, 1, -1, 1, 1], np.float32)
    chunk = data[:1].copy()
    chunk[0, :, 3] = gripper
    decoded, _ = codec.decode(codec.encode(chunk))
    pieces = np.where(gripper.reshape(4, 2).mean(1) >= 0, 1.0, -1.0)
    np.testing.assert_array_equal(decoded[0, :, 3], np.repeat(pieces, 2))


def test_rounded_control_points_bound_the_error():
    """B-splines are positive and sum to one: a curve errs by no more than its control points."""
    codec, data = fitted(Spline(5, 32))
    points = codec.control_points(data)
    decoded, _ = codec.decode(codec.encode(data))
    curve = np.clip(codec.curves(points), data.min((0, 1)), data.max((0, 1)))
    for i in (0, 1):
        half = np.ptp(points[..., i]) / 32 / 2
        assert np.abs(decoded[..., i] - curve[..., i]).max() <= half * (1 + 1e-5) + 1e-5


def test_wrong_input_is_one_line():
    codec, data = fitted(Bins("uniform_min_max"))
    for call, told in (
        (lambda: codec.encode(data[:, :4]), "was fitted on chunks of shape"),
        (lambda: codec.encode(data[0]), "action chunks are"),
        (lambda: fitted(Spline(STEPS + 1)), "does not suit chunks of 8 steps"),
        (lambda: Fast(0), "rounds everything to nothing"),
        (lambda: fitted(Bins("equal_frequency", 3)), "must divide 256"),
    ):
        with pytest.raises(UserError, match=told):
            call()
