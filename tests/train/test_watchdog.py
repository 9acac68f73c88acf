import subprocess
import sys
import threading
import time

import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import EXIT_HANGS
from lapa_jax.train import watchdog
from lapa_jax.train.watchdog import Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE", 0.2)


def a_function_that_waits(event):
    event.wait()


def test_where_nothing_moves_all_threads_are_written_down_and_the_run_ends(tmp_path, caplog):
    codes, ended, waits = [], threading.Event(), threading.Event()
    threading.Thread(target=a_function_that_waits, args=(waits,), daemon=True).start()
    dog = Watchdog(0.2 / 60, tmp_path, lambda code: (codes.append(code), ended.set()))
    dog.start()
    assert ended.wait(10) and codes == [EXIT_HANGS] == [75]
    waits.set()
    dog.close()
    (report,) = tmp_path.glob("hang-*-host0.txt")
    text = report.read_text()
    assert "a_function_that_waits" in text and "test_where_nothing_moves" in text
    assert "ending with code 75" in caplog.text and report.name in caplog.text


def test_progress_keeps_it_quiet_and_without_minutes_it_never_looks(tmp_path):
    codes = []
    dog, off = Watchdog(0.3 / 60, tmp_path, codes.append), Watchdog(None, tmp_path, codes.append)
    dog.start()
    off.start()
    for _ in range(12):
        time.sleep(0.05)
        dog.progress()
    dog.close()
    off.close()
    assert codes == [] and list(tmp_path.iterdir()) == []


STALLED = """
import logging, os, pathlib, sys, time
from lapa_jax.train import watchdog

def full_pipe():
    reader, writer = os.pipe()
    fill(writer)
    return os.fdopen(writer, "w"), reader

def fill(descriptor):
    os.set_blocking(descriptor, False)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except BlockingIOError:
        os.set_blocking(descriptor, True)

watchdog.GRACE, folder, stalled = 0.2, pathlib.Path(sys.argv[1]), sys.argv[2]
if stalled == "log":
    stream, kept_open = full_pipe()
    watchdog.LOG.addHandler(logging.StreamHandler(stream))
    # The main thread stalls in a line of the log and holds the lock that every line needs.
    def work():
        watchdog.LOG.error("saved step 3")
else:
    watchdog.time.strftime = lambda form: "now"
    os.mkfifo(folder / "hang-now-host0.txt")
    fill(os.open(folder / "hang-now-host0.txt", os.O_RDWR))
    def work():
        time.sleep(60)
watchdog.Watchdog(0.2 / 60, folder).start()
work()
"""


@pytest.mark.parametrize("stalled", ["log", "run folder"])
def test_a_stalled_file_system_does_not_keep_it_from_ending_the_run(root, tmp_path, stalled):
    """Pipes that nobody reads stand for it: what writes there waits for good."""
    command = [sys.executable, "-B", "-c", STALLED, str(tmp_path), stalled]
    done = subprocess.run(command, cwd=root, timeout=30, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_HANGS, done.stderr
    assert "no step in 0.00333333 minutes" in done.stderr and "the same command resumes" in done.stderr
    if stalled == "log":
        (report,) = tmp_path.glob("hang-*-host0.txt")
        assert report.name in done.stderr and "in work" in report.read_text()


@pytest.mark.parametrize("minutes", [0, -1, True, "5"])
def test_minutes_that_are_none_are_refused(tmp_path, minutes):
    with pytest.raises(ConfigError, match="hang_minutes is .*; give a number of minutes above 0, or None"):
        Watchdog(minutes, tmp_path)
