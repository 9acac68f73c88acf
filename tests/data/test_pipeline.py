import json

import ml_collections
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.samples.chunks import Chunks
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.data.samples.mixture import Mixture
from lapa_jax.data.samples.pairs import FramePairSource
from lapa_jax.data.samples.sequences import Sequences
from lapa_jax.data.samples.steps import Steps
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.training import open_training
from lapa_jax.data.transforms import Augment
from tests.data.samples import make
from tests.inference import step_shards

SPLITS = {"train": [[6, 5]], "val": [[4, 7]]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    texts = ["push it left", "lift"] * 2
    return {
        "a": make.write(root / "a", SPLITS, texts=texts, cameras=("image", "image_top"), tasks=["x"] * 4),
        "b": make.write(root / "b", SPLITS, widths={"action": 5, "state": 4}, size=32, seed=1, tasks=["y"] * 4),
        "c": make.write(root / "c", {"train": [[5, 5]]}, seed=2),
    }


def test_pairs_of_a_folder_and_a_split(tmp_path):
    train, labelled = step_shards.write(tmp_path / "a"), step_shards.write(tmp_path / "b", lengths={"val": [[5]]})
    data = {"path": str(train), "gap_seconds": 0.2, "gap_frames": None}
    assert len(pipeline.build(data, "train")) == 5 + 2 + 7 + 1
    assert len(pipeline.build(data, "val")) == 4 + 3
    assert len(pipeline.build({**data, "val_path": str(labelled)}, "val")) == 3
    assert len(pipeline.build({**data, "split_val": "train"}, "val")) == 15
    assert pipeline.has_actions(data, "val") and pipeline.eval_fields(data) == ("frames", "net_action")
    shards = StepShards(train)
    assert pipeline.build(data, "train").meta() == {
        "data_fingerprint": shards.fingerprint, "gap_frames": 2,
        "datasets": {"a": {"statistics": shards.statistics, "features": shards.features, "fps": 10.0, "weight": 1.0,
                           "fingerprint": shards.fingerprint, "gap_frames": 2, "labels": None}},
    }  # fmt: skip
    with pytest.raises(UserError, match="data.path"):
        pipeline.build({}, "train")


def test_every_kind_by_its_name(folders):
    data = {"path": str(folders["a"]), "fields": ("action", "state")}
    kinds = {"steps": Steps, "chunks": Chunks, "sequences": Sequences}
    for name, kind in kinds.items():
        source = pipeline.build({**data, "samples": name}, "train")
        assert isinstance(source, kind) and "action" in source[0]
    assert set(pipeline.kinds()) == {*kinds, "pairs"}
    chunks = pipeline.build({**data, "samples": "chunks", "chunk_length": 3, "history": 1}, "val")
    assert chunks[0]["action"].shape == (3, 3) and chunks[0]["state"].shape == (2, 2)


def test_held_out_tasks_are_evaluated_but_never_learned(tmp_path):
    folder = make.write(tmp_path, {"train": [[5] * 4], "val": [[5] * 4]}, tasks=["x", "x", "y", "y"] * 2)
    data = {"path": str(folder), "samples": "sequences", "held_out_tasks": ("y",)}
    tasks = {split: pipeline.build(data, split).tasks for split in ("train", "val")}
    assert tasks == {"train": ["x"], "val": ["x", "y"]}
    assert pipeline.build({**data, "tasks_val": "held_out"}, "val").tasks == ["y"]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"samples": "chunk"}, "did you mean 'chunks'"),
        ({"samples": "chunks", "chunk_lenght": 3}, "no field 'chunk_lenght'.*'chunks'; did you mean 'chunk_length'"),
        ({"prefetsch": 3}, "no field 'prefetsch'.*kind 'pairs'; did you mean 'prefetch'"),
        ({"samples": "steps", "gap_frames": 1}, "no field 'gap_frames' for samples of kind 'steps'"),
        ({"camera": "image_to"}, "did you mean 'image_top'"),
    ],
)
def test_fields_that_are_not_there(folders, wrong, words):
    gap = {} if "samples" in wrong else {"gap_frames": 1}
    with pytest.raises(UserError, match=words):
        pipeline.build({"path": str(folders["a"]), **gap, **wrong}, "train")


def test_a_mixture_with_what_differs_in_each_part(folders):
    parts = (
        {"path": str(folders["a"]), "weight": 1.0, "camera": "image_top", "gap_frames": 3},
        {"path": str(folders["b"]), "weight": 3.0, "gap_seconds": 0.1, "name": "second"},
        {"path": str(folders["c"]), "weight": 1, "split_val": None},
    )
    data = {"mixture": parts, "gap_seconds": None, "gap_frames": 2, "image_size": 16, "camera": "image"}
    train, val = pipeline.build(data, "train"), pipeline.build(data, "val")
    assert isinstance(train, Mixture) and train.names == ("a", "second", "c") and val.names == ("a", "second")
    assert train.weights == (0.2, 0.6, 0.2)
    assert [source.gaps[0] for source in train.sources.values()] == [3, 1, 2], "10 frames per second"
    assert train.sources["a"].camera == "image_top" and train.sources["c"].camera == "image"
    assert train.lengths == (3 + 2, 5 + 4, 3 + 3) and val.lengths == (1 + 4, 3 + 6)
    assert pipeline.eval_fields(data) == ("frames", "net_action")
    other = pipeline.build({**data, "val_path": str(folders["a"])}, "val")
    assert isinstance(other, FramePairSource) and other.shards.split == "val"


