"""A run of the feature tokenizer from its config: what it finds in the data, early stopping, loading."""

import json

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = ("model.hidden_dim=8", "model.embedding_dim=8", "model.decoder_dim=8", "model.partial_dim=8",
         "model.topo_samples=8", "train.batch_size=16", "train.eval_batch_size=64", "train.log_every=2",
         "train.eval_every=2", "train.save_every=2", "train.trackers=()", "data.eval_examples=64",
         "optim.schedule=constant")  # fmt: skip


def make_config(root, *overrides):
    return config_lib.load(f"{root}/configs/feature_vq.py:tiny", [f"--config.{o}" for o in (*SMALL, *overrides)])


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """A run of four steps without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(root, "train.steps=4"), run)
    return run


def test_the_run_keeps_what_it_found_and_its_best_checkpoint_is_by_the_composite(whole):
    model = json.loads((whole / "config.json").read_text())["model"]
    truth = json.loads(StepShards("sample_features", "train").folder.joinpath("planted.json").read_text())
    assert model["constants"] == truth["constants"] and model["orphans"] == truth["loners"]
    assert len(model["groups"]) == 4 and len(model["center"]) == model["feature_dim"] == 37
    rows = [row for row in read_metrics(whole) if "val/composite" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    for row in rows:
        parts = 0.5 * row["val/topo_post"] + 0.5 * row["val/quality"] - row["val/loss"]
        assert row["val/composite"] == pytest.approx(parts, abs=1e-6)


def test_loading_needs_no_data_and_gives_features_in_their_units(whole):
    tokenizer = lapa_jax.load(whole)
    shards = StepShards("sample_features", "val")
    rows = np.stack([shards.array(i, "feature") for i in range(12)])
    codes = tokenizer.encode(rows)
    assert codes.shape == (12, 12) and len(tokenizer.codebook_sizes) == 12
    decoded = tokenizer.decode(codes)
    constants = list(tokenizer.model.constants)
    np.testing.assert_allclose(decoded[:, constants], rows[:, constants], rtol=1e-6)
