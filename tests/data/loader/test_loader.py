import threading

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader.loader import eval_batches, train_batches
from lapa_jax.data.loader.orders import train_order
from lapa_jax.data.samples.pairs import FramePairSource, Gap
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.transforms import Augment
from tests.data import sources
from tests.inference import step_shards

AUGMENT = Augment(shift=3, crop_area=0.7, flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, step_shards.SIZE, step_shards.SIZE, 3), dtype=np.uint8)
    folder = step_shards.write(tmp_path_factory.mktemp("data"), draw=lambda episode, step: noise[10 * episode + step])
    return FramePairSource(StepShards(folder), Gap(frames=1))


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


def test_eval_takes_the_same_number_of_each_part_of_a_mixture():
    """Of parts of 70, 20 and 10 samples: a third each as far as they go, and what is left from the larger ones."""

    def counts(limit):
        batches = list(eval_batches(sources.Mixture(), batch_size=8, limit=limit))
        samples = np.concatenate([b["i"][b["mask"] > 0] for b in batches])
        assert len(set(samples.tolist())) == len(samples) and not (np.diff(samples) > 0).all()
        return np.bincount(np.digitize(samples, [70, 90]), minlength=3).tolist()

    assert counts(9) == [3, 3, 3] and counts(36) == [13, 13, 10] and counts(70) == [40, 20, 10]
    assert counts(None) == counts(1000) == [70, 20, 10] and counts(10) == [4, 3, 3]
    with pytest.raises(UserError, match="fewer than the 3 parts"):
        counts(2)


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
    pairs = FramePairSource(StepShards(folder), Gap(frames=1))
    with pytest.raises(UserError, match=r"train-00001\.tar.*ep2_000004"):
        take(train_batches(pairs, seed=0, batch_size=4), 10)


def test_no_threads_are_left_behind(pairs):
    before = threading.active_count()
    for _ in range(5):
        batches = train_batches(pairs, seed=0, batch_size=4)
        next(batches)
        del batches
    assert threading.active_count() <= before + 8


AS_MIXTURE = {"batch_size": 8, "seed": 1, "shuffle": "window", "window": 64}


@pytest.fixture(scope="module", params=["set", "mixture"])
def stream(request):
    """(source, options, 12 batches of it on one host without workers)."""
    source = sources.Numbers() if request.param == "set" else sources.Mixture()
    options = {"batch_size": 8, "seed": 1} if request.param == "set" else AS_MIXTURE
    options |= {"augment": Augment(shift=2, brightness=0.3)}
    return source, options, take(train_batches(source, **options), 12)


def test_each_sample_is_what_the_source_has_at_its_place_in_the_order():
    """Without the loader: the order asked for each position, the sample for each number."""
    for source, options in ((sources.Numbers(), {"shuffle": "full"}), (sources.Mixture(), {"shuffle": "window"})):
        seed = int(np.random.SeedSequence(5).generate_state(2)[0])
        order = train_order(source, seed, options["shuffle"])
        for k, batch in enumerate(take(train_batches(source, seed=5, batch_size=6, **options), 30)):
            samples = [int(order(np.array([position]))[0]) for position in range(6 * k, 6 * k + 6)]
            assert batch["i"].tolist() == samples
            np.testing.assert_array_equal(batch["frames"], np.stack([source.frames(i) for i in samples]))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_hosts_after_a_resume_gives_the_same_batches(stream, hosts):
    source, options, expected = stream
    each = [take(train_batches(source, host=(h, hosts), start_step=5, **options), 7) for h in range(hosts)]
    joined = [{k: np.concatenate([each[h][s][k] for h in range(hosts)]) for k in expected[0]} for s in range(7)]
    assert_equal(expected[5:], joined)