def test_a_mixture_from_the_command_line_and_back_from_json(root, folders):
    parts = tuple({"path": str(folders[name]), "weight": 1.0} for name in "ab")
    overrides = [f"--config.data.mixture={parts!r}", "--config.data.gap_frames=1", "--config.model.image_size=16"]
    config = config_lib.load(f"{root}/configs/laq.py", overrides)
    again = config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config))))
    for data in (config.data, again.data):
        assert pipeline.build(data, "train").lengths == (9, 9)


def test_mixtures_that_mean_nothing(folders):
    a = {"path": str(folders["a"]), "weight": 1.0}
    for parts, words in (
        ((a, a), "two parts 'a'.*different values of \"name\""),
        (({**a, "wieght": 2},), "no field 'wieght'; did you mean 'weight'"),
        (({"path": str(folders["a"])},), 'lacks its "weight"'),
        (({"weight": 1.0},), 'lacks its "path"'),
        (({**a, "weight": 0},), "positive number"),
        (({**a, "gap_frames": 1}, {"path": str(folders["b"]), "weight": 1, "gap_frames": 1}), "set data.image_size"),
    ):
        with pytest.raises(UserError, match=words):
            pipeline.build({"mixture": parts, "gap_frames": 1}, "train")
    with pytest.raises(UserError, match="no part of data.mixture has a split_val"):
        pipeline.build({"mixture": ({**a, "split_val": None},), "gap_frames": 1}, "val")


def test_statistics_of_a_checkpoint_go_before_those_of_today(folders, tmp_path):
    data = {"path": str(folders["a"]), "samples": "steps", "fields": ("action",), "normalize": "min_max"}
    first = pipeline.build(data, "train")
    saved = json.loads(json.dumps(statistics_of(first.meta())))
    assert list(saved) == ["a"]
    moved = {**saved["a"]["action"], "max": [m + 2 for m in saved["a"]["action"]["max"]]}
    resumed = pipeline.build(data, "train", statistics={"a": {**saved["a"], "action": moved}})
    raw = pipeline.build({**data, "normalize": "none"}, "train").batch(range(9))["action"]
    low, high = np.array(moved["min"]), np.array(moved["max"])
    np.testing.assert_allclose(resumed.batch(range(9))["action"], 2 * (raw - low) / (high - low) - 1, atol=1e-5)
    assert resumed.meta()["datasets"]["a"]["statistics"]["action"] == moved
    # held-out data of another folder are scaled as the training data are
    val = pipeline.build({**data, "val_path": str(folders["c"]), "split_val": "train"}, "val", statistics=saved)
    assert val.statistics == saved["a"] != StepShards(folders["c"]).statistics


def test_statistics_of_a_mixture_are_found_by_name(folders):
    parts = [{"path": str(folders[name]), "weight": 1.0} for name in "ab"]
    data = {"mixture": parts, "samples": "steps", "fields": ("action",), "normalize": "mean_std"}
    saved = statistics_of(pipeline.build(data, "train").meta())
    val = pipeline.build(data, "val", statistics=saved)
    assert {name: source.statistics for name, source in val.sources.items()} == saved
    with pytest.raises(UserError, match="needs the statistics of one of a, b; 'val_path' is none of them"):
        pipeline.build({**data, "val_path": str(folders["c"]), "split_val": "train"}, "val", statistics=saved)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda s: s.pop("action"), "data set 'data' has no statistics of its column 'action': convert the data again"),
        (lambda s: s["action"].update(count=0), "'action' are over no rows"),
        (lambda s: s["action"].pop("q99"), "no entry for 'q99', not 3"),
        (lambda s: s["action"].update(mean=[0.0, 1.0]), "2 numbers for 'mean', not 3"),
        (lambda s: s["action"].update(std=[0.0, 1.0, float("nan")]), "the std of 'action' is not finite"),
    ],
)
def test_training_needs_statistics_of_what_it_learns_from(tmp_path, spoil, words):
    folder = make.write(tmp_path / "data", [4], cameras=())
    told = json.loads((folder / "statistics.json").read_text())
    spoil(told)
    (folder / "statistics.json").write_text(json.dumps(told))
    source = pipeline.build({"path": str(folder), "samples": "steps", "fields": ("action", "state")}, "train")
    with pytest.raises(UserError, match=words):
        pipeline.check_trainable(source)
    pipeline.check_trainable(pipeline.build({"path": str(folder), "samples": "steps", "fields": ("state",)}, "train"))


