"""UniVLA through the launchers: its latent action model labels and is trained on; its policy learns those labels and a
robot's actions, is measured, acts in a simulator and is served to OpenVLA's clients."""

import json
import pathlib

import jax
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data import images
from lapa_jax.data.shards.labels import read_codes, read_label_info
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from launch import eval as evaluate
from launch import label
from tests.golden import released
from tests.sim.conftest import gl, mujoco  # noqa: F401
from tools import import_weights

pytestmark = pytest.mark.usefixtures("one_device")

FOLDER = str(pathlib.Path(lapa_jax.__file__).parent / "sample")

SHORT = ("data.path=sample", "data.threads=1", "data.eval_examples=4", "train.steps=2", "train.batch_size=4",
         "train.eval_batch_size=4", "train.log_every=1", "train.eval_every=2", "train.save_every=2",
         "train.trackers=()", "mesh.fsdp=1", "mesh.data=-1", "model.dtype=float32")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("univla")


@pytest.fixture(scope="module")
def lam(shared, folder):
    """The imported golden of the latent action model."""
    source = shared / "golden" / "released" / "univla_lam_small" / "lam-stage-2.ckpt"
    import_weights.main(["univla_lam", "--input", str(source), "--out", str(folder / "lam"), "--gap_frames", "3"])
    return folder / "lam"


@pytest.fixture(scope="module")
def labels(lam, folder):
    label.main(["--run", str(lam), "--data", FOLDER, "--out", str(folder / "labels")])
    return folder / "labels"


@pytest.fixture(scope="module")
def acting(root, shared, folder, labels):
    """A run that learned actions and codes, from the imported golden of the body."""
    released.import_("univla", released.copy_openvla(shared, folder / "source"), folder / "policy")
    given = (f"init_from.={folder / 'policy'}", f"data.labels={labels}", *SHORT, "model.llm.remat=none",
             "model.lora_rank=4", "optim.frozen_dtype=float32", "data.image_size=56", "data.text_length=192",
             "data.text_tokenizer.name=bytes", "data.chunk_length=3", "model.decoder_dim=32", "model.decoder_heads=2",
             "model.decoder_hidden=48")  # fmt: skip
    config = config_lib.load(f"{root}/configs/univla_policy.py:actions", [f"--config.{o}" for o in given])
    train(config, folder / "acting")
    return folder / "acting"


def test_labels_are_the_codes_of_the_latent_action_model(lam, labels):
    codes = read_codes(StepShards(labels, "val"), source := StepShards(FOLDER, "val"))
    model = lapa_jax.load(lam)
    steps = [0, 1, 7]
    frames = [[images.resize(source.image(step + later), 56) for later in (0, 3)] for step in steps]
    np.testing.assert_array_equal(codes[steps], model.encode(np.array(frames)))
    info = read_label_info(labels)
    assert info["tokenizer"] == model.fingerprint and info["codebook_size"] == 16 and codes.max() < 16


def test_its_latent_action_model_is_trained_further(root, lam, folder):
    """As in the second stage, in which the codes of the background stay."""
    given = (f"init_from.={lam}", *SHORT, "data.image_size=56")
    before = tree.flatten(load_for_inference(lam).variables["params"])
    sizes = config_lib.to_json(load_for_inference(lam).config.model)
    fields = [f"model.{name}={sizes[name]}" for name in ("dim", "heads", "encoder_depth", "decoder_depth", "quant_dim")]
    fields += [f"model.tower.{name}={sizes['tower'][name]}" for name in ("image_size", "dim", "depth", "heads",
                                                                      "hidden")]  # fmt: skip
    overrides = [f"--config.{o}" for o in (*given, *fields, "model.tower.dtype=float32", "data.gap_seconds=None",
                                           "data.gap_frames=3")]  # fmt: skip
    train(config_lib.load(f"{root}/configs/univla.py:released", overrides), folder / "lam_further")
    after = tree.flatten(load_for_inference(folder / "lam_further").variables["params"])
    assert before.keys() == after.keys()
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert {"quantizer/codebook", "to_task/kernel"} <= changed and "background/codebook" not in changed
    assert not any(name.startswith("tower/") for name in changed), "DINOv2 stays"


def test_the_policy_learns_codes_and_actions_together(acting, folder):
    before = tree.flatten(load_for_inference(folder / "policy").variables["params"])
    after = tree.flatten(load_for_inference(acting).variables["params"])
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    new = {name.partition("/")[0] for name in set(after) - set(before) if not tree.ADAPTER.fullmatch(name)}
    assert new == {"visual_pool", "latent_pool", "to_actions"}
    rows = [row for row in read_metrics(acting) if "train/loss" in row]
    for row in rows:
        np.testing.assert_allclose(row["train/loss"], row["train/loss_action"] + row["train/loss_latent"], rtol=1e-5)
    policy = lapa_jax.load(acting)
    assert (policy.model.chunk_length, policy.model.codebook_size, policy.model.first_code) == (3, 16, 32001)
    chunk, codes = policy.chunk_and_codes(np.zeros((40, 30, 3), np.uint8), "push")
    assert chunk.shape == (3, 2) and codes.shape == (4,) and codes.max() < 16
    assert jax.tree.all(jax.tree.map(np.isfinite, chunk.tolist()))


@pytest.mark.parametrize("data", [(), ("--data", FOLDER, "--dataset", "sample")])
def test_the_policy_is_measured_on_recorded_steps(acting, tmp_path, data):
    """Other data need no labels."""
    evaluate.main(["--run", str(acting), "--pairs", "4", "--out", str(tmp_path / "eval"), *data])
    assert "action_r2" in json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]


@pytest.mark.usefixtures("gl")
def test_the_policy_acts_in_a_simulator_with_the_means_of_its_authors(acting, tmp_path, monkeypatch):
    from lapa_jax.sim import push_table

    monkeypatch.setattr(push_table.Env, "max_steps", 3)
    evaluate.main(["--env", "push_table", "--episodes", "1", "--num_envs", "1", "--run", str(acting), "--videos", "0",
                   "--ensemble", "-0.1", "--out", str(tmp_path / "eval")])  # fmt: skip
    about = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert about["policies"]["policy"]["overall"]["episodes"] == 1
