"""What a task of Slurm takes from its variables, and what is refused before anything waits for anybody."""

import importlib.machinery
import importlib.util
import math
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import Stopped, UserError
from lapa_jax.train import distributed
from lapa_jax.train.distributed import SaveTimer, StopRequests, check_counts, coordinator, has_tpus, local_gpus


def task(**changes) -> dict[str, str]:
    """Task 5 of 8, four on each of two nodes with four GPUs."""
    variables = {"SLURM_JOB_ID": "4100", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
                 "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "1",
                 "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_GPUS_ON_NODE": "4"}  # fmt: skip
    variables |= {f"SLURM_{name}": str(value) for name, value in changes.items() if name != "CUDA"}
    return variables | ({"CUDA_VISIBLE_DEVICES": changes["CUDA"]} if "CUDA" in changes else {})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a1", "a1"), ("a1,b7", "a1"), ("n[001-015],m2", "n001"), ("n[007,009-12]", "n007"), ("r[3-4]-gpu", "r3-gpu")],
)
def test_processes_meet_on_the_first_node(monkeypatch, nodes, first):
    asked = []
    monkeypatch.setattr(distributed.socket, "getaddrinfo", lambda *a: asked.append(a))
    assert coordinator(task(STEP_NODELIST=nodes)) == f"{first}:{61440 + 4100 - 4096}"
    assert asked == [(first, 61444)]


def test_a_node_name_without_address_is_refused_at_once():
    with pytest.raises(UserError, match=r"'node1\.invalid' has no address.*set JAX_COORDINATOR_ADDRESS=HOST:61444"):
        coordinator(task(STEP_NODELIST="node1.invalid,node2"))
    assert coordinator({**task(STEP_NODELIST="node1.invalid"), "JAX_COORDINATOR_ADDRESS": "here:1"}) == "here:1"


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, [1]),  # one of four, all visible
        ({"STEP_TASKS_PER_NODE": "1(x2)", "LOCALID": 0}, [0, 1, 2, 3]),  # JAX alone would leave three unused
        ({"STEP_TASKS_PER_NODE": "2(x2)"}, [2, 3]),
        ({"STEP_TASKS_PER_NODE": "4,2"}, [2, 3]),  # uneven: two tasks on this node
        ({"CUDA": "2"}, [0]),  # --gpus-per-task=1: JAX alone would look for GPU 1
        ({"CUDA": "0,1", "GPUS_ON_NODE": 8}, [0, 1]),  # --gpus-per-task=2
        ({"CUDA": "4,5,6,7"}, [1]),  # the other half of a node with eight
        ({"GPUS_ON_NODE": 0}, None),
    ],
)
def test_every_task_takes_its_share_of_the_gpus(changes, own):
    assert local_gpus(task(**changes)) == own


def test_gpus_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="3 tasks on node .* cannot share 4 GPU"):
        local_gpus(task(STEP_TASKS_PER_NODE="3(x2)"))
    with pytest.raises(UserError, match="4 tasks on node .* cannot share 1 GPU"):
        local_gpus(task(GPUS_ON_NODE=1))


def test_tpus_are_there_where_library_and_devices_are(monkeypatch, tmp_path):
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # every host that can pass devices on has this one
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    sys.modules["libtpu"].__spec__ = importlib.machinery.ModuleSpec("libtpu", None)
    assert not has_tpus({}, tmp_path)
    (tmp_path / "vfio" / "0").touch()
    assert has_tpus({}, tmp_path) and has_tpus({"JAX_PLATFORMS": "tpu,cpu"}, tmp_path)
    assert not has_tpus({"JAX_PLATFORMS": "cpu"}, tmp_path)
    (tmp_path / "vfio" / "0").unlink()
    (tmp_path / "accel3").touch()
    assert has_tpus({}, tmp_path)
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_tpus({}, tmp_path)


def test_counts_are_compared():
    check_counts(task(), 8, 8)
    check_counts(task(), 8, None)
    check_counts({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 1, 0)
    check_counts({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 2, None)  # started by hand in a job of one task
    with pytest.raises(UserError, match=r"Slurm has 8 tasks .* JAX sees 1 process.*`srun python"):
        check_counts({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 1, None)
    with pytest.raises(UserError, match=r"2 node\(s\) with 4 GPUs each .* JAX sees 2 GPUs .*--ntasks-per-node=4"):
        check_counts(task(), 8, 2)
    with pytest.raises(UserError, match=r"JAX sees 0 GPUs.*cuda13.*JAX_PLATFORMS=cpu"):
        check_counts(task(), 8, 0)


def test_a_batch_script_without_srun_is_refused(monkeypatch):
    for name in (*distributed.VARIABLES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UserError, match="srun"):
        distributed.initialize()
    monkeypatch.delenv("SLURM_PROCID")
    distributed.initialize()  # an interactive shell of salloc


def test_a_step_of_slurm_names_all_that_jax_would_guess(monkeypatch):
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: given.append(a))
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    for name, value in task().items():
        monkeypatch.setenv(name, value)
    for name in (*distributed.VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()
    assert given == [("localhost:61444", 8, 5, [1])]


@pytest.fixture(autouse=True)
def without_nohup():
    """These tests may run with nohup, which hides SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def requests():
    before = {each: signal.getsignal(each) for each in distributed.SIGNALS}
    requests = StopRequests()
    yield requests
    requests.close()
    assert {each: signal.getsignal(each) for each in distributed.SIGNALS} == before


@pytest.mark.parametrize("number", distributed.SIGNALS)
def test_one_process_stops_after_the_step_in_which_it_was_asked(requests, number):
    requests.stepped()
    assert not requests.reached() and not requests.asked
    os.kill(os.getpid(), number)
    assert requests.reached() and requests.reached() and requests.asked


@pytest.mark.parametrize("number", distributed.SIGNALS)
def test_before_the_first_step_it_ends_at_once(requests, number):
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped):
        os.kill(os.getpid(), number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", distributed.SIGNALS)
def test_what_a_callback_swallows_ends_it_at_the_next_batch(requests, number):
    class Object:
        def __del__(self):  # as callbacks of the garbage collector, of which jax has one: nothing they raise is heard
            os.kill(os.getpid(), number)

    Object()
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped):
        requests.reached()
    requests.stepped()
    assert requests.reached(), "and where a step has been made meanwhile, it saves and stops"


def test_the_second_interrupt_ends_at_once(requests):
    requests.stepped()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_with_nohup_a_terminal_that_goes_away_ends_no_run():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests = StopRequests()
    requests.stepped()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not requests.asked
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.asked
    requests.close()


def test_of_several_processes_all_hear_of_any_signal_by_the_one_that_jax_spreads(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    heard, before = [], signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    requests = StopRequests()
    try:
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert heard == 3 * ["SIGTERM"]
    finally:
        requests.close()
        signal.signal(signal.SIGTERM, before)


def test_several_processes_count_from_where_they_began(monkeypatch):
    asked, ours = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    agree = lambda n: asked.append(n) or n == 3  # noqa: E731
    monkeypatch.setattr(distributed.multihost_utils, "reached_preemption_sync_point", agree)
    requests = StopRequests()
    assert [requests.reached() for _ in range(4)] == [False, False, True, True] and asked == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) is ours, "JAX listens itself"
    requests.close()


@pytest.fixture
def clock(monkeypatch):
    """Seconds that `SaveTimer` sees; `clock[0] = 90.0` sets them."""
    now = [0.0]
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now[0])
    return now


def test_a_checkpoint_is_due_so_many_minutes_after_the_last(clock):
    timer = SaveTimer(2)
    seen = []
    for clock[0] in (60.0, 119.0, 121.0, 122.0):
        seen.append(timer.due(logged=False))
    assert seen == [False, False, True, True]
    timer.saved()
    clock[0] = 240.0
    assert not timer.due(logged=True)
    clock[0] = 243.0
    assert timer.due(logged=True) and not SaveTimer(None).due(logged=True)


def test_all_processes_save_after_the_same_step_by_the_clock_of_the_first(clock, monkeypatch):
    said = []

    def broadcast(value):
        """Of the first process: every other one gets what it said."""
        said.append(bool(value))
        return value

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", broadcast)
    first, logged = SaveTimer(1), [False, True, False, True]
    times, dues = (30.0, 59.0, 61.0, 62.0), []
    for clock[0], has_line in zip(times, logged, strict=True):
        dues.append(first.due(has_line))
    assert dues == [False, False, False, True] and said == [False, True], "they meet at steps with a line only"
    answers = iter(said)
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", lambda value: np.asarray(next(answers)))
    clock[0] = 1000.0
    second = SaveTimer(1)  # began much later, so that its own clock would never say so
    assert [second.due(has_line) for has_line in logged] == dues


@pytest.mark.parametrize("minutes", [0, -1.0, True, "10", math.nan])
def test_minutes_that_are_none_are_refused(minutes):
    with pytest.raises(ConfigError, match="save_minutes is .*; give a number of minutes above 0, or None"):
        SaveTimer(minutes)
