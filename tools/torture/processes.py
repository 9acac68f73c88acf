"""Commands that are run to be hurt: nothing that they print or start is lost sight of."""

import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

MARK = "LAPA_JAX_TORTURE"
"""An environment variable by whose value everything that a command started is found again."""

BEGIN = """
import os, resource, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)
size, *command = sys.argv[1:]
if int(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
os.execvp(command[0], command)
"""
"""Becomes a command that hears all signals, although what is started in the background or with nohup ignores some; with
a size, one whose files may not become larger. Not in `preexec_fn`: this process has threads, those of jax."""


class Process:
    """A command in a session of its own.

    Attributes:
      popen: the process. mark: the value of `MARK` in it and in all that it starts. temporary: its TMPDIR.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path,
                 temporary: pathlib.Path, mark: str | None = None, largest_file: int = 0):  # fmt: skip
        """Starts it.

        Args:
          environment: all of its other variables. log: the file that gets what it prints, written anew.
          temporary: a folder for its temporary files, made if absent.
          mark: another one's mark, where both are looked for together. largest_file: bytes that a file of it may have;
            0: any.
        """
        self.mark, self._log, self.temporary = mark or secrets.token_hex(8), log, temporary
        temporary.mkdir(parents=True, exist_ok=True)
        environment = {**environment, MARK: self.mark, "TMPDIR": str(temporary)}
        self.started = time.monotonic()
        command = [sys.executable, "-ISc", BEGIN, str(largest_file), *command]
        with open(log, "wb") as stream:
            self.popen = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stream,
                                          stderr=stream, start_new_session=True)  # fmt: skip

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def printed(self) -> str:
        """What it has printed so far, both streams."""
        return self._log.read_text(errors="replace")

    def last_words(self) -> str:
        """The last line that says something."""
        return ([line for line in self.printed().replace("\r", "\n").split("\n") if line.strip()] or ["nothing"])[-1]

    def wait(self, seconds: float = 600.0) -> int:
        """Its exit code; it is killed where it takes longer, which gives -9."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.popen.wait()

    def until(self, ready: Callable[[], bool], seconds: float = 600.0) -> bool:
        """Waits until something is so; False where the process ends before, or that does not come."""
        patience = time.monotonic() + seconds
        while time.monotonic() < patience:
            if not self.running:
                return False
            if ready():
                return True
            time.sleep(0.005)
        return False

    def kill(self, group: bool = True) -> None:
        """SIGKILL, as by a scheduler to the whole session, or as by the kernel for want of memory to it alone."""
        (os.killpg if group else os.kill)(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def carrying(mark: str) -> list[int]:
    """Living processes that carry a mark."""
    wanted, alive = f"{MARK}={mark}".encode(), []
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0") and not _is_zombie(folder):
                alive.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return alive


def still_carrying(mark: str, seconds: float) -> list[int]:
    """Those that have not ended by themselves after so many seconds; they are killed."""
    patience = time.monotonic() + seconds
    while (alive := carrying(mark)) and time.monotonic() < patience:
        time.sleep(0.05)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return alive


def _is_zombie(folder: pathlib.Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def differences(left: os.PathLike, right: os.PathLike) -> list[str]:
    """The relative paths whose bytes differ between two folders, or which only one has; indexes are left out."""
    left, right = pathlib.Path(left), pathlib.Path(right)
    names = {p.relative_to(root).as_posix() for root in (left, right) for p in root.rglob("*") if p.is_file()}
    names = sorted(name for name in names if not name.endswith(".index.npz"))
    return [name for name in names if not _same(left / name, right / name)]


def _same(left: pathlib.Path, right: pathlib.Path) -> bool:
    return left.exists() and right.exists() and left.read_bytes() == right.read_bytes()
