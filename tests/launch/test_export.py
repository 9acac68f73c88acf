"""`launch/export.py` as a user runs it: the formats, exact round trips, what is refused, and nothing half-written."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.export import program
from lapa_jax.inference import load as restore
from launch import export
from tests.commands import error_of
from tests.inference import random_vla, small_run, step_shards

PLACES = ("laq", "actions", "codes")


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """{"laq", "actions", "codes": run folder}."""
    base = tmp_path_factory.mktemp("runs")
    data = step_shards.write(base / "data")
    random_vla.write(base / "actions", root, "vla_action.py", "data.chunk_length=1", head="latent")
    random_vla.write(base / "codes", root, "vla_latent.py")
    small_run.write(base / "laq", root, data)
    return {name: base / name for name in PLACES}


def call(run, out, *options) -> None:
    export.main(["--run", str(run), "--out", str(out), *options])


def load(folder, step=None):
    return restore.load(folder, step, devices=jax.devices()[:1])


def used(model, kind: str) -> np.ndarray:
    """What a model makes of something it is given."""
    if kind == "laq":
        return model.encode(np.random.default_rng(0).integers(0, 256, (5, 2, 32, 32, 3), np.uint8))
    return (model.chunk if kind == "actions" else model.logits)(*random_vla.seen(model))


@pytest.mark.parametrize("kind", PLACES)
def test_weights_round_trip_to_the_bit(runs, kind, tmp_path, capsys):
    call(runs[kind], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert str(tmp_path / "out" / "model.safetensors") in capsys.readouterr().out
    model, again = load(runs[kind]), load(tmp_path / "out")
    assert type(again) is type(model) and again.fingerprint == model.fingerprint and again.step == model.step
    np.testing.assert_array_equal(used(again, kind), used(model, kind))


def test_what_a_killed_export_has_left_goes_with_the_next_one(runs, tmp_path):
    left, other = tmp_path / ".out.0123abcd.tmp", tmp_path / ".out.2.0123abcd.tmp.txt"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    other.write_text("of the user")
    another_export = tmp_path / ".out.2.0123abcd.tmp"  # to out.2, at this moment
    another_export.mkdir()
    call(runs["laq"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [another_export.name, other.name, "out"]


def test_an_earlier_step_and_an_export_of_an_export(runs, tmp_path):
    call(runs["laq"], tmp_path / "first", "--step", "1")
    call(tmp_path / "first", tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.step == 1 and again.fingerprint == load(runs["laq"], step=1).fingerprint


def test_int8_with_its_error_and_its_program(runs, tmp_path, capsys):
    how = ("--format", "int8", "--samples", "16", "--max_error")
    with pytest.raises(UserError, match="--max_error is 1e-06 %"):
        call(runs["actions"], tmp_path / "small", *how, "1e-6")
    assert list(tmp_path.iterdir()) == []
    call(runs["actions"], tmp_path / "small", *how, "60", "--dtype", "bfloat16")
    report = json.loads((tmp_path / "small" / "int8.json").read_text())
    assert report["samples"] == 16 and report["max_error"] == 60 and report["modules"] == ".*"
    assert report["bytes"]["int8"] < 0.6 * report["bytes"]["float"] and 0 < report["error"] <= 60
    assert "as int8" in capsys.readouterr().out
    assert "action_mse" in report["metrics"]["int8"] and report["data"] == "sample"
    call(tmp_path / "small", tmp_path / "program", "--format", "stablehlo", "--platform", "cpu")
    small = load(tmp_path / "small")
    found = program.load(tmp_path / "program", devices=jax.devices()[:1])
    kinds = {name.rpartition("/")[2]: str(leaf.dtype) for name, leaf in tree.flatten(found.variables).items()}
    assert kinds["kernel_int8"] == "int8" and kinds["kernel_scale"] == "float32" and kinds["embedding"] == "bfloat16"
    np.testing.assert_allclose(used(found, "actions"), used(small, "actions"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("laq", ["--format", "onnx"], "--format 'onnx' is not known; known: int8, safetensors, stablehlo"),
        ("laq", ["--format", "stablehlo"], "holds a tokenizer of frame pairs, which has no program to export"),
        ("laq", ["--format", "int8"], "holds a tokenizer of frame pairs; int8 is for"),
        ("laq", ["--dtype", "float16"], "--dtype 'float16' is not bfloat16"),
        ("laq", ["--step", "9"], r"no checkpoint of step 9; it has \[1, 2\]"),
        ("laq", ["--data", "x"], "--data goes with --format int8, and this is safetensors"),
        ("laq", ["--platform", "cpu"], "--platform goes with --format stablehlo"),
        ("codes", ["--format", "stablehlo", "--platform", "cudo"], "did you mean 'cuda'"),
        ("codes", ["--format", "int8", "--samples", "1"], "--samples 1 must be at least 2"),
        ("codes", ["--format", "int8", "--max_error", "0"], "--max_error 0.0 must be more than 0"),
        ("codes", ["--format", "int8", "--modules", "nothing"], "'nothing' matches no linear layer"),
        ("codes", ["--format", "int8", "--data", "nowhere"], "nowhere"),
        ("actions", ["--format", "int8", "--labels", "x"], "--labels x are latent actions"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(runs, kind, options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        call(runs[kind], tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_is_kept_and_bad_input_is_one_line(runs, root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        call(runs["laq"], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    command = [sys.executable, "-B", root / "launch" / "export.py", "--run", "nowhere", "--out", tmp_path / "x"]
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and error_of(done.stderr).startswith("error: nowhere does not exist")
    assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()
