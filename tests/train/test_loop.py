"""The loop end to end, on a LAQ of a few thousand parameters and the sample that comes with the package; on one device,
but for the test of the mesh of eight."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.core.lock import locked
from lapa_jax.core.metrics import read_metrics
from lapa_jax.train import checkpoint, profile_report
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import collapsed_positions, train
from launch import train as launcher
from tests import toys
from tests.commands import refusal
from tests.data.samples import make

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = ["image_size=32", "patch_size=8", "dim=16", "heads=2", "dim_head=8", "quant_dim=8", "spatial_depth=1",
         "temporal_depth=1", "decoder_depth=1"]  # fmt: skip
SHORT = ["steps=6", "batch_size=8", "eval_batch_size=16", "log_every=2", "eval_every=3", "save_every=2",
         "trackers=('tensorboard',)"]  # fmt: skip


def make_config(root: pathlib.Path, *overrides: str):
    small = [f"--config.model.{o}" for o in SMALL] + [f"--config.train.{o}" for o in SHORT]
    return config_lib.load(f"{root}/configs/laq.py:test", [*small, *overrides])


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory):
    return make.write(tmp_path_factory.mktemp("data") / "arm", toys.LENGTHS, cameras=())


@pytest.fixture
def toy(toy_data, monkeypatch):
    """Changes of `config.train` -> the config of a model of a few numbers, for tests in which the model is not the
    point."""
    toys.use(monkeypatch)
    return lambda **train: toys.config("chunks", toy_data, **{"save_every": 2, **train})


@pytest.fixture(scope="module")
def toy_whole(toy_data, tmp_path_factory):
    """Its run of six steps without interruption."""
    run = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        train(toys.config("chunks", toy_data, save_every=2), run)
    return run


def at_learning_rate(config, value: float):
    config = config.copy_and_resolve_references()
    config.optim.learning_rate = value
    return config


def variables(run: pathlib.Path, step=None) -> dict:
    return load_for_inference(run, step).variables


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """A run of six steps without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(root, "--config.train.profile=(2, 2)"), run)
    return run


def test_run_folder_holds_what_the_design_says(whole):
    names = {p.name for p in whole.iterdir()}
    assert {"config.json", "metrics.jsonl", "log.txt", "env.json", "checkpoints", "tensorboard", "profile"} <= names
    log = (whole / "log.txt").read_text()
    assert f", which the next start of this config finds in {jax.config.jax_compilation_cache_dir} ..." in log
    assert log.index("compiling the training step") < log.index("memory per device") < log.index("step 3:")
    assert log.index("evaluating the untrained model") < log.index("step 0:") and "traced 2 steps" in log
    (report,) = profile_report.read(whole).values()
    assert report.steps == 2 and report.shares[profile_report.MATRIX] > 0
    assert json.loads((whole / "env.json").read_text())["devices"]["count"] == 1


def test_metrics_have_their_names(whole):
    lines = read_metrics(whole)
    logged = {name for line in lines for name in line}
    assert {"train/loss", "train/loss_reconstruction", "train/grad_norm", "train/learning_rate", "train/perplexity",
            "train/samples_per_second", "train/input_wait", "train/codebook_utilization", "val/psnr", "val/psnr_gain",
            "val/swap_gap", "val/perplexity", "val/codebook_utilization", "val/action_probe_r2",
            "val/action_probe_r2_delta", "val/action_probe_r2_untrained", "system/host_memory",
            "system/process_memory", "system/disk_free"} <= logged  # fmt: skip
    at = {line["step"]: line for line in lines if "val/psnr" in line}
    assert sorted(at) == [0, 3, 6]
    assert at[6]["val/action_probe_r2_untrained"] == at[0]["val/action_probe_r2"]


def test_interrupted_run_ends_in_the_same_bits(toy, toy_whole, tmp_path):
    run = tmp_path / "run"
    train(toy(steps=4), run)
    # What happened to it meanwhile: its newest checkpoint was damaged, and a small file was lost.
    (run / "checkpoints/4/state/manifest.ocdbt").write_bytes(b"")
    (run / "untrained.json").unlink()
    train(toy(), run)
    log = (run / "log.txt").read_text()
    assert "state/manifest.ocdbt has 0 bytes instead of" in log and "resuming from step 2" in log
    assert "untrained.json does not exist: evaluations go on without" in log
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"2", "4", "6", "4.damaged"}
    a, b = variables(toy_whole), variables(run)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
    assert [line["step"] for line in read_metrics(run) if "train/loss" in line] == [2, 4, 6]
    old, new = (next(x for x in read_metrics(r) if x["step"] == 6 and "train/loss" in x) for r in (toy_whole, run))
    assert old["train/loss"] == new["train/loss"]
    train(toy(steps=4), run)  # fewer than it has: nothing is left to do
    assert checkpoint.steps(run)[-1] == 6 and read_metrics(run)[-1]["step"] == 6


def test_where_all_checkpoints_are_damaged_or_lost_it_never_starts_anew(toy, tmp_path):
    run = tmp_path / "run"
    train(toy(steps=4), run)
    for step in (2, 4):
        files = (path for path in (run / f"checkpoints/{step}/state").rglob("*") if path.is_file())
        largest = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        train(toy(), run)
    for step in (2, 4):
        assert f"checkpoints/{step} is damaged (state/" in str(refusal.value)
        assert f"has another checksum): moved aside to {step}.damaged" in str(refusal.value)
    shutil.rmtree(run / "checkpoints")
    (run / "log.txt").unlink()
    with pytest.raises(UserError, match="no whole checkpoint left: first_checkpoint.json says that one was saved"):
        train(toy(), run)


def test_sharding_changes_rounding_only(root, whole, all_devices, tmp_path):
    run = tmp_path / "run"
    train(make_config(root, "--config.mesh.data=2", "--config.mesh.fsdp=4", "--config.train.steps=2"), run)
    assert json.loads((run / "env.json").read_text())["devices"]["count"] == 8
    first = lambda r: next(x["train/loss"] for x in read_metrics(r) if "train/loss" in x)  # noqa: E731
    np.testing.assert_allclose(first(run), first(whole), rtol=1e-4)
    with pytest.raises(ConfigError, match="does not divide into 8 parts"):
        train(make_config(root, "--config.train.batch_size=12", "--config.mesh.data=8"), tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_dry_run_writes_nothing(toy, tmp_path, capsys):
    train(toy(), tmp_path / "run", dry_run=True)
    out = capsys.readouterr().out
    assert "optim.groups[0] '.*': learning rate" in out and "GFLOP" in out
    assert "batch action: float32[16, 4, 3]" in out
    assert not list(tmp_path.iterdir())


def test_another_config_is_refused(root, whole):
    before = (whole / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        train(make_config(root, "--config.seed=1"), whole)
    assert (whole / "config.json").read_bytes() == before


def test_a_run_goes_on_though_its_config_is_older_than_keys_that_change_nothing(root, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    own = json.loads((run / "config.json").read_text())
    older = json.loads(json.dumps(own))
    # The recipe has a weight of 0 and the model's default of the one, and neither of the other.
    assert own["loss"]["flow"] == 0 and own["model"]["view_share"] == 0.5 and own["loss"]["motion"] > 0
    del older["loss"]["flow"], older["model"]["view_share"]
    (run / "config.json").write_text(json.dumps(older))
    train(make_config(root), run)
    now = json.loads((run / "config.json").read_text())
    assert now["loss"] == own["loss"] and now["model"] == own["model"]
    del older["loss"]["motion"]
    (run / "config.json").write_text(json.dumps(older))
    with pytest.raises(ConfigError, match="another config .loss.motion: 0.0 -> 0.1"):
        train(make_config(root), run)


def test_folder_of_something_else_is_refused(root, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run"):
        train(make_config(root), tmp_path)


def test_a_run_that_never_reached_a_checkpoint_does_not_block_its_folder(toy, toy_whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"not finite at step\(s\)"):
        train(at_learning_rate(toy(), 1e30), run)
    assert "config.json" in {p.name for p in run.iterdir()} and not checkpoint.steps(run) and read_metrics(run)
    with locked(run / ".lock", f"training in {run}"), pytest.raises(UserError, match="already training in"):
        train(toy(), run)
    (run / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match="learning_rate"):
        train(toy(), run)
    (run / "notes.md").unlink()
    train(toy(), run)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables(toy_whole), variables(run)))
    assert [line["step"] for line in read_metrics(run)] == [line["step"] for line in read_metrics(toy_whole)]
    with pytest.raises(ConfigError, match="optim.learning_rate: 0.01 -> 1.0"):
        train(at_learning_rate(toy(), 1.0), run)


def test_launcher_ends_bad_input_in_one_line_and_code_2(root, tmp_path, capsys):
    config = f"{root}/configs/laq.py"
    for arguments, words in (
        ([f"{config}:tinny"], "laq has no variant 'tinny'; it has features, own_features, cosine, "),
        ([f"{config}:tiny", "--config.model.dimm=3"], "did you mean 'dim'"),
        ([config], "config.data.path"),
        ([f"{config}:tiny", "--config.model.patch_size=7"], "patch_size"),
        ([f"{config}:tiny", "--config.data.path=/nowhere"], "/nowhere does not exist"),
    ):
        assert words in refusal(launcher.main, ["--workdir", tmp_path / "run", "--config", *arguments], capsys)
        assert not (tmp_path / "run").exists()


def test_the_warning_of_a_collapse_names_the_positions():
    metrics = {"collapse": 1.0, "largest_code_share": 1.0, "largest_code_share_position_0": 0.9,
               "largest_code_share_position_2": 0.91, "bridge/largest_code_share_z": 1.0}  # fmt: skip
    assert collapsed_positions(metrics) == ["position 2", "bridge/z"]
