"""`launch/eval.py` as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from launch import eval as evaluate
from tests.commands import refusal
from tests.inference import small_run, step_shards


@pytest.fixture(scope="module")
def setup(root, tmp_path_factory):
    """(command, environment, run)."""
    base = tmp_path_factory.mktemp("eval")
    data = step_shards.write(base / "data", lengths={"train": [[8]], "val": [[12, 12]]}, actions=False)
    run = small_run.write(base / "run", root, data)
    command = [sys.executable, str(root / "launch" / "eval.py"), "--run", str(run)]
    return command, {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}, run


def call(command, env) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800, check=False)


def test_report_is_written_and_named(setup):
    command, env, run = setup
    bars = ["--require", "psnr_gain>=90", "--require", "perplexity>0.5"]
    done = call([*command, "--step", "1", "--pairs", "8", *bars], env)
    # What is not reached ends in exit code 1, after everything is written.
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("not reached: psnr_gain>=90: psnr_gain is -")
    out = run / "eval_1"
    assert done.stdout.splitlines()[-3:] == [str(out / n) for n in ("metrics.json", "report.html", "overview.png")]
    assert "psnr_gain" in done.stdout and "worse than copying" in done.stdout
    assert json.loads((out / "metrics.json").read_text())["step"] == 1 and (out / "overview.png").stat().st_size > 10000


@pytest.mark.parametrize(
    "change, words",
    [
        (["--split", "test"], "has no split 'test'"),
        (["--reference_steps", "-1"], "0 (off) or more"),
        (["--require", "swap_gap>=high"], "'high' is no number to compare with"),
        (["--step", "9"], "no checkpoint of step 9; it has [1, 2]"),
    ],
)
def test_bad_arguments_end_in_one_line(setup, change, words, capsys):
    _, _, run = setup
    assert words in refusal(evaluate.main, ["--run", run, *change], capsys)
    assert not (run / "eval").exists()
