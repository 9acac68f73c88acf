"""One process at a time, however the holder ends, and where locks do not reach other hosts."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from lapa_jax.core import lock
from lapa_jax.core.errors import UserError
from lapa_jax.core.lock import locked

HOLDER = """
import sys, time
from lapa_jax.core.lock import locked
with locked(sys.argv[1], "training in runs/x"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(root, path):
    command = [sys.executable, "-B", "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_refused_and_the_lock_goes_with_its_holder(root, tmp_path):
    path = tmp_path / ".lock"
    holder = start(root, path)
    with pytest.raises(UserError, match=r"another process is training in runs/x.*wait for it, or end it"):
        with locked(path, "training in runs/x"):
            pytest.fail("it was entered")
    holder.kill()
    holder.wait()
    assert path.exists()
    with locked(path, "training"):
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_ends_by_itself_leaves_no_file(root, tmp_path):
    holder = start(root, tmp_path / ".lock")
    holder.communicate("")
    assert holder.returncode == 0 and list(tmp_path.iterdir()) == []


def test_the_same_process_is_refused_too_and_keeps_its_lock(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, "training"):
        with pytest.raises(UserError, match="this process is already training"), locked(path, "training"):
            pytest.fail("it was entered")
        code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in done.stderr
    with locked(path, "training"):
        pass


@pytest.fixture
def quick(monkeypatch):
    """Signs of life every 50 ms."""
    monkeypatch.setattr(lock, "BEAT", 0.05)


def sign(path, beats, host="node7"):
    (path.parent / f"{path.name}.json").write_text(json.dumps({"pid": 5, "host": host, "beats": beats}))


def test_a_living_holder_on_a_host_whose_locks_are_not_seen_is_respected(tmp_path, quick):
    path, stop = tmp_path / ".lock", threading.Event()

    def live():
        beats = 0
        while not stop.wait(0.03):
            beats += 1
            sign(path, beats)

    sign(path, 0)
    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(UserError, match=r"process 5 on node7"), locked(path, "training"):
            pytest.fail("it was entered")
    finally:
        stop.set()
        other.join()
    with locked(path, "training"):  # node7 has died: its signs of life stand still
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_has_the_signs_of_life(tmp_path, quick, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with locked(tmp_path / "a.lock", "training"):
        lock._held.clear()  # as another process sees it
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(tmp_path / "a.lock", "training"):
            pytest.fail("it was entered")


def test_a_sign_of_life_that_cannot_be_read_is_none(tmp_path):
    for text in ("{", 100_000 * "["):
        (tmp_path / ".lock.json").write_text(text)
        with locked(tmp_path / ".lock", "training"):
            pass


def test_a_sign_of_life_that_is_deleted_does_not_come_back(tmp_path, quick):
    """The folder that it lies in is being deleted by the holder."""
    with locked(tmp_path / ".lock", "converting"):
        (tmp_path / ".lock.json").unlink()
        time.sleep(4 * lock.BEAT)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_whether_somebody_holds_a_lock_is_seen_without_taking_it(root, tmp_path):
    path = tmp_path / ".lock"
    assert lock.held([path]) is None and list(tmp_path.iterdir()) == []
    holder = start(root, path)
    assert lock.held([tmp_path / "other", path]) == path
    holder.kill()
    holder.wait()
    assert lock.held([path]) is None and path.exists()
    with locked(path, "training"):
        assert lock.held([path]) == path
        code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in done.stderr, "asking has not let it go"
