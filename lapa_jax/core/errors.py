"""Errors that are meant for the user: one clear line that names the thing, the value and the remedy."""

import atexit
import errno
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lapa_jax.core.allocator import keep_freed_memory
from lapa_jax.core.escape import say

EXIT_BAD_INPUT = 2
ERROR = "error: "
"""What the line begins with that a command ends with then."""
EXIT_HANGS = 75
"""Nothing moved any more (`train.hang_minutes`); the same command resumes. EX_TEMPFAIL of sysexits.h: try again."""
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. Launchers print it as one line and exit with code 2, without a traceback."""


class Stopped(Exception):
    """A signal asked for the end at a moment when there is nothing to save. Launchers end with code 0."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: what holds something lets it go and removes what is half made, as after Ctrl-C.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class ConfigError(UserError):
    """A config file, key or value that cannot be used."""


def last_words(code: int, log: str | os.PathLike) -> str:
    """What a command of ours said last, for the message of who called it.

    Args:
      code: that it ended with. log: the file that its output went to.

    Returns:
      ": " and its line, where it ended with one that the user can act on; else "".
    """
    if code != EXIT_BAD_INPUT:
        return ""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file.read().splitlines() if line.strip()]
    return f": {lines[-1].removeprefix(ERROR)}" if lines and lines[-1].startswith(ERROR) else ""


def did_you_mean(word: str, known) -> str:
    """Returns "; did you mean 'x'?" for the closest of `known`, else the list of what is known."""
    import difflib

    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EFBIG,
            errno.ESTALE, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.ENOLCK, errno.ETIMEDOUT, errno.ENOTCONN,
            errno.EREMOTEIO)  # fmt: skip
"""What a user's file system may answer: no room, no permission, no disk, no server behind it."""
_WORDS = ("No space left", "Disk quota exceeded", "Read-only file system", "Permission denied", "RESOURCE_EXHAUSTED")
_BACKEND = "Unable to initialize backend"


def of_disk(error: BaseException) -> bool:
    """Whether an error is the answer of a file system, whatever library passes it on."""
    if isinstance(error, OSError):
        return error.errno in OF_DISKS
    return any(word in str(error) for word in _WORDS)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Gives errors of the file system the path that was written, which writing to an open file leaves out.

    Libraries that write by other means than Python's (safetensors) have errors of their own with its words: these
    become an `OSError` too.
    """
    try:
        yield
    except OSError as error:
        if error.errno in OF_DISKS and error.filename is None:
            error.filename = os.fspath(path)
        raise
    except UserError:
        raise
    except Exception as error:
        number = next((number for number in OF_DISKS if os.strerror(number) in str(error)), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a launcher's `main(argv)` and turns what a user can mend into one line on stderr and exit code 2: a
    `UserError`, what a file system refuses, a device that is asked for and is not there.

    SIGTERM and SIGHUP raise `Terminated` where nobody else listens to them, and end with 128 and their number. A signal
    that arrives while the garbage collector calls back, or in a `__del__`, raises where nothing is caught: it is sent
    again. When all is done, signals no longer change the exit code.
    """
    keep_freed_memory()
    signals, previous = _Signals(), sys.unraisablehook
    sys.unraisablehook = functools.partial(signals.raise_again, previous)
    try:
        with signals:
            main(sys.argv[1:])
        atexit.register(_ignore_signals)
    except UserError as error:
        _end(str(error))
    except OSError as error:
        if error.errno not in OF_DISKS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror}; what was whole before is unchanged, and the same command goes on once this is "
             "mended")  # fmt: skip
    except RuntimeError as error:
        if _BACKEND not in str(error):
            raise
        asked = os.environ.get("JAX_PLATFORMS", "")
        _end(f"{str(error).splitlines()[0]} (JAX_PLATFORMS={asked}): install JAX for that device, or set "
             "JAX_PLATFORMS=cpu")  # fmt: skip
    except KeyboardInterrupt as error:
        previous = lambda _: None  # noqa: E731 - what was half made complains when it is taken down
        code, what = EXIT_INTERRUPTED, "interrupted"
        if isinstance(error, Terminated):
            atexit.register(_ignore_signals)
            code, what = 128 + error.number, f"ended by {signal.Signals(error.number).name}"
        say(f"{what}; the same command resumes", file=sys.stderr)
        sys.exit(code)
    finally:
        sys.unraisablehook = previous
        # An error that nobody expects ends the process. In one of several JAX may listen to SIGTERM by now, unknown to
        # Python: to set it back would take that away, and what a lost peer ends would end as if by SIGTERM.
        if not isinstance(sys.exc_info()[1], Exception):
            signals.close()


class _Signals:
    """SIGTERM and SIGHUP as exceptions, like SIGINT."""

    ONCE = 5.0
    """Seconds in which a second signal is the same request: schedulers send several, and one that raises while things
    are tidied up would break that off."""

    def __init__(self):
        self._raised_at, self._number = -self.ONCE, 0
        # Whoever listens already goes on to: by nohup SIGHUP is ignored. Signals arrive in the main thread alone.
        main_thread = threading.current_thread() is threading.main_thread()
        self._ours = [number for number in (signal.SIGTERM, signal.SIGHUP)
                      if main_thread and signal.getsignal(number) == signal.SIG_DFL]  # fmt: skip
        for number in self._ours:
            signal.signal(number, self._end)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        # Libraries make errors of their own of it: a checkpoint that could not be read.
        if isinstance(error, Exception) and time.monotonic() - self._raised_at < self.ONCE:
            raise Terminated(self._number) from None

    def close(self) -> None:
        for number in self._ours:
            if signal.getsignal(number) == self._end:
                signal.signal(number, signal.SIG_DFL)

    def _end(self, number: int, _frame) -> None:
        now = time.monotonic()
        if now - self._raised_at > self.ONCE:
            self._raised_at, self._number = now, number
            raise Terminated(number)

    def raise_again(self, otherwise: Callable, unraisable) -> None:
        """What Python calls with an exception that it cannot raise; `otherwise` gets those that no signal caused."""
        number = {KeyboardInterrupt: signal.SIGINT, Stopped: signal.SIGTERM}.get(unraisable.exc_type)
        if isinstance(unraisable.exc_value, Terminated):
            number, self._raised_at = unraisable.exc_value.number, -self.ONCE
        if number is None:
            # Where an array of a checkpoint cannot be written, orbax raises that and closes its event loop; tensorstore
            # then says of each array that is still being written that it finds the loop closed.
            if str(unraisable.exc_value) != "Event loop is closed":
                otherwise(unraisable)
            return
        # A little later, when the callback is over.
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()


def _ignore_signals() -> None:
    """For the second in which Python and JAX take themselves down."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end(message: str) -> None:
    say(f"{ERROR}{message}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
