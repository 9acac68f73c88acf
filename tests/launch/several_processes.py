"""A small stage 2 run on the labelled sample, and starting it in several processes on this machine."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.launch.private_slurm import free_ports

MODEL = ("siglip.depth=1", "siglip.layer=-1", "siglip.dim=16", "dinov2.depth=1", "dinov2.layer=-1", "dinov2.dim=16",
         "llm.depth=1", "llm.dim=32", "llm.hidden=32")  # fmt: skip
TRAIN = ("batch_size=8", "eval_batch_size=8", "log_every=1", "eval_every=100000", "trackers=()")
ARGUMENTS = (
    "--config", "configs/vla_latent.py:tiny", "--config.data.image_size=28", "--config.data.eval_examples=16",
    *(f"--config.model.{o}" for o in MODEL), *(f"--config.train.{o}" for o in TRAIN),
    "--config.optim.schedule=constant", "--config.optim.warmup_steps=0",
    "--config.mesh.data=1", "--config.mesh.fsdp=-1",
)  # fmt: skip
"""Of launch/train.py in the project's folder; the updates do not depend on train.steps."""


def settings(root: pathlib.Path, devices: int) -> dict[str, str]:
    """Variables of a process with that many devices. Compiling is cheap here, the steps are few."""
    return {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip


def without_cache(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables for one of several processes without the cache of compiled programs: on CPUs only the first process
    would find its programs there, and would not wait long enough for the others."""
    return {name: value for name, value in variables.items() if not name.startswith("JAX_COMPILATION_CACHE")}


def train(root: pathlib.Path, workdir: pathlib.Path, *overrides: str, processes: int = 1, devices: int = 1) -> None:
    """Runs launch/train.py to its end in `processes` processes of `devices` devices each."""
    command = [sys.executable, "launch/train.py", *ARGUMENTS, *(f"--config.{o}" for o in overrides), "--workdir",
               str(workdir)]  # fmt: skip
    run_processes(command, root, processes, devices)


def run_processes(command: Sequence[str], root: pathlib.Path, processes: int = 1, devices: int = 1) -> None:
    """Runs a command in the project's folder as `processes` processes of one run."""
    own = [{**os.environ, **settings(root, devices)}]
    if processes > 1:
        shared = {**without_cache(own[0]), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
                  "JAX_NUM_PROCESSES": str(processes)}  # fmt: skip
        own = [{**shared, "JAX_PROCESS_ID": str(index)} for index in range(processes)]
    ranks = [subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for env in own]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output
