"""Kills a command at random moments and runs it again until it is done: what a user's cluster does to it."""

import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence


def run_until_done_with_kills(
    command: Sequence[str], *, kills: int, seed: int, duration: float, startup: float, env: dict | None = None
) -> int:
    """Runs a command, SIGKILLs its process group at random moments, and runs it again until it exits with 0.

    The moments are spread over the work: a run is killed on average after `(duration - startup) / (kills + 1)` seconds
    of work, some while it still starts up. After the last kill it runs through.

    Args:
      command: the command line.
      kills: how often to kill at most; a command that is done earlier is not killed again.
      seed: of the moments.
      duration: seconds of an uninterrupted run, measured with `timed`.
      startup: seconds of a run that finds everything done.
      env: of the command; this process's own if None.

    Returns:
      How many kills hit.

    Raises:
      AssertionError: a run ended by itself with an error; its output is in the message.
    """
    rng = random.Random(seed)
    share = max(duration - startup, 0.1) / (kills + 1)
    for hits in range(kills + 1):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        delay = startup + rng.uniform(-0.2 * startup, 2 * share)
        if hits == 0:
            # `duration` may hold a cold start: the first kill hits even where runs are three times faster by now.
            delay = min(delay, 0.3 * duration)
        try:
            output, _ = process.communicate(timeout=delay if hits < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            continue
        assert process.returncode == 0, f"run {hits} failed by itself:\n{output}"
        return hits
    raise AssertionError("unreachable: the last run has no time limit")


def timed(command: Sequence[str], env: dict | None = None) -> float:
    """Runs a command to its end and returns the seconds it took."""
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout
    return time.monotonic() - start


class _Killed(BaseException):
    """What no code under test catches."""


def dies_at(monkeypatch, stop: int, command: Callable[[], object]) -> bool:
    """Runs a command within this process, and ends it at its `stop`-th rename, flush or deletion, as a kill would.

    Returns:
      Whether it was ended; False where it has fewer of these and came to its own end.
    """
    calls = iter(range(10**6))

    def dying(original):
        def call(*args, **kwargs):
            if next(calls) == stop:
                raise _Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(pathlib.Path, "unlink", dying(pathlib.Path.unlink))
        try:
            command()
        except _Killed:
            return True
    return False
