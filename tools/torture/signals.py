"""Signals at random moments: the documented exit code, a checkpoint where a step was made, soon, and nothing left.

What was stopped is run again, and hurt again, until it is done; then it must be as a run that was left alone.
"""

import functools
import pathlib
import random
import signal
import time

from lapa_jax.core.errors import EXIT_INTERRUPTED
from lapa_jax.core.metrics import read_metrics
from lapa_jax.train.checkpoint_folder import steps
from tools.torture.processes import Process, still_carrying
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Workshop

SOON = 30.0
"""Seconds in which a run must have ended."""
MOST = 6
"""Signals that one folder suffers before it is finished and compared."""
LISTENS = "opening the data"
"""From this line on a run answers signals itself; before it Python's own answers hold."""


def signal_runs(number: signal.Signals, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Sends a signal to training runs `count` times, at each of `MOMENTS` in turn."""
    workshop.whole("train")
    slowest, done, missed, moments = 0.0, 0, 0, list(MOMENTS)
    while done < count:
        out = workshop.new("signals")
        for _ in range(min(MOST, count - done)):
            process = workshop.start("train", out)
            name = moments[done % len(moments)]
            if not MOMENTS[name](process, out, rng):
                process.wait()
                missed += 1
                if missed > MOST * count:
                    raise RuntimeError(f"the moment '{name}' never comes: {process.last_words()}")
                break  # the run is complete, or that moment lies behind it
            stepped, listens = _steps_since(process), LISTENS in process.printed()
            sent = time.monotonic()
            process.popen.send_signal(number)
            code = process.wait(4 * SOON)
            took = time.monotonic() - sent
            slowest = max(slowest, took)
            wrong = _wrong(process, out, number, code, took, stepped, listens)
            how = f"{name}: {'code ' + str(code) if listens else 'ended by Python'}"
            tally.ended(how, wrong)
            done += 1
            workshop.log(f"{number.name} {name}: code {code} in {took:.1f} s {'; '.join(wrong)}")
        if wrong := workshop.finish("train", out):
            tally.ended("finished", wrong)
    tally.figures.append(f"the slowest took {slowest:.1f} s")


def signal_job(job: str, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Sends SIGTERM, SIGINT or SIGHUP to another command; nothing half made and nothing of it lives on, and the same
    command finishes."""
    _, seconds = workshop.whole(job)
    while tally.tried < count:
        out, number = workshop.new(job), rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        process = workshop.start(job, out)
        process.until(lambda: False, rng.uniform(0.1, 1.0) * seconds)
        if not process.running:
            continue
        sent = time.monotonic()
        process.popen.send_signal(number)
        code, took = process.wait(4 * SOON), time.monotonic() - sent
        # 128 + 2 is 130. Before the command listens, in its first second, the signal itself ends it.
        wrong = [] if code in (128 + number, -number, 0) else [f"code {code}: {process.last_words()}"]
        wrong += _left(process, took)
        if code != -number:
            wrong += _half_made(out)
        if "Traceback" in process.printed() and code == 128 + number:
            wrong.append("a traceback")
        wrong += workshop.finish(job, out)
        tally.ended(f"{number.name} code {code}", wrong)
        workshop.log(f"{number.name} to {job}: code {code} in {took:.1f} s {'; '.join(wrong)}")


def _wrong(process: Process, out: pathlib.Path, number: signal.Signals, code: int, took: float,
           stepped: bool, listens: bool) -> list[str]:  # fmt: skip
    """What is wrong with how a training run has ended."""
    interrupted = number == signal.SIGINT
    if not listens:
        right = (-number, EXIT_INTERRUPTED) if interrupted else (-number, 128 + number, 0)
    elif stepped:
        right = (0,)
    else:
        right = (0, EXIT_INTERRUPTED) if interrupted else (0,)
    wrong = [] if code in right else [f"code {code}: {process.last_words()}"]
    wrong += _left(process, took)
    if stepped:
        last = max((line["step"] for line in read_metrics(out)), default=0)
        if last not in steps(out):
            wrong.append(f"no checkpoint of step {last}, but of {steps(out)[-3:]}")
    if code == 0 and out.exists():
        wrong += [f"{path.name} is left" for folder in (out, out / "checkpoints") if folder.is_dir()
                  for path in folder.glob(".*")]  # fmt: skip
    return wrong


def _left(process: Process, took: float) -> list[str]:
    """What has not ended, or too late."""
    wrong = [f"it took {took:.0f} s"] if took > SOON else []
    alive = still_carrying(process.mark, 5.0)
    wrong += [f"{len(alive)} process(es) live on"] if alive else []
    return wrong + [f"{path.name} is left in TMPDIR" for path in process.temporary.iterdir()]


def _half_made(out: pathlib.Path) -> list[str]:
    """Temporary files and locks in and beside a folder; what is whole may stay in one that is not finished."""
    return [f"{path.name} is left" for path in out.parent.rglob("*")
            if path.name.endswith((".tmp", ".lock", ".lock.json")) or path.name in ("lock", "lock.json")]  # fmt: skip


def _steps_since(process: Process) -> bool:
    """Whether this process has made a step: it has logged one or is asked for after one."""
    return "step/s, loss=" in process.printed() or "s/step, loss=" in process.printed()


def _says(words: str):
    def moment(process: Process, out: pathlib.Path, rng: random.Random) -> bool:
        return process.until(lambda: words in process.printed()) and _after(process, rng.uniform(0, 0.5))

    return moment


def _starting(process: Process, out: pathlib.Path, rng: random.Random) -> bool:
    return _after(process, rng.uniform(0, 4))


def _stepping(process: Process, out: pathlib.Path, rng: random.Random) -> bool:
    return process.until(lambda: _steps_since(process)) and _after(process, rng.uniform(0, 0.3))


def _saving(process: Process, out: pathlib.Path, rng: random.Random) -> bool:
    saving = lambda: _steps_since(process) and any((out / "checkpoints").glob(".*"))  # noqa: E731
    return process.until(saving) and _after(process, rng.uniform(0, 0.05))


def _evaluating(process: Process, out: pathlib.Path, rng: random.Random) -> bool:
    """In an evaluation after the first step, or in the first one where it begins."""
    evaluating = lambda: process.printed().count("evaluating the") > 1 or _near_evaluation(out)  # noqa: E731
    return process.until(evaluating) and _after(process, rng.uniform(0, 0.1))


def _near_evaluation(out: pathlib.Path) -> bool:
    last = max((line["step"] for line in read_metrics(out)), default=0)
    return last > 0 and last % 20 == 19


def _after(process: Process, seconds: float) -> bool:
    process.until(lambda: False, seconds)
    return process.running


MOMENTS = {"starting": _starting, "compiling": _says("compiling the training step"), "stepping": _stepping,
           "evaluating": _evaluating, "saving": _saving,
           "before the first step": _says("evaluating the untrained model")}  # fmt: skip

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
KINDS = {number.name: Kind(functools.partial(signal_runs, number), 24, 24 * 14) for number in SIGNALS}
KINDS |= {job: Kind(functools.partial(signal_job, job), 10, 10 * each)
          for job, each in {"evaluate": 18, "label": 12, "convert": 6, "export": 5, "record": 6}.items()}  # fmt: skip
