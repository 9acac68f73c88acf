"""launch/slurm/submit.py, with a stand-in for sbatch that prints its arguments."""

import os
import subprocess
import sys

import pytest

SITE = "roots: {data: /d}\nslurm: {partition: gpu, time: 2:00:00, nodes: 2}\n"


@pytest.fixture
def submit(root, tmp_path):
    """A function that calls the script with a site file and returns (exit status, what it printed)."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin/sbatch"
    sbatch.write_text('#!/bin/sh\nfor each in "$@"; do echo "<$each>"; done\nexit 3\n')
    sbatch.chmod(0o755)
    (tmp_path / "site.yaml").write_text(SITE)

    def call(*arguments: str, path: str = str(tmp_path / "bin")) -> tuple[int, str]:
        command = [sys.executable, "-B", f"{root}/launch/slurm/submit.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return call


def test_the_site_gives_options_of_sbatch_and_all_else_goes_on_to_training(submit, root):
    status, printed = submit("--config_file", "site.yaml", "--sbatch=--nodes=8", "--config", "configs/laq.py",
                             "--config.name=two words")  # fmt: skip
    given = [line[1:-1] for line in printed.splitlines() if line.startswith("<")]
    assert given == ["--partition=gpu", "--time=2:00:00", "--nodes=2", "--nodes=8", f"{root}/launch/slurm/train.sbatch",
                     "--config_file", "site.yaml", "--config", "configs/laq.py", "--config.name=two words"]  # fmt: skip
    assert status == 3, "that of sbatch"


def test_a_dry_run_prints_the_command_and_submits_nothing(submit):
    status, printed = submit("--config_file", "site.yaml", "--dry_run", "--config", "x y")
    assert status == 0 and "'x y'" in printed and "<" not in printed


def test_what_is_wrong_is_one_line(submit, tmp_path):
    (tmp_path / "other.yaml").write_text("slurm: {time: [1, 2]}")
    assert submit("--config_file", "other.yaml") == (2, "error: other.yaml: slurm.time is [1, 2]; give a text or a "
                                                        "number\n")  # fmt: skip
    assert submit("--config_file", "site.yaml", path="")[1].endswith("submit from a login node of the cluster\n")
