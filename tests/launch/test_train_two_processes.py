"""Two processes on this machine train as one."""

import os
import socket
import subprocess
import sys

import numpy as np

from lapa_jax.core.metrics import read_metrics
from lapa_jax.train.checkpoint import load_for_inference
from tests.train.test_loop import SMALL

LENGTH = ["steps=4", "batch_size=8", "eval_batch_size=8", "log_every=1", "eval_every=4", "save_every=2"]


def start(root, workdir, devices: int, **environment) -> subprocess.Popen:
    overrides = [f"--config.model.{o}" for o in SMALL] + [f"--config.train.{o}" for o in LENGTH]
    command = [sys.executable, str(root / "launch/train.py"), "--config", f"{root}/configs/laq.py:tiny", *overrides,
               "--config.data.eval_examples=20", "--config.mesh.data=1", "--config.mesh.fsdp=2",
               "--workdir", str(workdir)]  # fmt: skip
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(command, env={**env, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_two_processes_train_as_one(root, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ranks = [start(root, tmp_path / "two", 1, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2",
                   JAX_PROCESS_ID=str(rank)) for rank in range(2)]  # fmt: skip
    for rank in ranks:
        finish(rank)
    finish(start(root, tmp_path / "one", 2))
    two, one = (read_metrics(tmp_path / name) for name in ("two", "one"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for a, b in zip(two, one, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/psnr"):
            if name in b:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=f"{name} at step {b['step']}")
    # What two processes saved, one reads.
    loaded = load_for_inference(tmp_path / "two")
    assert loaded.step == 4 and len(loaded.variables["params"]) > 0
