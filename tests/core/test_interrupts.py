"""Signals at moments when Python cannot raise, and when a command has done its work."""

import signal
import subprocess
import sys
import time

import pytest

from tests.launch.private_slurm import free_ports

MAIN = """
import atexit, signal, sys, time
from lapa_jax.core.errors import Stopped, run_main

# A shell lets what it starts in the background ignore interrupts, and nohup that the terminal goes away.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def ready():
    print("ready", flush=True)
    time.sleep(20)

{body}
run_main(main)
"""
IN_A_CALLBACK = """
class Late:
    def __del__(self):
        ready()

def main(argv):
    {before}
    late = Late()
    del late  # what is raised in there is lost
    time.sleep(20)
"""
STOPPING = """def stop(number, frame):
        raise Stopped
    signal.signal(signal.SIGTERM, stop)"""
CAUGHT = """
inner = main
def main(argv):
    try:
        inner(argv)
    except Stopped:
        print("stopped")
"""
AT_THE_END = """
def main(argv):
    atexit.register(ready)
"""


def begun(body: str) -> subprocess.Popen:
    """A command that is ready."""
    command = [sys.executable, "-B", "-c", MAIN.replace("{body}", body).replace("time.sleep(20)", "time.sleep(3)")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def sent(number: int, body: str) -> subprocess.CompletedProcess:
    """Sends a signal to a command when it is ready; it may take ten seconds from then on."""
    process = begun(body)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=10)
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


def test_an_interrupt_that_python_cannot_raise_is_heard_all_the_same():
    done = sent(signal.SIGINT, IN_A_CALLBACK.format(before="pass"))
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command resumes\n"


def test_so_is_the_end_before_the_first_step():
    done = sent(signal.SIGTERM, IN_A_CALLBACK.format(before=STOPPING) + CAUGHT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_when_all_is_done_no_signal_changes_the_exit_code(number):
    done = sent(number, AT_THE_END)
    assert (done.returncode, done.stderr) == (0, "")


HALF_MADE = """
import pathlib
from lapa_jax.core.files import atomic_path
from lapa_jax.core.lock import locked

def main(argv):
    with locked({folder!r} + "/.lock", "labelling"), atomic_path({folder!r} + "/shard.tar") as temporary:
        temporary.write_text("half")
        try:
            ready()
        finally:
            time.sleep({tidying})
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_is_half_made_goes_with_a_command_that_is_killed(tmp_path, number, code):
    done = sent(number, HALF_MADE.format(folder=str(tmp_path), tidying=0))
    assert done.returncode == code
    assert done.stderr == f"ended by {number.name}; the same command resumes\n"
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_break_off_the_tidying_up(tmp_path):
    process = begun(HALF_MADE.format(folder=str(tmp_path), tidying=1.0))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143 and list(tmp_path.iterdir()) == []


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path):
    body = HALF_MADE.format(folder=str(tmp_path), tidying=0)
    done = sent(signal.SIGHUP, "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + body)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "shard.tar").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_neither_is_lost_where_python_cannot_raise(number):
    done = sent(number, IN_A_CALLBACK.format(before="pass"))
    assert done.returncode == 128 + number
    assert done.stderr == f"ended by {number.name}; the same command resumes\n"


LISTING = """
import threading
from lapa_jax.data.convert import pool

def main(argv):
    threading.Timer(1.0, lambda: print("ready", flush=True)).start()
    pool.call(time.sleep, 60, workers=1)
"""
PACKING = """
import os, pathlib
import numpy as np
from lapa_jax.data.convert import run
from lapa_jax.data.convert.options import Options

folder, calls = pathlib.Path({folder!r}), []

def pack(conversion, max_errors):
    calls.append(1)
    if len(calls) == 2:  # while a worker reads what never comes
        (conversion.parts / ".episode1.part.0123abcd.tmp").write_text("what a worker is at")
        ready()
    else:
        (folder / "source" / "episode1.npz").unlink()
        os.mkfifo(folder / "source" / "episode1.npz")

def main(argv):
    (folder / "source").mkdir()
    for number in range(2):
        np.savez(folder / "source" / f"episode{{number}}.npz", image=np.zeros((4, 16, 16, 3), np.uint8))
    run._Conversion._pack = pack
    run.convert(folder / "source", folder / "out", Options(size=16), workers=2)
"""


@pytest.mark.parametrize("body", [LISTING, PACKING])
def test_workers_end_with_a_command_that_is_killed(tmp_path, body):
    done = sent(signal.SIGTERM, body.format(folder=str(tmp_path)) if body is PACKING else body)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "ended by SIGTERM; the same command resumes")
    assert not list(tmp_path.rglob("lock*")) and not list(tmp_path.rglob("*.tmp"))


JOINED = """
from lapa_jax.train import distributed

def main(argv):
    distributed.initialize(stop_together=False)
    ready()
"""


def test_of_several_processes_that_do_not_stop_together_each_ends(monkeypatch):
    """JAX listened to SIGTERM in labelling too, where nobody asked it: the job went on to its time limit."""
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    done = sent(signal.SIGTERM, JOINED)
    assert done.returncode == 143, done.stderr


def test_a_listener_that_python_does_not_know_stays_where_an_error_ends_the_process(root):
    """As JAX's for SIGTERM in one of several processes; Slurm sends SIGTERM to those that have lost a peer."""
    code = """
import atexit, ctypes, os, signal
from lapa_jax.core.errors import run_main
def main(argv):
    ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    raise RuntimeError("a peer was lost")
run_main(main)
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "a peer was lost" in done.stderr, (done.returncode, done.stderr)


MADE_AN_ERROR = """
from lapa_jax.core.errors import UserError

def main(argv):
    try:
        ready()
    except BaseException:
        raise UserError("a checkpoint that cannot be read")
"""


def test_a_library_that_makes_an_error_of_a_signal_changes_no_code():
    done = sent(signal.SIGTERM, MADE_AN_ERROR)
    assert (done.returncode, done.stderr) == (143, "ended by SIGTERM; the same command resumes\n")
