import threading

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import eval_batches, train_batches
from lapa_jax.data.samples.pairs import FramePairs, Gap
from lapa_jax.data.shards import StepShards
from lapa_jax.data.transforms import Augment
from tests.inference import step_shards

AUGMENT = Augment(shift=3, crop_area=0.7, flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, step_shards.SIZE, step_shards.SIZE, 3), dtype=np.uint8)
    folder = step_shards.write(tmp_path_factory.mktemp("data"), draw=lambda episode, step: noise[10 * episode + step])
    return FramePairs(StepShards(folder), Gap(frames=1))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal(one, two):
    assert len(one) == len(two)
    for left, right in zip(one, two):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def test_order_is_an_epoch_of_each_pair_and_then_another(pairs):
    assert len(pairs) == 19
    batches = take(train_batches(pairs, seed=3, batch_size=1), 3 * 19)
    places = [(int(b["episode_id"][0]), int(b["step"][0])) for b in batches]
    epochs = [places[19 * k : 19 * k + 19] for k in range(3)]
    every = [pairs.locate(i)[:2] for i in range(19)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and every not in epochs


def test_the_order_outlives_an_upgrade():
    """A run resumed under another grain or numpy must see the same samples: these numbers may not change."""

    class Numbers:
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return {"i": np.int64(i)}

    batches = take(train_batches(Numbers(), seed=0, batch_size=10), 2)
    assert [b["i"].tolist() for b in batches] == [[5, 8, 9, 7, 4, 2, 1, 0, 3, 6], [6, 9, 4, 8, 0, 7, 3, 2, 1, 5]]
    draw = next(train_batches(Numbers(), seed=0, batch_size=2, augment=lambda s, rng: {"i": rng.integers(1000)}))
    assert draw["i"].tolist() == [472, 760]


def test_neighbouring_seeds_share_no_epoch(pairs):
    orders = {}
    for seed in range(4):
        for k, batch in enumerate(take(train_batches(pairs, seed=seed, batch_size=19), 3)):
            orders[seed, k] = tuple(zip(batch["episode_id"].tolist(), batch["step"].tolist()))
    assert len(set(orders.values())) == 12


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_stream(pairs, hosts):
    options = {"seed": 1, "batch_size": 8, "augment": AUGMENT}
    alone = take(train_batches(pairs, **options), 6)
    each = [take(train_batches(pairs, host=(h, hosts), **options), 6) for h in range(hosts)]
    joined = [{k: np.concatenate([each[h][s][k] for h in range(hosts)]) for k in alone[s]} for s in range(6)]
    assert_equal(alone, joined)


@pytest.mark.parametrize("step", [1, 5, 23])
def test_resume_continues_the_stream(pairs, step):
    options = {"seed": 1, "batch_size": 4, "augment": AUGMENT}
    whole = take(train_batches(pairs, **options), step + 3)
    assert_equal(whole[step:], take(train_batches(pairs, start_step=step, **options), 3))


def test_threads_and_prefetch_change_nothing(pairs):
    options = {"seed": 1, "batch_size": 4, "augment": AUGMENT}
    assert_equal(
        take(train_batches(pairs, threads=1, prefetch=1, **options), 12),
        take(train_batches(pairs, threads=8, prefetch=16, **options), 12),
    )


def test_augmentation_differs_by_position_and_epoch(pairs):
    batches = take(train_batches(pairs, seed=0, batch_size=19, augment=Augment(brightness=0.5)), 2)
    means = {}
    for batch in batches:
        for frames, episode, step in zip(batch["frames"], batch["episode_id"], batch["step"]):
            means.setdefault((episode, step), []).append(frames.mean())
    assert all(abs(first - second) > 1e-6 for first, second in means.values())


def test_eval_is_one_pass_with_a_mask(pairs):
    batches = list(eval_batches(pairs, batch_size=8))
    assert [b["frames"].shape[0] for b in batches] == [8, 8, 8]
    mask = np.concatenate([b["mask"] for b in batches])
    assert mask.dtype == np.float32 and mask.tolist() == [1.0] * 19 + [0.0] * 5
    places = [(int(e), int(s)) for b in batches for e, s in zip(b["episode_id"], b["step"])]
    assert sorted(places[:19]) == [pairs.locate(i)[:2] for i in range(19)]
    assert places[:19] != sorted(places[:19]) and places[19:] == places[:5]
    assert_equal(batches, list(eval_batches(pairs, batch_size=8)))


def test_eval_on_hosts_and_with_a_limit(pairs):
    alone = list(eval_batches(pairs, batch_size=8, limit=10))
    assert sum(b["mask"].sum() for b in alone) == 10 and len(alone) == 2
    each = [list(eval_batches(pairs, batch_size=8, limit=10, host=(h, 4))) for h in range(4)]
    joined = [{k: np.concatenate([each[h][s][k] for h in range(4)]) for k in alone[s]} for s in range(2)]
    assert_equal(alone, joined)
    more_than_there_is = list(eval_batches(pairs, batch_size=32, limit=1000))
    assert len(more_than_there_is) == 1 and more_than_there_is[0]["mask"].sum() == 19


def test_batches_that_do_not_divide(pairs):
    with pytest.raises(UserError, match="batch size 6.*4 hosts"):
        train_batches(pairs, seed=0, batch_size=6, host=(0, 4))
    with pytest.raises(UserError, match="host 4 of 4"):
        train_batches(pairs, seed=0, batch_size=8, host=(4, 4))


def test_a_damaged_sample_stops_with_its_name(tmp_path):
    folder = step_shards.write(tmp_path)
    whole = (folder / "train-00001.tar").read_bytes()
    at = whole.index(b"ep2_000004.image.jpg") + 512
    (folder / "train-00001.tar").write_bytes(whole[:at] + bytes(100) + whole[at + 100 :])
    pairs = FramePairs(StepShards(folder), Gap(frames=1))
    with pytest.raises(UserError, match=r"train-00001\.tar.*ep2_000004"):
        take(train_batches(pairs, seed=0, batch_size=4), 10)


def test_no_threads_are_left_behind(pairs):
    before = threading.active_count()
    for _ in range(5):
        batches = train_batches(pairs, seed=0, batch_size=4)
        next(batches)
        del batches
    assert threading.active_count() <= before + 8
