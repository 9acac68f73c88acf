"""The scripts of launch/slurm with stand-ins for the commands of Slurm; `test_slurm.py` has a real one."""

import os
import pathlib
import signal
import subprocess
import time

import pytest
import yaml

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >srun.txt
env >env.txt
trap 'touch stopped; exit "${AT_TERM:-0}"' TERM
[ "${SLEEP:-0}" = 0 ] || { touch started; while true; do sleep 0.05; done; }
exit "${CODE:-0}"
"""
SCANCEL = """#!/usr/bin/env bash
printf '%s\\n' "$@" >scancel.txt
pkill -TERM -P "$PPID" -f srun
"""
SCONTROL = "#!/usr/bin/env bash\nprintf '%s\\n' \"$@\" >scontrol.txt\n"
SQUEUE = '#!/usr/bin/env bash\necho "${STATE:-RUNNING}"\n'


@pytest.fixture
def job(root, tmp_path):
    """A function that starts a script of launch/slurm in a folder like the project's."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "slurm").symlink_to(root / "launch" / "slurm")
    for name in ("train.py", "label.py", "check_cluster.py"):
        (tmp_path / "launch" / name).touch()
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", "VENV": "",
                       **variables}  # fmt: skip
        command = ["bash", str(root / "launch" / "slurm" / script), *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip

    start.folder = tmp_path
    return start


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def given(folder: pathlib.Path) -> list[str]:
    return (folder / "srun.txt").read_text().splitlines()


def test_any_command_runs_in_all_tasks(job):
    done = job("run.sbatch", "launch/label.py", "--out", "two words", SLURM_CPUS_PER_TASK="18")
    assert finish(done) == (0, "")
    assert given(job.folder) == ["--cpus-per-task=18", "--kill-on-bad-exit=1", "python", "launch/label.py", "--out",
                                 "two words"]  # fmt: skip
    assert finish(job("train.sbatch", "--config", "x")) == (0, "")
    assert given(job.folder)[2:] == ["python", "launch/train.py", "--config", "x"]
    assert finish(job("check.sbatch", "--mib", "1")) == (0, "")
    assert given(job.folder)[2:] == ["python", "launch/check_cluster.py", "--mib", "1"]
    assert "NCCL_DEBUG=INFO" in (job.folder / "env.txt").read_text()
    assert not (job.folder / "scontrol.txt").exists()


def test_a_container_gets_the_project_and_further_folders(job):
    variables = {"CONTAINER": "/images/a b.sqsh", "CONTAINER_MOUNTS": "/data:/data", "VENV": "/nowhere"}
    assert finish(job("run.sbatch", "launch/train.py", **variables)) == (0, "")
    folder = job.folder
    mounts = f"--container-mounts={folder}:{folder},/data:/data"
    assert given(folder)[2:7] == ["--container-image=/images/a b.sqsh", mounts,
                                  f"--container-workdir={folder}", "--no-container-mount-home", "python"]  # fmt: skip
    environment = (folder / "env.txt").read_text().splitlines()
    assert f"PYTHONPATH={folder}" in environment and "VENV=" in environment


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (75, True), (137, True),
                                              (134, True), (143, False)])
def test_its_exit_code_is_that_of_the_command(job, code, again):
    variables = {"CODE": str(code), "REQUEUE_KILLED_AFTER": "0"}
    assert finish(job("run.sbatch", "launch/train.py", **variables))[0] == code
    assert (job.folder / "scontrol.txt").exists() == again


def test_what_is_killed_soon_after_its_start_is_not_queued_again(job):
    assert finish(job("run.sbatch", "launch/train.py", CODE="137"))[0] == 137
    assert not (job.folder / "scontrol.txt").exists()


@pytest.mark.parametrize(("script", "code"), [("train", 0), ("label", 143)])
def test_before_the_time_limit_all_tasks_are_told_and_the_job_queues_again(job, script, code):
    """Labels end with the code of the signal, and go on by the same command too."""
    process = job("run.sbatch", f"launch/{script}.py", SLEEP="1", AT_TERM=str(code))
    wait_for(job.folder / "started")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == code
    assert (job.folder / "scancel.txt").read_text().splitlines() == ["--signal=TERM", "7"]
    assert (job.folder / "stopped").exists()
    assert (job.folder / "scontrol.txt").read_text().splitlines() == ["requeue", "7"]


@pytest.mark.parametrize("code", [0, 75, 137, 143])
def test_a_job_that_is_cancelled_or_queued_again_by_others_is_not_queued_again(job, code):
    """It was: a cancelled job came back."""
    process = job("run.sbatch", "launch/train.py", SLEEP="1" if code in (0, 143) else "0", CODE=str(code),
                  AT_TERM=str(code), STATE="COMPLETING", REQUEUE_KILLED_AFTER="0")  # fmt: skip
    if code in (0, 143):
        wait_for(job.folder / "started")
        process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == code
    assert not (job.folder / "scontrol.txt").exists()


def test_what_is_wrong_is_said(job):
    assert finish(job("run.sbatch"))[0] == 2
    code, output = finish(job("run.sbatch", "launch/nowhere.py"))
    assert code == 2 and "has no launch/nowhere.py" in output
    (job.folder / "launch" / "slurm").unlink()
    for script in ("run.sbatch", "train.sbatch", "check.sbatch"):
        code, output = finish(job(script, "launch/train.py"))
        assert code == 2 and "is not the project's folder" in output


def site(root, name: str) -> dict[str, str]:
    """The variables that a site file sets."""
    command = f"source {root}/launch/slurm/site/{name}.env && env"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], env={"PATH": os.environ["PATH"]}, text=True,
                          capture_output=True, check=True)  # fmt: skip
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def test_an_empty_option_of_a_site_is_none(root):
    variables = site(root, "example")
    assert variables["SBATCH_PARTITION"] == "gpu" and variables["VENV"] == ".venv"
    assert not {"SBATCH_ACCOUNT", "SBATCH_QOS", "name"} & set(variables)


def test_both_files_of_a_site_say_the_same(root):
    options = yaml.safe_load((root / "configs" / "site" / "lrz_h100.yaml").read_text())["slurm"]
    variables = site(root, "lrz_h100")
    for name, variable in (("partition", "PARTITION"), ("qos", "QOS"), ("gres", "GRES"), ("mem", "MEM_PER_NODE")):
        assert variables[f"SBATCH_{variable}"] == str(options[name])
    assert variables["NCCL_SOCKET_IFNAME"] == "ib0"
