"""Ends a run in which nothing moves any more: a stalled file system, a lost host, a worker that hangs."""

import faulthandler
import logging
import math
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable

import jax

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import EXIT_HANGS

LOG = logging.getLogger("lapa_jax")
GRACE = 5.0
"""Seconds between a host's report and its end, in which the others write theirs."""


class Watchdog:
    """Every host has one, a thread. After so many minutes without a sign of progress it writes what every thread is
    doing into `hang-<time>-host<i>.txt` of the run folder and ends the process with `EXIT_HANGS`.

    Args:
      minutes: None: never.
      workdir: the run folder.
      end: ends the process; for tests.

    Raises:
      ConfigError: no positive number of minutes.
    """

    def __init__(self, minutes: float | None, workdir: pathlib.Path, end: Callable[[int], None] = os._exit):
        number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
        if minutes is not None and not (number and math.isfinite(minutes) and minutes > 0):
            raise ConfigError(f"config.train.hang_minutes is {minutes!r}; give a number of minutes above 0, or None")
        self._minutes, self._workdir, self._end = minutes, workdir, end
        self._last, self._closed = time.monotonic(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch."""
        self._last = time.monotonic()
        if self._minutes is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def progress(self) -> None:
        """Something was done: the state was restored, a step, a batch of an evaluation, a checkpoint."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Watches no more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, 6 * self._minutes)):
            if time.monotonic() - self._last > 60 * self._minutes:
                return self._report()

    def _report(self) -> None:
        name = f"hang-{time.strftime('%Y%m%d-%H%M%S')}-host{jax.process_index()}.txt"
        line = (f"no step in {self._minutes:g} minutes: what every thread is doing is in {name}; ending with code "
                f"{EXIT_HANGS}, the same command resumes")  # fmt: skip
        # Each in a thread of its own: the run folder, its log or the terminal may lie on what is stalled.
        ways = (lambda: _write_stacks(self._workdir / name), lambda: LOG.error(line),
                lambda: os.write(2, f"{line}\n".encode()))  # fmt: skip
        writers = [threading.Thread(target=way, daemon=True) for way in ways]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + GRACE
        for writer in writers:
            writer.join(max(0.0, deadline - time.monotonic()))
        if self._closed.wait(GRACE):
            return
        for child in multiprocessing.active_children():
            child.kill()
        self._end(EXIT_HANGS)


def _write_stacks(path: pathlib.Path) -> None:
    # By way of memory: faulthandler keeps all other threads from running while it writes.
    with open(os.memfd_create("stacks"), "w+b") as memory:
        faulthandler.dump_traceback(memory, all_threads=True)
        memory.seek(0)
        path.write_bytes(memory.read())