@pytest.mark.parametrize(("workers", "host", "start"), [(4, (0, 1), 0), (1, (1, 2), 5)])
def test_any_number_of_workers_gives_the_same_batches(stream, workers, host, start):
    source, options, expected = stream
    rows = slice(host[0] * 8 // host[1], (host[0] + 1) * 8 // host[1])
    batches = train_batches(source, workers=workers, host=host, start_step=start, **options)
    assert_equal([{k: v[rows] for k, v in batch.items()} for batch in expected[start:]], take(batches, 12 - start))


def test_real_pairs_come_the_same_from_workers(pairs):
    options = {"seed": 1, "batch_size": 4, "augment": AUGMENT}
    assert_equal(take(train_batches(pairs, **options), 12), take(train_batches(pairs, workers=2, **options), 12))


# ------------------------------------------------------------------------------------------------- damaged samples


def test_a_damaged_sample_is_replaced_reported_once_and_the_same_for_everyone(caplog):
    whole, damaged = sources.Mixture(), sources.Mixture(damaged=[3, 75])
    options = {"batch_size": 8, "seed": 1, "max_bad_samples": 2}
    expected = take(train_batches(whole, **options), 30)
    alone = take(train_batches(damaged, **options), 30)
    assert caplog.text.count("ep3_000000") == caplog.text.count("ep75_000000") == 1
    assert "damaged sample 2 of at most 2 replaced: shard-" in caplog.text
    wrong = np.concatenate([b["i"] for b in expected])
    right = np.concatenate([b["i"] for b in alone])
    changed = np.isin(wrong, [3, 75])
    assert changed.sum() > 4 and np.array_equal(wrong[~changed], right[~changed])
    stand_ins = {i: set(right[wrong == i]) for i in (3, 75)}
    assert all(len(s) == 1 for s in stand_ins.values()) and stand_ins[3] < set(range(70)) - {3}
    assert stand_ins[75] < set(range(70, 90)) - {75}  # of the same part
    for batch in alone:
        np.testing.assert_array_equal(batch["frames"], np.stack([whole.frames(int(i)) for i in batch["i"]]))
    halves = [take(train_batches(damaged, host=(h, 2), **options), 30) for h in range(2)]
    assert_equal(alone, [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves)])
    assert_equal(alone, take(train_batches(damaged, workers=2, **options), 30))
    assert caplog.text.count("ep3_000000") >= 2  # workers' findings are reported too


def test_too_many_damaged_samples_are_fatal_at_the_same_batch_and_listed():
    source, damaged = sources.Numbers(), [5, 6, 7]
    order = np.concatenate([b["i"] for b in take(train_batches(source, seed=0, batch_size=4), 25)])
    third = sorted(int(np.flatnonzero(order == i)[0]) for i in damaged)[2] // 4
    for workers in (0, 1):
        options = {"seed": 0, "batch_size": 4, "max_bad_samples": 2, "workers": workers}
        batches = train_batches(sources.Numbers(damaged=damaged), **options)
        assert len(take(batches, third)) == third
        with pytest.raises(UserError, match=r"3 damaged samples, data\.max_bad_samples is 2: shard.*;.*;") as error:
            next(batches)
        assert all(f"ep{i}_000000" in str(error.value) for i in damaged)


def test_a_set_without_a_sound_sample_ends():
    with pytest.raises(UserError, match=r"ep\d+_000000.*100 others"):
        next(train_batches(sources.Numbers(damaged=range(100)), seed=0, batch_size=4, max_bad_samples=1000))


def test_eval_masks_what_stands_in_for_damaged_samples():
    batches = list(eval_batches(sources.Numbers(damaged=[5, 50]), batch_size=8, max_bad_samples=2))
    mask, samples = (np.concatenate([b[name] for b in batches]) for name in ("mask", "i"))
    assert mask.sum() == 98 and sorted(samples[mask == 1]) == sorted(set(range(100)) - {5, 50})
    with pytest.raises(UserError, match="is damaged"):
        list(eval_batches(sources.Numbers(damaged=[5, 50]), batch_size=8))


def test_wrong_arguments(pairs):
    with pytest.raises(UserError, match=r"data\.workers=-1"):
        train_batches(pairs, seed=0, batch_size=4, workers=-1)
    with pytest.raises(UserError, match="data.shuffle 'none'"):
        train_batches(pairs, seed=0, batch_size=4, shuffle="none")
