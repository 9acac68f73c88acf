"""One process at a time in a folder: a lock that its holder's death takes away, on network file systems too.

The lock is a POSIX record lock (`fcntl.lockf`) on a file. Unlike `flock` it reaches other hosts on NFS, GPFS and
Lustre, it is not inherited by worker processes that outlive their parent, and the kernel or the server drops it when
the process or its host dies. Some mounts have no locks, or locks that other hosts do not see. The holder therefore also
writes who it is and a counter into a file beside, every few seconds. Who gets the lock and finds the name of a process
elsewhere watches that counter: if it moves, the holder lives. A holder that has died elsewhere costs that wait, once.
"""

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from lapa_jax.core.errors import UserError

BEAT, SILENT_BEATS = 3.0, 4
"""Seconds between two signs of life, and how many of them may be missing."""
_held: set[tuple[int, int]] = set()


@contextlib.contextmanager
def locked(path: str | os.PathLike, doing: str) -> Iterator[None]:
    """Holds the lock file `path` while the `with` block runs; the file is removed afterwards. Its folder must exist.

    Args:
      doing: what this process does there, "training in runs/x".

    Raises:
      UserError: another process holds it; says which, if it wrote that down.
    """
    path = pathlib.Path(path)
    descriptor = _acquire(path, doing)
    stop, sign = threading.Event(), _signs(_beside(path))
    beating = threading.Thread(target=_beat, args=(sign, stop), name="lock", daemon=True)
    try:
        sign()
        beating.start()
        yield
    finally:
        stop.set()
        if beating.is_alive():
            beating.join(timeout=BEAT)
        try:
            # Removed before it is let go: who waits for this very file notices that it has no name any more.
            _beside(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        finally:
            _held.discard(_inode(descriptor))
            os.close(descriptor)


def beside(folder: str | os.PathLike) -> pathlib.Path:
    """The lock file of a folder that is made only in the end: ".<name>.lock" in the folder it will lie in, made if
    absent."""
    path = pathlib.Path(folder).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.lock")


def _acquire(path: pathlib.Path, doing: str) -> int:
    """The descriptor of the locked file."""
    while True:
        # A process loses a record lock when it closes any descriptor of the file: its own are looked up first.
        if _inode(path) in _held:
            raise UserError(f"this process is already {doing}; wait for it")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _refuse_if_held(descriptor, path, doing)
            if _inode(path) == _inode(descriptor):
                _held.add(_inode(descriptor))
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it meanwhile


def _refuse_if_held(descriptor: int, path: pathlib.Path, doing: str) -> None:
    works = True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(_refusal(_holder(path), path, doing)) from None
    except OSError:  # this file system has no locks
        works = False
    holder = _holder(path)
    # On one host the lock alone decides: processes here see each other's, and a killed one has lost its own.
    if not holder or (works and holder.get("host") == socket.gethostname()):
        return
    deadline = time.monotonic() + BEAT * SILENT_BEATS
    while time.monotonic() < deadline:
        time.sleep(BEAT / 4)
        if (now := _holder(path)) != holder:
            if not now:
                return  # it has ended
            raise UserError(_refusal(now, path, doing))


def _refusal(holder: dict, path: pathlib.Path, doing: str) -> str:
    who = f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})" if holder else ""
    return f"another process is {doing}{who}; wait for it, or end it. It holds {path}"


def _beside(path: pathlib.Path) -> pathlib.Path:
    """The file with the signs of life. Not the lock itself: whoever closes a file loses its locks on it."""
    return path.with_name(f"{path.name}.json")


def _signs(path: pathlib.Path) -> Callable[[], None]:
    """Writes a sign of life each time it is called."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    beats = itertools.count()

    def sign() -> None:
        text = json.dumps({**about, "beats": next(beats)}).ljust(256)
        # In place and always as long, so that no reader sees half of it and no kill leaves a temporary file. A disk
        # that is full ends no run for want of a sign of life.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(descriptor, text.encode(), 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    return sign


def _beat(sign: Callable[[], None], stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        sign()


def _holder(path: pathlib.Path) -> dict:
    """Who gave the last sign of life; {} where nobody did."""
    try:
        return json.loads(_beside(path).read_text())
    except (OSError, ValueError):
        return {}


def _inode(file: int | os.PathLike) -> tuple[int, int] | None:
    """What a file is, whatever its name; None where there is none of that name."""
    try:
        about = os.stat(file)
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino
