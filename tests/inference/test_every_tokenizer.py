"""Every tokenizer of numeric columns, small and untrained: what inference asks of a model holds for the real ones."""

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.data.shards.labels import read_codes
from lapa_jax.data.shards.step_shards import StepShards, dataset_folder
from lapa_jax.evaluate import evaluation_of
from lapa_jax.label.labeller import Labeller
from tests.inference import untrained

SMALL = {
    "mstcn": ("width=8", "embed_dim=8", "layers=2", "subclusters=16", "clusters=4"),
    "fsq": ("dim=16", "heads=2", "dim_head=8", "encoder_depth=1", "decoder_depth=1"),
    "feature_vq": ("hidden_dim=8", "embedding_dim=8", "decoder_dim=8", "partial_dim=8"),
}


@pytest.fixture(scope="module", params=list(SMALL))
def run(request, root, tmp_path_factory):
    overrides = [f"--config.model.{override}" for override in SMALL[request.param]]
    config = config_lib.load(f"{root}/configs/{request.param}.py:tiny", overrides)
    return untrained.write(tmp_path_factory.mktemp(request.param) / "run", config)


@pytest.fixture(scope="module")
def tokenizer(run):
    return lapa_jax.load(run)


def held_out(tokenizer) -> tuple[StepShards, list[np.ndarray]]:
    """The validation split that the run was trained beside, and the real rows of each of its episodes."""
    shards = StepShards(dataset_folder(tokenizer.config.data.path), "val")
    name = f"{tokenizer.column}.npy"
    found = []
    for episode in shards.episodes:
        steps = [i for i in range(episode.start, episode.start + episode.length) if shards.has(i, name)]
        found.append(np.stack([shards.array(i, tokenizer.column) for i in steps]))
    return shards, found


def test_codes_and_units(tokenizer, tmp_path):
    rows = held_out(tokenizer)[1][0][:4]
    codes = tokenizer.encode(rows)
    per_row = tokenizer.column != "action" or tokenizer.chunk_length is None
    assert codes.shape == ((len(rows),) if per_row else ()) + (len(tokenizer.codebook_sizes),)
    assert codes.dtype == np.int32 and (codes >= 0).all() and (codes < np.array(tokenizer.codebook_sizes)).all()
    decoded = tokenizer.decode(codes)
    assert decoded.dtype == np.float32 and decoded.shape[-1] == rows.shape[-1] and np.isfinite(decoded).all()
    tokenizer.save_pretrained(tmp_path / "exported")
    again = lapa_jax.load(tmp_path / "exported")
    assert again.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(again.encode(rows), codes)
    np.testing.assert_array_equal(again.decode(codes), decoded)


def test_what_is_padded_changes_nothing(tokenizer):
    """A sequence has the same codes and actions alone, longer than it is, and beside others."""
    if tokenizer.column != "action":
        pytest.skip("rows of features have no neighbours")
    actions = np.random.default_rng(1).normal(size=(5, 7, tokenizer.width)).astype(np.float32)
    mask = np.ones((5, 7))
    mask[:, 4:] = 0
    codes = tokenizer.encode(actions, mask)
    short = tokenizer.encode(actions[:, :4])
    if tokenizer.chunk_length:
        np.testing.assert_array_equal(codes, short)
        return
    np.testing.assert_array_equal(codes[:, :4], short)
    np.testing.assert_allclose(tokenizer.decode(codes, mask)[:, :4], tokenizer.decode(short), rtol=1e-4, atol=1e-5)


def test_labels_are_the_codes_of_each_step(tokenizer, tmp_path):
    shards, episodes = held_out(tokenizer)
    Labeller(tokenizer, shards.folder, tmp_path / "labels", splits=["val"]).run(progress=False)
    codes = read_codes(StepShards(tmp_path / "labels", "val"), shards)
    for episode, rows in zip(shards.episodes, episodes, strict=True):
        own = codes[episode.start : episode.start + len(rows)]
        if tokenizer.column == "action" and tokenizer.chunk_length:
            length = tokenizer.chunk_length
            want = np.stack([tokenizer.encode(rows[t : t + length]) for t in range(len(rows))])
        elif tokenizer.column == "action" and len(rows) > tokenizer.model.context:
            continue
        else:
            want = tokenizer.encode(rows)
        np.testing.assert_array_equal(own, want)


def test_evaluation_measures_what_training_does(run, tokenizer, tmp_path):
    result = evaluation_of(tokenizer)(tokenizer, run=run, out=tmp_path, pairs=40).write()
    assert {"metrics.json", "report.html", "usage.png"} <= {p.name for p in tmp_path.iterdir()}
    ours = result["measured"]
    theirs = next(result["metrics"][name] for name in ("action_mse", "mse") if name in result["metrics"])
    if tokenizer.column == "action":
        np.testing.assert_allclose(ours["action_mse"], theirs, rtol=1e-3)
    assert all(np.isfinite(value) for value in ours.values())
