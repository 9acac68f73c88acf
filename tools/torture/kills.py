"""SIGKILL at random moments: whatever is killed, however often, ends in the bits of what was left alone.

Half of the kills go to the whole session, as a scheduler's, half to the command's first process alone, as the kernel's
for want of memory: what that had started must end by itself. The same command follows at once.
"""

import functools
import pathlib
import random
import time

from lapa_jax.core.metrics import read_metrics
from tools.torture.processes import Process, still_carrying
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Workshop

MOST = 8
"""Kills that one folder suffers before it is finished and compared."""
PATIENCE = 20.0
"""Seconds in which what a killed command had started must have ended."""


def kill_job(job: str, moment, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Kills a job `count` times, on as many folders as that takes.

    Args:
      moment: (process, out, seconds of an undisturbed run, rng): waits until it is to be killed; may be too late.
    """
    _, seconds = workshop.whole(job)
    while tally.tried < count:
        out, hits, mark = workshop.new(job), 0, None
        most = min(MOST, count - tally.tried)
        while True:
            process = workshop.start(job, out, mark=mark)
            mark = process.mark
            if hits < most:
                moment(process, out, seconds, rng)
            if hits == most or not process.running:
                break
            process.kill(group=rng.random() < 0.5)
            hits += 1
            workshop.log(f"killed {job} after {time.monotonic() - process.started:.1f} s ({tally.tried + hits})")
        if process.wait() == 0 and not hits:
            seconds *= 0.8  # it is faster by now than when it was measured
            continue
        seconds = 0.5 * seconds + 0.5 * (time.monotonic() - process.started)
        wrong = workshop.ended(job, out, process)
        if left := still_carrying(mark, PATIENCE):
            wrong.append(f"{len(left)} process(es) of killed ones live on")
        tally.ended("ends as one left alone" if not wrong else f"{out}", wrong, times=hits or 1)


def anywhere(process: Process, out: pathlib.Path, seconds: float, rng: random.Random) -> None:
    """Anywhere in an undisturbed run's time."""
    process.until(lambda: False, rng.uniform(0, seconds))


def between_steps(process: Process, out: pathlib.Path, seconds: float, rng: random.Random) -> None:
    """A quarter while it starts, the others when it has made some steps more."""
    if rng.random() < 0.25:
        return anywhere(process, out, 0.6 * seconds, rng)
    begin = _logged(out)
    target = begin + rng.randint(1, 30)
    process.until(lambda: _logged(out) >= target)
    time.sleep(rng.uniform(0, 0.1))


def while_saving(process: Process, out: pathlib.Path, seconds: float, rng: random.Random) -> None:
    """At random moments of the time in which a checkpoint has its temporary name."""
    begin = _logged(out)
    target = begin + rng.randint(0, 20)
    process.until(lambda: _logged(out) >= target and any((out / "checkpoints").glob(".*")))
    time.sleep(rng.uniform(0, 0.1))


def _logged(run: pathlib.Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def _kind(job: str, moment, count: int, each: float) -> Kind:
    return Kind(functools.partial(kill_job, job, moment), count, count * each)


KINDS = {
    "train": _kind("train", between_steps, 45, 11),
    "save": _kind("train", while_saving, 45, 10),
    "evaluate": _kind("evaluate", anywhere, 20, 8),
    "label": _kind("label", anywhere, 25, 7),
    "convert": _kind("convert", anywhere, 25, 3),
    "export": _kind("export", anywhere, 20, 4),
    "record": _kind("record", anywhere, 20, 4),
}
