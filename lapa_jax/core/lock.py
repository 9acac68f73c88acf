"""One process at a time in a folder: a lock that its holder's death takes away, on network file systems too.

The lock is a POSIX record lock (`fcntl.lockf`) on a file. Unlike `flock` it is to reach other hosts on NFS, GPFS and
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
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import parse_json

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


def held(paths: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """The first of some lock files that a living process holds, this one too; None where there is none.

    What others have left without letting go is not held. Nothing is locked, so nobody is in the way of a holder.
    """
    doubtful = {}
    for path in paths:
        answer = _is_locked(path)
        if answer:
            return path
        holder = _holder(path)
        if _may_live_elsewhere(holder, locks_work=answer is not None):
            doubtful[path] = holder
    return _first_sign(doubtful)


def refusal(path: pathlib.Path, doing: str) -> str:
    """What is said to who comes second: what the first one does, and who it is, if it wrote that down."""
    holder = _holder(path)
    who = f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})" if holder else ""
    return f"another process is {doing}{who}; wait for it, or end it. It holds {path}"


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
        raise UserError(refusal(path, doing)) from None
    except OSError:  # this file system has no locks
        works = False
    holder = _holder(path)
    if _may_live_elsewhere(holder, works) and _first_sign({path: holder}):
        raise UserError(refusal(path, doing))


def _is_locked(path: pathlib.Path) -> bool | None:
    """Whether a process has locked a file; None where this file system has no locks."""
    if (inode := _inode(path)) is None:
        return False
    if inode in _held:  # to open and close it would give the lock away
        return True
    # `struct flock` of Linux: type, from where, start, length (0: all of it), process.
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # let go meanwhile
        return False
    try:
        return struct.unpack_from("h", fcntl.fcntl(descriptor, fcntl.F_GETLK, question))[0] != fcntl.F_UNLCK
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _may_live_elsewhere(holder: Mapping, locks_work: bool) -> bool:
    """Whether the holder of a file that seems free may be alive all the same."""
    # On one host the lock alone decides: processes here see each other's, and a killed one has lost its own.
    return bool(holder) and not (locks_work and holder.get("host") == socket.gethostname())


def _first_sign(holders: Mapping[pathlib.Path, dict]) -> pathlib.Path | None:
    """Waits for a sign of life of any of some holders; None where all have ended."""
    deadline, holders = time.monotonic() + BEAT * SILENT_BEATS, dict(holders)
    while holders and time.monotonic() < deadline:
        time.sleep(BEAT / 4)
        for path, before in list(holders.items()):
            now = _holder(path)
            if not now:
                del holders[path]
            elif now != before:
                return path
    return None


def _beside(path: pathlib.Path) -> pathlib.Path:
    """The file with the signs of life. Not the lock itself: whoever closes a file loses its locks on it."""
    return path.with_name(f"{path.name}.json")


def _signs(path: pathlib.Path) -> Callable[[], None]:
    """Writes a sign of life each time it is called."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    beats, create = itertools.count(), os.O_CREAT

    def sign() -> None:
        nonlocal create
        text = json.dumps({**about, "beats": next(beats)}).ljust(256)
        # In place and always as long, so that no reader sees half of it and no kill leaves a temporary file. A disk
        # that is full ends no run for want of a sign of life.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | create | os.O_CLOEXEC, 0o644)
            create = 0  # once: a folder that is being deleted by the holder would not get empty
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
        return parse_json(_beside(path).read_text())
    except (OSError, ValueError):
        return {}


def _inode(file: int | os.PathLike) -> tuple[int, int] | None:
    """What a file is, whatever its name; None where there is none of that name."""
    try:
        about = os.stat(file)
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino
