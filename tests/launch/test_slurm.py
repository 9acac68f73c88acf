"""The scripts in launch/slurm on a Slurm of two nodes that this machine starts for the test."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lapa_jax.core.files import read_json
from lapa_jax.core.metrics import read_metrics
from lapa_jax.train.checkpoint import load_for_inference, steps
from lapa_jax.train.distributed import local_gpus
from tests.inference import small_run, step_shards
from tests.launch import private_slurm
from tests.launch.private_slurm import PrivateSlurm, free_ports
from tests.launch.several_processes import ARGUMENTS, run_processes, settings, train, without_cache
from tools.torture.processes import differences

SCRIPT, RUN, CHECK = (f"launch/slurm/{name}.sbatch" for name in ("train", "run", "check"))
MISSING = private_slurm.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed (slurm-wlm, munge): {', '.join(MISSING)}")

RECORD = """
import json, os, pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(f"stopped{os.environ['SLURM_PROCID']}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
task, what = os.environ["SLURM_PROCID"], sys.argv[1]
pathlib.Path(f"task{task}.json").write_text(json.dumps({"arguments": sys.argv[1:], "variables": dict(os.environ)}))
if what == "fail" and task == "1":
    sys.exit(3)
time.sleep(0 if what == "end" else 120)
"""
"""Stands in for launch/train.py where only the script and Slurm are looked at."""


@pytest.fixture(scope="module")
def slurm():
    with PrivateSlurm(nodes=2) as running:
        running.environment = without_cache(running.environment)
        yield running


@pytest.fixture
def project(root, tmp_path):
    """A folder like the project's, with a train.py that writes down what it is given."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/slurm").symlink_to(root / "launch/slurm")
    (tmp_path / "launch/train.py").write_text(RECORD)
    return tmp_path


def venv() -> dict[str, str]:
    """Variables by which the script finds the Python that runs the tests."""
    own = pathlib.Path(sys.prefix)
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{private_slurm.PATH}"
    return {"VENV": str(own) if (own / "bin/activate").exists() else "", "PATH": path}


def submit(slurm, folder, output, *options, arguments=(), script=SCRIPT, **variables) -> str:
    return slurm.run("sbatch", "--parsable", f"--chdir={folder}", f"--output={output}", "--cpus-per-task=1", *options,
                     str(folder / script), *arguments, **venv(), **variables)  # fmt: skip


def wait(slurm, job: str, output, ready, seconds: float) -> None:
    """Until `ready()`; fails with the job's output when the time is over."""
    until = time.monotonic() + seconds
    while not ready():
        log = output.read_text() if output.exists() else ""
        assert time.monotonic() < until, f"job {job} is {slurm.state(job)} after {seconds} s:\n{log}{slurm.log()}"
        time.sleep(0.1)


def wait_for_end(slurm, job: str, output, seconds: float) -> str:
    wait(slurm, job, output, lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"), seconds)
    return slurm.state(job)


@pytest.mark.parametrize(("per_node", "own"), [(4, [[0], [1], [2], [3]] * 2), (1, [[0, 1, 2, 3]] * 2)])
def test_all_tasks_see_all_gpus_and_each_takes_its_own(slurm, project, per_node, own):
    output = project / "out"
    job = submit(slurm, project, output, "--nodes=2", f"--ntasks-per-node={per_node}",
                 arguments=("end", "--config.text=two words"), XLA_FLAGS="--xla_mine=1")  # fmt: skip
    assert wait_for_end(slurm, job, output, 30) == "COMPLETED", output.read_text()
    tasks = [json.loads((project / f"task{k}.json").read_text()) for k in range(2 * per_node)]
    assert len(list(project.glob("task*.json"))) == 2 * per_node
    assert [local_gpus(task["variables"]) for task in tasks] == own
    for task in tasks:
        assert task["arguments"] == ["end", "--config.text=two words"]
        variables = task["variables"]
        assert variables["XLA_FLAGS"] == "--xla_gpu_enable_latency_hiding_scheduler=true --xla_mine=1"
        assert variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".90"


def test_before_its_time_is_over_a_job_stops_its_tasks_and_queues_again(slurm, project):
    output = project / "out"
    job = submit(slurm, project, output, "--nodes=2", "--ntasks-per-node=1", "--gres=none", arguments=("sleep",))
    wait(slurm, job, output, lambda: len(list(project.glob("task*.json"))) == 2, 30)
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in json.loads((project / "task0.json").read_text())["variables"]
    slurm.run("scancel", "--batch", "--signal=TERM", job)  # what --signal=B:TERM@300 does
    wait(slurm, job, output, lambda: slurm.describe(job)["Restarts"] == "1", 30)
    wait(slurm, job, output, lambda: slurm.state(job) == "PENDING", 30)
    assert len(list(project.glob("stopped*"))) == 2
    slurm.run("scancel", job)


def test_a_task_that_fails_ends_the_others_and_the_job(slurm, project):
    output = project / "out"
    job = submit(slurm, project, output, "--nodes=2", "--ntasks-per-node=1", "--gres=none", arguments=("fail",))
    assert wait_for_end(slurm, job, output, 60) == "FAILED"
    assert slurm.describe(job)["Restarts"] == "0"


def test_it_is_submitted_from_the_projects_folder(slurm, root, tmp_path):
    output = tmp_path / "out"
    job = slurm.run("sbatch", "--parsable", f"--chdir={tmp_path}", f"--output={output}", "--cpus-per-task=1",
                    "--ntasks-per-node=1", "--gres=none", str(root / SCRIPT))  # fmt: skip
    assert wait_for_end(slurm, job, output, 30) == "FAILED"
    assert "is not the project's folder" in output.read_text()


def test_two_nodes_train_stop_together_resume_and_equal_one_process(slurm, root, tmp_path):
    run, output = tmp_path / "run", tmp_path / "out"

    def start(last: int) -> str:
        return submit(slurm, root, output, "--nodes=2", "--ntasks-per-node=1", "--gres=none", arguments=(
            *ARGUMENTS, f"--config.train.steps={last}", "--config.train.save_every=100000", "--workdir", str(run)
        ), JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_ports(1)[0]}", **settings(root, 1))  # fmt: skip

    logged = lambda: len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0  # noqa: E731
    job = start(5000)
    wait(slurm, job, output, lambda: logged() > 2 or slurm.state(job) == "FAILED", 400)
    slurm.run("scancel", "--signal=TERM", job)
    assert wait_for_end(slurm, job, output, 60) == "COMPLETED", output.read_text()
    (stopped,) = steps(run)
    assert f"asked to stop after step {stopped}" in output.read_text()
    assert read_json(run / "env.json")["devices"] == {"kind": "cpu", "count": 2, "hosts": 2}

    job = start(stopped + 3)
    assert wait_for_end(slurm, job, output, 400) == "COMPLETED", output.read_text()
    assert f"resuming from step {stopped}" in output.read_text() and steps(run)[-1] == stopped + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]

    train(root, tmp_path / "one", f"train.steps={stopped + 3}", "train.save_every=100000", devices=2)
    two, one = ([line for line in read_metrics(tmp_path / name) if "train/loss" in line] for name in ("run", "one"))
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(1, stopped + 4))
    np.testing.assert_allclose([line["train/loss"] for line in two], [line["train/loss"] for line in one], rtol=1e-5)


def test_an_array_of_labels_waits_for_nobody_and_makes_what_one_command_makes(slurm, root, tmp_path):
    data = step_shards.write(tmp_path / "data")
    run = small_run.write(tmp_path / "run", root, data, steps=(1,))
    command = ("launch/label.py", "--run", str(run), "--data", str(data), "--batch_size", "4")
    array = submit(slurm, root, tmp_path / "out-%a", "--array=0-1", "--ntasks=1", "--gres=none", script=RUN, arguments=(
        *command, "--out", str(tmp_path / "labels"), "--share", "auto"), **settings(root, 1))  # fmt: skip
    for number in range(2):
        output = tmp_path / f"out-{number}"
        assert wait_for_end(slurm, f"{array}_{number}", output, 200) == "COMPLETED", output.read_text()
    subprocess.run([sys.executable, *command, "--out", str(tmp_path / "whole")], cwd=root, check=True,
                   env={**os.environ, **settings(root, 1)}, capture_output=True)  # fmt: skip
    assert not differences(tmp_path / "whole", tmp_path / "labels")


def test_two_nodes_are_checked(slurm, root, tmp_path):
    output = tmp_path / "out"
    job = submit(slurm, root, output, "--nodes=2", "--ntasks-per-node=1", "--gres=none", script=CHECK, arguments=(
        "--folder", str(tmp_path), "--mib", "1", "--side", "64", "--file_mib", "1"), **settings(root, 2),
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_ports(1)[0]}")  # fmt: skip
    assert wait_for_end(slurm, job, output, 120) == "COMPLETED", output.read_text()
    said = output.read_text()
    assert "2 ranks on 2 node(s)" in said and "all-reduce of 1 MiB a device, between nodes:" in said, said
    assert re.search(r"all ranks synchronized, after [\d.]+ s$", said, re.MULTILINE), said


def task_of(job: str, number: int) -> int:
    """The process of a training task of a job."""
    for folder in pathlib.Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"launch/train.py" in command and {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={number}".encode()} <= {
            *variables}:  # fmt: skip
            return int(folder.name)
    raise AssertionError(f"job {job} has no task {number}")


def test_a_killed_task_and_a_stopped_host_are_queued_again_and_change_nothing(slurm, root, tmp_path):
    """Of one job a task is killed in the middle of the run, and of another one, which goes on, a host stands still."""
    run, last = tmp_path / "run", 300
    arguments = ("--config", "configs/fsq.py:test", *(f"--config.train.{each}" for each in (
        f"steps={last}", "save_every=20", "eval_every=1000", "log_every=10", "hang_minutes=0.4")))  # fmt: skip
    saved = lambda: max(steps(run), default=0) if run.is_dir() else 0  # noqa: E731

    def queued_again(output, signal_number) -> str:
        """The job, in its second life, of which a task got a signal."""
        begin = saved()
        job = submit(slurm, root, output, "--nodes=2", "--ntasks-per-node=1", "--gres=none",
                     arguments=(*arguments, "--workdir", str(run)), REQUEUE_KILLED_AFTER="0",
                     JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_ports(1)[0]}", **settings(root, 1))  # fmt: skip
        wait(slurm, job, output, lambda: saved() > begin, 200)
        os.kill(task_of(job, 1), signal_number)
        wait(slurm, job, output, lambda: slurm.describe(job)["Restarts"] == "1", 90)
        assert saved() < last, "the run was done before"
        return job

    job = queued_again(tmp_path / "killed", signal.SIGKILL)
    begin = saved()
    wait(slurm, job, tmp_path / "killed", lambda: saved() > begin, 200)
    # Slurm may send a signal of a job's first life a minute late, to its second one, which begins soon here: the other
    # fault gets a job of its own.
    slurm.run("scancel", job)
    assert wait_for_end(slurm, job, tmp_path / "killed", 60) == "CANCELLED", "it was queued again"
    job = queued_again(tmp_path / "stopped", signal.SIGSTOP)
    assert wait_for_end(slurm, job, tmp_path / "stopped", 300) == "COMPLETED", (tmp_path / "stopped").read_text()
    killed, stopped = ((tmp_path / name).read_text() for name in ("killed", "stopped"))
    assert killed.count("resuming from step") == 1, killed
    assert stopped.count("resuming from step") == 2 and "no step in 0.4 minutes" in stopped, stopped
    assert list(run.glob("hang-*-host0.txt"))

    command = [sys.executable, "launch/train.py", *arguments, "--workdir", str(tmp_path / "whole")]
    run_processes(command, root, processes=2)
    killed, whole = (load_for_inference(folder) for folder in (run, tmp_path / "whole"))
    assert killed.step == whole.step == last
    assert jax.tree.all(jax.tree.map(np.array_equal, killed.variables, whole.variables))
    losses, whole_losses = ({line["step"]: line["train/loss"] for line in read_metrics(folder) if "train/loss" in line}
                            for folder in (run, tmp_path / "whole"))  # fmt: skip
    assert len(whole_losses) == last // 10
    # Where it was cancelled it logged the steps until there, so that the next line is of fewer steps.
    for step in losses.keys() - whole_losses.keys():
        del losses[step], losses[step := -(-step // 10) * 10], whole_losses[step]
    assert losses == whole_losses and len(losses) >= last // 10 - 1
