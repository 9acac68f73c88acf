import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import loader
from lapa_jax.data.samples import chunks, steps
from lapa_jax.data.samples.mixture import Mixture
from lapa_jax.data.samples.pairs import FramePairSource, Gap
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.transforms import Augment
from tests.data.samples import make


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three robots: of 3, 5 and 2 dimensions, other cameras, sizes and instructions."""
    root = tmp_path_factory.mktemp("data")
    wide = {"action": 5, "state": 4}
    narrow = {"action": 2, "state": 6}
    return {
        "a": StepShards(make.write(root / "a", [5, 4], texts=["x", "push it"], cameras=("image", "image_top"))),
        "b": StepShards(make.write(root / "b", [6], texts=["a much longer one"], widths=wide, size=32, seed=1)),
        "c": StepShards(make.write(root / "c", [3, 3], texts=["y", "z"], widths=narrow, seed=2, fps=None)),
    }


def test_samples_of_each_part_padded_with_masks(shards):
    options = steps.Options(fields=("image", "text", "action", "state"), image_size=16)
    parts = {name: steps.Steps(s, options) for name, s in shards.items()}
    mixed = Mixture(parts, [1, 2, 1])
    assert mixed.lengths == (7, 5, 4) and mixed.weights == (0.25, 0.5, 0.25) and len(mixed) == 16
    indices = [15, 0, 7, 3, 11, 12, 6]
    batch = mixed.batch(indices)
    assert batch["dataset_id"].tolist() == [2, 0, 1, 0, 1, 2, 0]
    assert batch["action"].shape == batch["action_dims"].shape == (7, 5) and batch["state"].shape == (7, 6)
    for row, (i, part) in enumerate(zip(indices, batch["dataset_id"])):
        source = list(parts.values())[part]
        alone = source[i - [0, 7, 12][part]]
        assert batch["text"][row] == alone["text"]
        for name in ("image", "episode_id", "step"):
            np.testing.assert_array_equal(batch[name][row], alone[name])
        for name in ("action", "state"):
            width = len(alone[name])
            np.testing.assert_array_equal(batch[name][row, :width], alone[name])
            assert (batch[name][row, width:] == 0).all()
            assert batch[f"{name}_dims"][row].tolist() == [1] * width + [0] * (batch[name].shape[1] - width)
        assert mixed.part_of(i) == (part, i - [0, 7, 12][part])
    one = mixed[15]
    np.testing.assert_array_equal(one["action"], batch["action"][0])
    with pytest.raises(IndexError):
        mixed[16]


def test_chunks_are_padded_in_their_last_axis(shards):
    options = chunks.Options(fields=("action", "state"), chunk_length=3)
    mixed = Mixture({name: chunks.Chunks(s, options) for name, s in shards.items()}, [1, 1, 1])
    batch = mixed.batch([0, 7, 12])
    assert batch["action"].shape == (3, 3, 5) and batch["action_dims"].shape == (3, 5)
    assert (batch["action"][2, :, 2:] == 0).all() and (batch["action"][2, :2, :2] != 0).all()
    assert batch["action_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]


def test_pairs_of_other_gaps_and_cameras(shards):
    parts = {
        "top": FramePairSource(shards["a"], Gap(frames=2), ("frames", "net_action"), 16, "image_top"),
        "front": FramePairSource(shards["a"], Gap(frames=1), ("frames", "net_action"), 16),
        "b": FramePairSource(shards["b"], Gap(frames=3), ("frames", "net_action"), 16),
    }
    mixed = Mixture(parts, [1, 1, 1])
    batch = mixed.batch([4, 5, 12])
    assert batch["dataset_id"].tolist() == [0, 1, 2] and batch["net_action"].shape == (3, 5)
    assert batch["action_dims"].tolist() == [[1, 1, 1, 0, 0]] * 2 + [[1] * 5]
    for row, (name, i) in enumerate((("top", 4), ("front", 0), ("b", 0))):
        np.testing.assert_array_equal(batch["frames"][row], parts[name][i]["frames"])
    assert mixed.locate(12) == (0, 0, 3) and mixed.meta()["gap_frames"] == 3
    assert [d["gap_frames"] for d in mixed.meta()["datasets"].values()] == [2, 1, 3]


def test_metadata_keep_each_data_set(shards):
    options = steps.Options(fields=("action",))
    meta = Mixture({name: steps.Steps(s, options) for name, s in shards.items()}, [1, 2, 1]).meta()
    assert list(meta["datasets"]) == ["a", "b", "c"]
    for name, weight in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        told, own = meta["datasets"][name], shards[name]
        assert told["statistics"] == own.statistics and told["features"] == own.features and told["fps"] == own.fps
        assert told["fingerprint"] == own.fingerprint and told["weight"] == weight
    fewer = Mixture({name: steps.Steps(shards[name], options) for name in "ab"}, [1, 1]).meta()
    assert fewer["data_fingerprint"] != meta["data_fingerprint"]


def test_parts_that_cannot_be_stacked(shards):
    of = {name: steps.Steps(s, steps.Options(fields=("image",))) for name, s in shards.items()}
    with pytest.raises(UserError, match=r"'image' has shape \(16, 16, 3\) in 'a' and \(32, 32, 3\) in 'b'.*image_size"):
        Mixture(of, [1, 1, 1])
    acting = steps.Steps(shards["c"], steps.Options(fields=("image", "action")))
    with pytest.raises(UserError, match="samples of 'c' have 'action', those of 'a' have not"):
        Mixture({"a": of["a"], "c": acting}, [1, 1])
    with pytest.raises(UserError, match="samples of 'c' have 'action', those of 'a' have not"):
        Mixture({"c": acting, "a": of["a"]}, [1, 1])
    for weight in (0, -1, float("nan"), float("inf"), "1", None):
        with pytest.raises(UserError, match="weight of 'c' must be a positive number"):
            Mixture({"a": of["a"], "c": of["c"]}, [1, weight])


def test_a_mixture_through_the_loader(shards):
    options = steps.Options(fields=("image", "action"), image_size=16)
    mixed = Mixture({name: steps.Steps(s, options) for name, s in shards.items()}, [6, 1, 1])
    how = {"seed": 3, "batch_size": 8, "augment": Augment(shift=2, brightness=0.3)}
    stream = loader.train_batches(mixed, **how)
    alone = [next(stream) for _ in range(6)]
    share = np.mean([batch["dataset_id"] == 0 for batch in alone])
    assert abs(share - 0.75) < 0.1
    hosts = [loader.train_batches(mixed, host=(h, 2), start_step=2, **how) for h in range(2)]
    for batch in alone[2:]:
        halves = [next(host) for host in hosts]
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([half[name] for half in halves]))
