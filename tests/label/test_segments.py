"""Segments of episodes: windows, holes, expected lengths, what is written, and the command."""

import json
import types

import jax
import ml_collections
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import ShardWriter, array_bytes, json_bytes, step_key, write_dataset
from lapa_jax.data.statistics import column_statistics
from lapa_jax.inference.tokenizers import ActionTokenizer
from lapa_jax.label import segments as segmentation
from lapa_jax.models import fifa
from lapa_jax.models.tokenizers import fsq, laq
from launch import segment
from tests.commands import refusal

WAYS = np.float32([[1, 0], [0, 1], [-1, 0], [0, -1]])
BORDERS = {"a": [0, 9, 20, 31], "b": [0, 14, 33], "c": [0, 5]}
CLUSTERS = {"a": [0, 1, 2], "b": [3, 1], "c": [2]}
HOLES = {("b", 4), ("b", 5)}


def actions_of(episode):
    """f32 [L, 2], in units of 0.01: each segment goes its cluster's way."""
    lengths = np.diff(BORDERS[episode])
    rng = np.random.default_rng(ord(episode))
    rows = WAYS[np.repeat(CLUSTERS[episode], lengths)] + 0.05 * rng.normal(size=(BORDERS[episode][-1], 2))
    return (0.01 * rows).astype(np.float32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three episodes; each ends with a step without an action, one has a hole of two steps."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "val-00000.tar") as writer:
        for episode in BORDERS:
            rows = actions_of(episode)
            for step in range(len(rows) + 1):
                meta = {"episode": episode, "step": step, "length": len(rows) + 1, "fps": 10.0}
                members = {"json": json_bytes(meta)}
                if step < len(rows) and (episode, step) not in HOLES:
                    members["action.npy"] = array_bytes(rows[step])
                writer.add(step_key(episode, step), members)
    steps = sum(border[-1] + 1 for border in BORDERS.values())
    splits = {"val": {"episodes": len(BORDERS), "steps": steps, "shards": [writer.summary]}}
    statistics = {"action": column_statistics([np.concatenate([actions_of(e) for e in BORDERS])])}
    features = {"action": {"shape": [2], "dtype": "float32", "names": ["x", "y"]}}
    write_dataset(folder, features=features, fps=10.0, source={"made": "test"}, splits=splits, statistics=statistics)
    return folder


@pytest.fixture(scope="module")
def tokenizer(shards):
    """One whose encoder hands the action on: four clusters are the four ways, eight subclusters lie around them."""
    spec = {"name": "tokenizers.mstcn", "action_dim": 2, "embed_dim": 4, "width": 4, "layers": 1, "context": 6,
            "stages": 1, "subclusters": 8, "clusters": 4, "codebook_init": "normal"}  # fmt: skip
    model = config_lib.build("lapa_jax.models", spec)
    variables = jax.jit(lambda rng: model.init({"params": rng, "noise": rng}, model.example(2), train=True))
    variables = jax.tree.map(np.array, dict(variables(jax.random.key(0))))
    stage = variables["params"]["encoder"]["stage_0"]
    passing = np.float32([[[1, 0, -1, 0], [0, 1, 0, -1]]])  # x, y -> x, y, -x, -y, which the norm leaves as it is
    stage["inwards"] = {"kernel": passing, "bias": np.zeros(4, np.float32)}
    stage["layer_0"]["mix"]["kernel"][:] = 0
    stage["outwards"] = {"kernel": np.eye(4, dtype=np.float32)[None], "bias": np.zeros(4, np.float32)}
    book = variables["codebook"]["codes"]
    ways = np.concatenate([WAYS, -WAYS], 1) / 2**0.5
    book["q"]["codes"][0] = ways
    near = np.concatenate([ways + 0.2 * np.roll(ways, 1, 0), ways - 0.2 * np.roll(ways, 1, 0)])
    book["z"]["codes"][0] = near / np.linalg.norm(near, axis=1, keepdims=True)
    config = ml_collections.ConfigDict({"model": spec, "data": {"normalize": "min_max", "fields": ("action",)}})
    opened = lapa_jax.data.pipeline.build({"path": str(shards), "split_train": "val", "samples": "steps"}, "train",
                                          fields=("action",))  # fmt: skip
    return ActionTokenizer(model, variables, config=config, datasets=opened.meta()["datasets"])


@pytest.fixture(scope="module")
def segmented(tokenizer, shards):
    segmenter = segmentation.Segmenter(tokenizer, shards, "val")
    episodes = list(segmenter.episodes())
    return segmenter, episodes, segmenter.segments(episodes)


def test_episodes_end_with_their_last_action_and_holes_are_masked(segmented):
    _, episodes, _ = segmented
    assert [episode.id for episode in episodes] == ["a", "b", "c"]
    for episode in episodes:
        there = np.array([(episode.id, step) not in HOLES for step in range(BORDERS[episode.id][-1])])
        np.testing.assert_array_equal(episode.mask, there)
        np.testing.assert_array_equal(episode.actions, actions_of(episode.id) * there[:, None])
        assert episode.first == 0 and episode.states is None


def test_probabilities_are_those_of_each_step_s_distances(segmented, tokenizer):
    """Of a tokenizer that sees nothing but the step itself, they do not depend on how windows are laid."""
    segmenter, episodes, _ = segmented
    longest = max(len(episode.mask) for episode in episodes)
    padded = lambda rows: np.concatenate([rows, np.zeros((longest - len(rows), *rows.shape[1:]), rows.dtype)])  # noqa: E731
    mask = np.stack([padded(episode.mask) for episode in episodes])
    scaled = np.stack([padded(tokenizer.to_model(episode.actions, None)) for episode in episodes]) * mask[..., None]

    @jax.jit
    def log_probabilities(variables, scaled, mask):
        distances = tokenizer.model.apply(variables, scaled, mask, method="cluster_distances")
        return fifa.log_probabilities(distances, segmenter.settings.temperature)

    for episode, want in zip(episodes, np.asarray(log_probabilities(tokenizer.variables, scaled, mask)), strict=True):
        want = want[: len(episode.mask)]
        got = segmenter.log_probabilities(episode)
        np.testing.assert_allclose(got[episode.mask > 0], want[episode.mask > 0], rtol=1e-3, atol=1e-3)


def test_segments_are_the_ones_that_were_planted(segmented):
    _, _, found = segmented
    for episode, segments in zip(BORDERS, found, strict=True):
        assert [segment.cluster for segment in segments] == CLUSTERS[episode]
        assert [segment.start for segment in segments] == BORDERS[episode][:-1]
        assert [segment.end for segment in segments] == BORDERS[episode][1:]
        assert all(0.5 < segment.confidence <= 1 for segment in segments)


def test_segments_do_not_depend_on_what_is_segmented_along(segmented):
    """Grouping and padding are invisible; only the expected lengths, of weight 0.001, are of all episodes."""
    segmenter, episodes, found = segmented
    for episode, segments in zip(episodes, found, strict=True):
        (alone,) = segmenter.segments([episode])
        assert [s[:3] for s in alone] == [s[:3] for s in segments]


def test_what_is_written_can_be_read(segmented, tmp_path):
    segmenter, episodes, found = segmented
    segmentation.write(tmp_path, segmenter, episodes, found, "runs/x")
    told = json.loads((tmp_path / "segments.json").read_text())
    assert told["split"] == "val" and told["clusters"] == 4 and told["tokenizer"] == segmenter.tokenizer.fingerprint
    arrays = np.load(tmp_path / "segments.npz")
    ids = arrays["episode_ids"].tolist()
    columns = (arrays[name].tolist() for name in ("episode", "cluster", "start", "end"))
    flat = [(ids[number], *row) for number, *row in zip(*columns, strict=True)]
    want = [(entry["episode"], s["cluster"], s["start"], s["end"]) for entry in told["episodes"]
            for s in entry["segments"]]  # fmt: skip
    assert flat == want and len(flat) == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    summary = segmentation.summary(found)
    assert summary["segments"] == 6 and summary["segments_per_episode"] == 2 and summary["clusters_used"] == 4


def test_the_command_writes_and_draws(tokenizer, shards, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "exported")
    command = ["--run", str(tmp_path / "exported"), "--data", str(shards), "--out", str(tmp_path / "out"),
               "--pictures", "2"]  # fmt: skip
    segment.main(command)
    assert "segments_per_episode" in capsys.readouterr().out
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert names == {"segments.json", "segments.npz", "overview.png", "episodes/a.png", "episodes/b.png"}
    assert "temperature is 0.0" in refusal(segment.main, [*command, "--temperature", "0"], capsys)


def test_other_models_and_other_data_are_refused(tokenizer, shards, tmp_path):
    for kind in (fsq, laq):  # a tokenizer of actions in one level, and one of frame pairs
        config = ml_collections.ConfigDict({"model": {"name": "other"}})
        other = types.SimpleNamespace(model=kind.Model(), config=config)
        with pytest.raises(UserError, match="other has no clusters"):
            segmentation.Segmenter(other, shards, "val")
    with pytest.raises(UserError, match="val"):
        segmentation.Segmenter(tokenizer, shards, "test")
