"""`launch/train.py` killed with SIGKILL at random moments ends in the same bits as a run that was left alone."""

import os
import sys

import jax
import numpy as np

from lapa_jax.core.metrics import read_metrics
from lapa_jax.train.checkpoint import load_for_inference
from tests.killing import run_until_done_with_kills, timed
from tests.train.test_loop import SMALL

# `KILLS=20 pytest tests/launch/test_train_killed.py` runs the long version.
KILLS = int(os.environ.get("KILLS", "3"))
LENGTH = ["steps=60", "batch_size=8", "eval_batch_size=8", "log_every=5", "eval_every=20", "save_every=5"]


def test_killed_runs_end_in_the_same_bits(root, tmp_path):
    overrides = [f"--config.model.{o}" for o in SMALL] + [f"--config.train.{o}" for o in LENGTH]
    command = [sys.executable, str(root / "launch/train.py"), "--config", f"{root}/configs/laq.py:tiny", *overrides,
               "--config.data.eval_examples=16", "--workdir"]  # fmt: skip
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "1"}
    timed([*command, str(tmp_path / "warm")], env)
    duration = timed([*command, str(tmp_path / "whole")], env)
    startup = timed([*command, str(tmp_path / "whole")], env)
    killed = [*command, str(tmp_path / "killed")]
    hits = run_until_done_with_kills(killed, kills=KILLS, seed=0, duration=duration, startup=startup, env=env)
    assert hits > 0, "no kill hit; the run is too short for this machine"
    a, b = (load_for_inference(tmp_path / name) for name in ("whole", "killed"))
    assert a.step == b.step == 60
    assert jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))
    losses = [{line["step"]: line["train/loss"] for line in read_metrics(tmp_path / name) if "train/loss" in line}
              for name in ("whole", "killed")]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 12
