import json
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data import images, pipeline
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.samples.pairs import FramePairSource, Gap
from lapa_jax.data.shards.step_shards import ShardWriter, StepShards
from lapa_jax.data.shards.table import Table, row_checks
from tests.data.samples import make
from tests.inference import step_shards


class Steps:
    """A stand-in for StepShards whose picture at step i says i."""

    def __init__(self, lengths, rates):
        self.features = {"image": {"shape": [2, 2, 3], "codec": "jpeg"}, "action": {"shape": [2]}}
        self.statistics = {}
        self.folder, self.split = "memory", "train"
        self.rates, self.total = np.array(rates, float), sum(lengths)
        actions = np.stack([np.ones(self.total), np.arange(self.total)], 1).astype(np.float32)
        self.table = Table({
            "about": np.frombuffer(json.dumps({"texts": [], "damaged": {}}).encode(), np.uint8),
            "episode/id": np.array([b"%d" % number for number in range(len(lengths))]),
            "episode/start": np.cumsum([0, *lengths[:-1]]), "episode/length": np.array(lengths),
            "present/image.jpg": np.ones(self.total, bool), "present/action.npy": np.ones(self.total, bool),
            "column/action": actions, "check/action": row_checks(actions), "text": np.full(self.total, -1, np.int32),
        })  # fmt: skip
        self.episodes = self.table.episodes

    def __len__(self):
        return self.total

    def episode_fps(self):
        return self.rates

    def images_into(self, steps, outs, name):
        for i, out in zip(steps, outs, strict=True):
            assert 0 <= i < self.total < 256
            out[:] = i


@settings(max_examples=200, deadline=None)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([5.0, 10.0, 30.0])), min_size=1, max_size=8),
    gap=st.one_of(st.integers(1, 12).map(lambda n: Gap(frames=n)), st.floats(0.01, 2).map(lambda s: Gap(seconds=s))),
)
def test_pairs_never_cross_an_episode(episodes, gap):
    lengths, rates = [list(column) for column in zip(*episodes)]
    steps = Steps(lengths, rates)
    # independently: every (episode, t) with t + gap inside, in order
    expected = []
    for number, (length, rate) in enumerate(episodes):
        distance = gap.frames or max(1, round(gap.seconds * rate))
        expected += [(number, t, t + distance) for t in range(length) if t + distance <= length - 1]
    if not expected:
        with pytest.raises(UserError, match="no pair fits"):
            FramePairSource(steps, gap)
        return
    pairs = FramePairSource(steps, gap, ("frames", "net_action"))
    assert len(pairs) == len(expected)
    for i, (number, first, second) in enumerate(expected):
        pair = pairs[i]
        start = steps.episodes[number].start
        assert (pair["episode_id"], pair["step"]) == (number, first)
        assert pair["frames"][:, 0, 0, 0].tolist() == [start + first, start + second]
        assert pair["net_action"].tolist() == [second - first, sum(range(start + first, start + second))]
    with pytest.raises(IndexError):
        pairs[len(expected)]
    summary = pairs.summary()
    assert summary["pairs"] + summary["steps_without_pair"] == sum(lengths)


def test_pairs_from_shards(tmp_path):
    data = StepShards(step_shards.write(tmp_path))
    pairs = FramePairSource(data, Gap(seconds=0.3), ("frames", "net_action"), image_size=16)
    assert pairs.summary() == {
        "episodes": 4, "steps": 23, "pairs": 4 + 1 + 6, "steps_without_pair": 12, "episodes_without_pair": 1,
        "pairs_without_picture": 0, "pairs_without_action": 0, "gap_frames_min": 3, "gap_frames_max": 3,
    }  # fmt: skip
    pair = pairs[5]
    assert pair["frames"].shape == (2, 16, 16, 3) and pair["frames"].dtype == np.uint8
    assert (pair["episode_id"], pair["step"]) == (2, 0)
    assert np.abs(pair["frames"][1].astype(int) - step_shards.picture(2, 3)[0, 0, 0]).max() <= 2
    expected = sum(data.array(11 + t, "action").astype(np.float64) for t in range(3))
    np.testing.assert_allclose(pair["net_action"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{}, {"seconds": 1.0, "frames": 1}, {"frames": 0}, {"seconds": -1.0}, {"frames": 1.5}]
)
def test_gaps_that_mean_nothing(arguments):
    with pytest.raises(UserError, match="gap"):
        Gap(**arguments)


def test_gap_in_frames():
    assert Gap(seconds=0.6).in_frames(10) == 6 and Gap(seconds=0.6).in_frames(80) == 48
    assert Gap(seconds=0.01).in_frames(5) == 1
    assert Gap.from_config(0.6, 3).in_frames(None) == 3
    with pytest.raises(UserError, match="gap_frames"):
        Gap(seconds=0.6).in_frames(None)


