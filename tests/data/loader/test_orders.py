import pickle

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import orders
from lapa_jax.data.loader.orders import FullShuffle, Mixed, WindowShuffle, train_order


class Parts:
    """A mixture as the loader sees it."""

    def __init__(self, lengths, weights):
        self.lengths, self.weights = lengths, weights

    def __len__(self):
        return sum(self.lengths)


@pytest.mark.parametrize("length", [1, 2, 10, 257, 15_000, 65_535, 65_536, 65_538, 131_073, 2**18, 10**9])
@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
def test_full_shuffle_is_the_one_of_grain(length, seed):
    """Runs that were begun when grain shuffled go on with the same samples."""
    stream = grain.MapDataset.range(length).shuffle(seed=seed).repeat()
    far = np.random.default_rng(0).integers(0, min(7, 20_000 // length + 2) * length, 20)
    positions = np.unique(np.concatenate([np.arange(20), far, np.arange(max(0, length - 3), length + 5)]))
    np.testing.assert_array_equal(FullShuffle(length, seed)(positions), [stream[int(p)] for p in positions])


def test_full_shuffle_keeps_every_sample_where_grain_loses_one():
    stream = grain.MapDataset.range(65_537).shuffle(seed=3)
    assert len({stream[i] for i in range(65_537)}) == 65_536
    assert np.array_equal(np.sort(FullShuffle(65_537, 3)(np.arange(65_537))), np.arange(65_537))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["full", "window"]), length=st.integers(1, 3000), window=st.integers(1, 4000),
    seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10**6),
)  # fmt: skip
def test_every_epoch_holds_every_sample_once(kind, length, window, seed, epoch):
    order = train_order(range(length), seed, kind, window)
    first = order(np.arange(epoch * length, (epoch + 1) * length))
    assert np.array_equal(np.sort(first), np.arange(length))
    if length > 20:  # the same order twice in a row has a chance of 1 in 20!
        assert not np.array_equal(first, order(np.arange((epoch + 1) * length, (epoch + 2) * length)))
        assert not np.array_equal(first, train_order(range(length), (seed + 1) % 2**32, kind, window)(
            np.arange(epoch * length, (epoch + 1) * length)))  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(["full", "window", "mixture"]), data=st.data())
def test_an_order_is_a_function_of_the_position(kind, data):
    """However the stream is cut, and in another process, every position has the same sample."""
    source = Parts((500, 70, 1), (2.0, 1.0, 0.5)) if kind == "mixture" else range(700)
    order = train_order(source, 5, "window" if kind == "window" else "full", 128)
    whole = order(np.arange(3000))
    some = np.array(data.draw(st.lists(st.integers(0, 2999), min_size=1, max_size=50)))
    np.testing.assert_array_equal(order(some), whole[some])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(order))(some), whole[some])  # noqa: S301


def test_orders_outlive_an_upgrade():
    """A resumed run must see the same samples under any numpy: these numbers may not change."""
    positions = np.arange(12)
    assert train_order(range(10), 7)(positions).tolist() == FULL
    assert train_order(range(10), 7, "window", 4)(positions).tolist() == WINDOWED
    assert train_order(Parts((6, 4), (2.0, 1.0)), 7)(positions).tolist() == MIXED


FULL = [4, 0, 3, 7, 2, 9, 6, 8, 1, 5, 5, 3]
WINDOWED = [1, 2, 5, 9, 4, 0, 6, 3, 8, 7, 7, 1]
MIXED = [3, 8, 5, 2, 7, 1, 0, 6, 4, 2, 9, 0]


@pytest.mark.parametrize("length", [100_000, 99_937])
def test_window_shuffle_reads_locally(length):
    """A stretch of n samples touches few blocks of consecutive samples; a full shuffle touches nearly all of them."""
    window, block = 6400, 100
    order = WindowShuffle(length, 3, window)
    assert order.block == block
    touched, spread = [], []
    for start in range(0, length - window, 5000):
        samples = order(np.arange(start, start + 1000))
        touched.append(len(np.unique(samples // block)))
        spread.append(len(np.unique(FullShuffle(length, 3)(np.arange(start, start + 1000)) // block)))
    assert max(touched) <= 2 * orders.BLOCKS and min(spread) > 5 * orders.BLOCKS
    # and it does shuffle: neighbours in the stream are rarely neighbours on disk, and windows are not runs of the disk
    samples = order(np.arange(length))
    assert np.mean(np.abs(np.diff(samples)) <= block) < 0.05
    assert np.ptp(np.unique(samples[:1000] // block)) > 300


def test_a_window_that_holds_everything_is_a_full_shuffle():
    samples = WindowShuffle(1000, 0, 5000)(np.arange(1000))
    thirds = np.array([np.bincount(part // 250, minlength=4) for part in np.array_split(samples, 4)])
    assert thirds.min() > 35  # of 62 expected in each quarter of the stream from each quarter of the samples


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.3), (0.999, 0.001), (3.0, 2.0**0.5)])
def test_two_parts_have_their_share_of_any_stretch_to_one_sample(weights):
    parts, _ = Mixed([None] * 2, (5, 5), weights).split(np.arange(20_000))
    excess = np.concatenate([[0], np.cumsum(parts == 0)]) - np.arange(20_001) * weights[0] / sum(weights)
    assert np.abs(excess).max() <= 0.5 + 1e-6 and np.ptp(excess) <= 1 + 1e-6


@settings(deadline=None, max_examples=60)
@given(weights=st.lists(st.floats(0.001, 10), min_size=1, max_size=10), start=st.integers(0, 2**50))
def test_many_parts_have_their_share_of_any_stretch(weights, start):
    count = 2000
    parts, places = Mixed([None] * len(weights), [5] * len(weights), weights).split(start + np.arange(count))
    for part, weight in enumerate(weights):
        here = parts == part
        excess = np.concatenate([[0], np.cumsum(here)]) - np.arange(count + 1) * weight / sum(weights)
        assert np.ptp(excess) < 3
        assert np.array_equal(np.diff(places[here]), np.ones(max(0, here.sum() - 1)))  # each part goes on in its own


def test_parts_of_a_mixture_are_repeated_in_their_own_epochs():
    lengths, weights = (40, 7), (0.25, 0.75)
    samples = train_order(Parts(lengths, weights), 1)(np.arange(160))
    small = samples[samples >= 40]
    assert len(small) == 120 and all(set(small[k : k + 7]) == set(range(40, 47)) for k in range(0, 119, 7))
    assert sorted(samples[samples < 40]) == list(range(40))


def test_a_part_is_shuffled_the_same_whatever_the_weights():
    """So changing a weight does not change which samples of a part come early."""
    one, two = (train_order(Parts((40, 50), w), 1)(np.arange(80)) for w in ((1, 1), (1, 3)))
    assert one[one < 40][:20].tolist() == two[two < 40][:20].tolist()


def test_wrong_arguments():
    with pytest.raises(UserError, match="data.shuffle 'windw' is unknown; did you mean 'window'"):
        train_order(range(5), 0, "windw")
    with pytest.raises(UserError, match=r"data\.window.*got 0"):
        train_order(range(5), 0, "window", 0)
    with pytest.raises(UserError, match="positive"):
        train_order(Parts((1, 2), (1.0, 0.0)), 0)
    with pytest.raises(UserError, match="1 for 2"):
        train_order(Parts((1, 2), (1.0,)), 0)
