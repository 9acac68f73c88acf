"""Signals at moments when Python cannot raise, and when a command has done its work."""

import signal
import subprocess
import sys

import pytest

MAIN = """
import atexit, signal, sys, time
from lapa_jax.core.errors import Stopped, run_main

# A shell lets what it starts in the background ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


def sent(number: int, body: str) -> subprocess.CompletedProcess:
    """Sends a signal to a command when it is ready; it may take ten seconds from then on."""
    command = [sys.executable, "-B", "-c", MAIN.replace("{body}", body).replace("time.sleep(20)", "time.sleep(3)")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    printed, errors = process.communicate(timeout=10)
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


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
