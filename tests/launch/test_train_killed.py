"""`launch/train.py` killed with SIGKILL at random moments ends in the same bits as a run that was left alone."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from lapa_jax.core.metrics import read_metrics
from lapa_jax.train.checkpoint import load_for_inference
from tests.killing import timed
from tests.train.test_loop import SMALL

# `KILLS=20 pytest tests/launch/test_train_killed.py` runs the long version.
KILLS = int(os.environ.get("KILLS", "2"))
STEPS = 10 + 10 * KILLS
LENGTH = [f"steps={STEPS}", "batch_size=8", "eval_batch_size=16", "log_every=1", "eval_every=15", "save_every=5"]


def logged_step(run: pathlib.Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def run_and_kill(command, env, run: pathlib.Path, rng: random.Random) -> bool:
    """Kills a run a moment after it has logged some steps more, or while it starts; False if it ended before."""
    process = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)  # fmt: skip
    target, patience = logged_step(run) + rng.randint(-2, 15), time.monotonic() + 120
    while process.poll() is None and logged_step(run) < target and time.monotonic() < patience:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    hit = process.poll() is None
    if hit:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert hit or process.returncode == 0, output.decode()
    return hit


def test_killed_runs_end_in_the_same_bits(root, tmp_path):
    overrides = [f"--config.model.{o}" for o in SMALL] + [f"--config.train.{o}" for o in LENGTH]
    command = [sys.executable, str(root / "launch/train.py"), "--config", f"{root}/configs/laq.py:test", *overrides,
               "--config.data.eval_examples=16", "--workdir"]  # fmt: skip
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "1"}
    timed([*command, str(tmp_path / "whole")], env)
    rng, hits = random.Random(0), 0
    for _ in range(KILLS):
        hits += run_and_kill([*command, str(tmp_path / "killed")], env, tmp_path / "killed", rng)
    timed([*command, str(tmp_path / "killed")], env)
    print(f"{hits} of {KILLS} kills hit")
    assert hits > 0
    a, b = (load_for_inference(tmp_path / name) for name in ("whole", "killed"))
    assert a.step == b.step == STEPS
    assert jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))
    losses = [{line["step"]: line["train/loss"] for line in read_metrics(tmp_path / name) if "train/loss" in line}
              for name in ("whole", "killed")]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
