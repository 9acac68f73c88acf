"""`launch/label.py` as a user runs it: kill -9, bad arguments, what it prints."""

import os
import subprocess
import sys

import pytest

from lapa_jax.data.shards.step_shards import StepShards
from launch import label
from tests.commands import refusal
from tests.inference import small_run, step_shards
from tests.killing import run_until_done_with_kills, timed
from tools.torture.processes import differences

LENGTHS = {"train": [[9, 7]] * 6, "val": [[8]]}


@pytest.fixture(scope="module")
def setup(root, tmp_path_factory):
    """(command without --out, environment, run, data)."""
    base = tmp_path_factory.mktemp("label")
    data = step_shards.write(base / "data", lengths=LENGTHS)
    run = small_run.write(base / "run", root, data, steps=(1,))
    command = [sys.executable, str(root / "launch" / "label.py"), "--run", str(run), "--data", str(data)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(base / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return command, {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), **cache}, run, data


def call(command, env) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800, check=False)


def test_killed_runs_end_in_the_same_bits(setup, tmp_path):
    command, env, _, data = setup
    small = ["--batch_size", "1"]
    timed([*command, *small, "--out", str(tmp_path / "warm")], env)
    duration = timed([*command, *small, "--out", str(tmp_path / "whole")], env)
    startup = timed([*command, *small, "--out", str(tmp_path / "whole")], env)
    killed = [*command, *small, "--out", str(tmp_path / "killed")]
    run_until_done_with_kills(killed, kills=3, seed=0, duration=duration, startup=startup, env=env)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    labels, source = StepShards(tmp_path / "killed", "train"), StepShards(data, "train")
    assert [labels.key(i) for i in range(len(labels))] == [source.key(i) for i in range(len(source))]


def test_shares_beside_each_other_end_in_the_same_bits(setup, tmp_path):
    """Jobs of an array: none knows of the others, and whichever is last writes the summary."""
    command, env, _, _ = setup
    array = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "4", "SLURM_ARRAY_TASK_COUNT": "2"}
    jobs = [subprocess.Popen([*command, "--out", str(tmp_path / "shares"), "--share", "auto"], stdout=subprocess.PIPE,
                             env={**env, **array, "SLURM_ARRAY_TASK_ID": number}, text=True)
            for number in ("3", "4")]  # fmt: skip
    printed = [job.communicate(timeout=600)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert any("train: 96 steps" in text for text in printed)
    call([*command, "--out", str(tmp_path / "whole")], env)
    assert differences(tmp_path / "whole", tmp_path / "shares") == []


def test_summary_is_printed_and_a_finished_set_recognised(setup, tmp_path, capsys):
    command, env, _, _ = setup
    done = call([*command, "--out", str(tmp_path / "labels"), "--split", "val"], env)
    assert done.returncode == 0, done.stderr
    assert "val: 8 steps, 3 of them (an episode's last) with a clipped pair" in done.stdout
    assert "perplexity" in done.stdout and "position 3:" in done.stdout and str(tmp_path / "labels") in done.stdout
    again = call([*command, "--out", str(tmp_path / "labels"), "--split", "val"], env)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert "another labelling" in refusal(label.main, [*command[2:], "--out", tmp_path / "labels"], capsys)


@pytest.mark.parametrize(
    "change, words",
    [(["--run", "nowhere"], "nowhere does not exist"), (["--batch_size", "0"], "--batch_size 0 must be at least 1"),
     (["--data", "VIDEOS"], "holds no step shards (dataset.json is missing); make them with tools/convert.py"),
     (["--share", "2/2"], "--share 2/2: give I/N")],
)
def test_bad_arguments_end_in_one_line(setup, tmp_path, change, words, capsys):
    command, _, _, _ = setup
    (tmp_path / "clip.mp4").write_bytes(b"...")
    change = [str(tmp_path) if word == "VIDEOS" else word for word in change]
    assert words in refusal(label.main, [*command[2:], "--out", tmp_path / "labels", *change], capsys)
    assert not (tmp_path / "labels").exists()