def test_requests_the_data_cannot_meet(tmp_path):
    data = StepShards(step_shards.write(tmp_path, actions=False))
    with pytest.raises(UserError, match="no actions"):
        FramePairSource(data, Gap(frames=1), ("frames", "net_action"))
    with pytest.raises(UserError, match="state"):
        FramePairSource(data, Gap(frames=1), ("frames", "state"))
    with pytest.raises(UserError, match="longest of its 4 episodes has 9 frames"):
        FramePairSource(data, Gap(frames=9))


def test_a_picture_of_another_size_is_named(tmp_path):
    folder = step_shards.write(tmp_path, draw=lambda episode, step: np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="ep0_000000.*16 x 16, expected 32 x 32"):
        FramePairSource(StepShards(folder), Gap(frames=1))[0]


def write_pairs(folder, names=("t.jpg", "t1.jpg"), count=3):
    folder.mkdir()
    with ShardWriter(folder / "train-00000.tar") as writer:
        for i in range(count):
            picture = np.full((16, 16, 3), 40 * i, np.uint8)
            writer.add(f"{i:06d}", {name: images.encode(picture + k) for k, name in enumerate(names)})
    return folder


def test_ready_made_pairs(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    assert tarfile.open(folder / "train-00000.tar").getnames()[:2] == ["000000.t.jpg", "000000.t1.jpg"]
    source = pipeline.build({"path": str(folder)}, "train", image_size=8)
    assert isinstance(source, PairShards) and len(source) == 3
    pair = source[2]
    assert pair["frames"].shape == (2, 8, 8, 3) and pair["episode_id"] == 2
    assert np.abs(pair["frames"][:, 0, 0, 0].astype(int) - [80, 81]).max() <= 2
    meta = source.meta()
    (described,) = meta["datasets"].values()
    assert described["features"]["image"]["shape"] == [8, 8, 3] and described["statistics"] == {}
    assert meta["gap_frames"] is None and list(meta["datasets"]) == ["pairs"]
    other = PairShards(write_pairs(tmp_path / "more", count=4))
    assert meta["data_fingerprint"] == PairShards(folder).meta()["data_fingerprint"] != other.meta()["data_fingerprint"]
    with pytest.raises(UserError, match="no tar of split 'val'"):
        pipeline.build({"path": str(folder)}, "val")
    with pytest.raises(UserError, match="frames only"):
        pipeline.build({"path": str(folder)}, "train", fields=("frames", "net_action"))


def test_pairs_that_lack_a_frame(tmp_path):
    with pytest.raises(UserError, match="no frame pairs.*t1.jpg"):
        PairShards(write_pairs(tmp_path / "a", names=("t.jpg", "jpg")))
    folder = write_pairs(tmp_path / "b")
    with ShardWriter(folder / "train-00001.tar") as writer:
        writer.add("whole", {"t.jpg": b"x", "t1.jpg": b"x"})
        writer.add("half", {"t.jpg": b"x"})
    with pytest.raises(UserError, match="'half' lacks"):
        PairShards(folder)


def test_mixed_frame_rates_are_read_from_the_steps(tmp_path):
    folder = step_shards.write(tmp_path, fps=None)
    pairs = FramePairSource(StepShards(folder), Gap(seconds=0.3))
    assert pairs.gaps.tolist() == [3, 3, 3, 3], "each step's json says 10 frames per second"


def test_pairs_without_a_picture_or_an_action_are_counted(tmp_path):
    drop = [(0, 3, "image_wrist.jpg"), (1, 1, "action.npy")]
    folder = make.write(tmp_path, [7, 5], cameras=("image", "image_wrist"), drop=drop)
    shards, episodes = StepShards(folder), make.decoded(folder)
    pairs = FramePairSource(shards, Gap(frames=2), ("frames", "net_action"), camera="image_wrist")
    expected = []
    for number, steps in enumerate(episodes):
        for t in range(len(steps) - 2):
            acts = [step["action.npy"] for step in steps[t : t + 2] if "action.npy" in step]
            if "image_wrist.jpg" in steps[t] and "image_wrist.jpg" in steps[t + 2] and len(acts) == 2:
                expected.append((number, t, [steps[t]["image_wrist.jpg"], steps[t + 2]["image_wrist.jpg"]], sum(acts)))
    batch = pairs.batch(range(len(pairs)))
    assert list(zip(batch["episode_id"], batch["step"])) == [e[:2] for e in expected] and len(expected) == 4
    assert make.close(batch["frames"], [e[2] for e in expected])
    np.testing.assert_allclose(batch["net_action"], [e[3] for e in expected], rtol=1e-6)
    counts = pairs.summary()
    assert (counts["pairs_without_picture"], counts["pairs_without_action"]) == (2, 2)
    assert len(FramePairSource(shards, Gap(frames=2))) == 8, "the main camera saw everything"
    with pytest.raises(UserError, match="one camera.*data.mixture"):
        FramePairSource(shards, Gap(frames=2), camera=("image", "image_wrist"))