def test_statistics_of_a_run_on_another_robot_are_named_as_that(tmp_path):
    """Its data are as they should be, and converting them again would not help."""
    folder = make.write(tmp_path / "data", [4], cameras=())
    of_run = json.loads((folder / "statistics.json").read_text())
    of_run["action"] = {name: value if name == "count" else [*value, 0.0] for name, value in of_run["action"].items()}
    data = {"path": str(folder), "samples": "steps", "fields": ("action",), "normalize": "mean_std"}
    with pytest.raises(UserError, match="'action' has 3 numbers in .*data, and 4 in the data that the run"):
        pipeline.build(data, "train", statistics={"theirs": of_run})


def test_augmentation_of_other_samples(folders, tmp_path):
    data = {"path": str(folders["a"]), "samples": "steps", "fields": ("image", "text"), "augment": {"shift": 2}}
    assert pipeline.augmentation(data, pipeline.build(data, "train")) == Augment(shift=2)
    flip = {**data, "augment": {"flip": 0.5}}
    with pytest.raises(UserError, match="'push it left' wrong"):
        pipeline.augmentation(flip, pipeline.build(flip, "train"))
    later = make.write(tmp_path, [4], texts=[["lift", "lift", "now left", "lift"]])
    with pytest.raises(UserError, match="'now left' wrong"):
        pipeline.augmentation(flip, pipeline.build({**flip, "path": str(later)}, "train"))
    for fields, words in ((("image", "action"), "but not action"), (("action",), "have no images")):
        chosen = {**flip, "fields": fields}
        with pytest.raises(UserError, match=words):
            pipeline.augmentation(chosen, pipeline.build(chosen, "train"))
    quiet = ml_collections.ConfigDict({**data, "augment": None})
    assert pipeline.augmentation(quiet, pipeline.build(quiet, "train")) is None


def test_one_length_of_instructions_for_all_that_a_run_reads(tmp_path):
    """Parts of a mixture and held-out episodes need more than others: all are padded to what the longest needs."""
    texts = {"short": ["go", "go" * 20], "long": ["x" * 10, "y"]}
    folders = [make.write(tmp_path / name, {"train": [[4]], "val": [[4]]}, texts=of) for name, of in texts.items()]
    tokens = {"text_tokenizer": {"name": "bytes"}, "text_length": None}
    data = {"samples": "steps", "fields": ("text",), **tokens,
            "mixture": [{"path": str(folder), "weight": 1.0} for folder in folders]}  # fmt: skip
    assert pipeline.build(data, "train").text_lengths == (16, 11), "rounded up to a multiple of eight"
    opened = open_training(data, batch_size=2)
    assert opened.text_length == 48
    for source in (opened.train, opened.validation):
        assert source.text_lengths[0] == 48
        sample = source.batch([0, len(source) - 1])
        assert sample["text"].shape == sample["text_mask"].shape == (2, 48)
        assert source.batch([])["text"].shape == (0, 48)
    assert opened.train.batch([0, 4])["text_mask"].sum(1).tolist() == [3, 11]
    assert any("data.text_length = 48; the longest instruction takes 41 tokens" in note for note in opened.notes)
    alone = {**data, "mixture": None, "path": str(folders[0])}
    assert open_training(alone, batch_size=2).text_length == 48
    for length, noted in ((64, False), (96, True)):
        given = open_training({**alone, "text_length": length}, batch_size=2)
        assert given.text_length is None and given.train.batch([0])["text"].shape == (1, length)
        assert any("longest instruction takes 41 tokens" in note for note in given.notes) == noted
    frames = make.write(tmp_path / "frames", SPLITS)
    pairs = {"path": str(frames), "gap_frames": 1}
    assert open_training(pairs, batch_size=2).text_length is None


def test_video_beside_demonstrations_has_latents_and_no_scale(tmp_path):
    """Co-training: the held-out chunks are scaled as those of the one part whose actions are learned from."""
    more = {"latents": 2, "texts": ["push"] * 4}
    demos, video, held_out = (make.write(tmp_path / name, {"train": [[9, 9]]}, seed=seed, **more)
                              for seed, name in enumerate(("demos", "video", "held_out")))  # fmt: skip
    parts = ({"path": str(demos), "weight": 1.0},
             {"path": str(video), "weight": 1.0, "fields": ("latent",), "split_val": None})  # fmt: skip
    data = ml_collections.ConfigDict({
        "samples": "chunks", "fields": ("action", "latent"), "chunk_length": 3, "normalize": "q01_q99", "augment": None,
        "mixture": parts, "val_path": str(held_out), "split_val": "train"})  # fmt: skip
    opened = open_training(data, batch_size=2)
    assert "action" not in statistics_of(opened.meta)["video"]
    scaled = pipeline.build({**data, "mixture": None, "path": str(held_out), "val_path": None}, "val",
                            statistics={"demos": StepShards(demos).statistics})  # fmt: skip
    np.testing.assert_array_equal(opened.validation.batch([0])["action"], scaled.batch([0])["action"])
    video_chunk = opened.train.batch([len(opened.train) - 1])
    assert not video_chunk["action_mask"].any() and not video_chunk["action_dims"].any()
