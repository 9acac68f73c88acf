"""launch/check_cluster.py in two processes of two CPU devices each, on one node and as if on two."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from launch import check_cluster
from tests.launch.private_slurm import free_ports
from tests.launch.several_processes import settings, without_cache


def ranks(root, folders, nodes=("a", "a")) -> list[tuple[int, str]]:
    """(exit code, output) of two processes, each with its own folder and name of its node."""
    shared = {**without_cache(os.environ), **settings(root, 2), "JAX_NUM_PROCESSES": "2",
              "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}  # fmt: skip
    started = []
    for rank in range(2):
        command = [sys.executable, "-B", "launch/check_cluster.py", "--folder", str(folders[rank]), "--mib", "1",
                   "--side", "64", "--file_mib", "1"]  # fmt: skip
        environment = {**shared, "JAX_PROCESS_ID": str(rank), "SLURMD_NODENAME": nodes[rank]}
        started.append(subprocess.Popen(command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT))  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, outputs)]


def test_two_ranks_on_two_nodes(root, tmp_path):
    (first, told), (second, other) = ranks(root, [tmp_path, tmp_path], ("a", "b"))
    assert (first, second) == (0, 0), told + other
    assert "rank 0 of 2" in told and "rank 1 of 2" in other and "2 ranks on 2 node(s)" in told
    for where in ("all devices", "within a node", "between nodes"):
        assert re.search(rf"all-reduce of 1 MiB a device, {where}: [\d.]+ GB/s", told), told
    assert re.search(r"all ranks synchronized, after [\d.]+ s\n$", told) and "synchronized" not in other
    assert not list(tmp_path.iterdir()), "its files are gone"


def test_a_folder_that_is_not_shared_is_said(root, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    outcomes = ranks(root, [tmp_path / "here", tmp_path / "there"])
    assert all("does not see the file of rank" in output for _, output in outcomes)
    assert [code for code, _ in outcomes] == [2, 2]


def test_what_stands_out_is_named():
    each = np.array([[1e12, 1e9, 2e9]] * 4)
    each[2, 0] /= 3
    lines = check_cluster.table(each, np.array([7, 7, 9, 9]), {"all devices": 5e10}, 256)
    assert lines[0] == "4 ranks on 2 node(s)" and "all-reduce of 256 MiB a device, all devices: 50.00 GB/s" in lines
    assert lines[-1] == "warning: rank 2 computes 3.0 times slower than the median"
    assert sum("warning" in line for line in lines) == 1


@pytest.mark.parametrize("option", ["--mib", "--side", "--file_mib"])
def test_wrong_sizes(option):
    with pytest.raises(check_cluster.UserError, match="at least 1"):
        check_cluster.main([option, "0"])
