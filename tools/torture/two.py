"""Two processes on one folder: the second is refused in words and harms nothing."""

import functools
import os
import random
import signal
import time

from lapa_jax.core.errors import EXIT_BAD_INPUT
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Workshop

REFUSAL = "another process is"


def two(job: str, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Starts a job, holds it still while it has its lock, starts it again, and lets the first one finish."""
    _, seconds = workshop.whole(job)
    while tally.tried < count:
        out = workshop.new("two")
        first = workshop.start(job, out)
        # A lock lies in the folder, in a hidden one within it, or beside a folder that is made only in the end.
        if not first.until(lambda out=out: any("lock" in path.name for path in out.parent.rglob("*"))):
            raise RuntimeError(f"{job} has no lock: {first.last_words()}")
        time.sleep(rng.uniform(0, min(0.5, 0.2 * seconds)))
        os.killpg(first.popen.pid, signal.SIGSTOP)  # else it may be done before the second has begun
        if not first.running:
            continue
        begin = time.monotonic()
        try:
            second = workshop.start(job, out)
            code = second.wait()
        finally:
            os.killpg(first.popen.pid, signal.SIGCONT)
        wrong = []
        if code != EXIT_BAD_INPUT or REFUSAL not in second.last_words():
            wrong.append(f"the second one ended with {code}: {second.last_words()}")
        if code := first.wait():
            wrong.append(f"the first one ended with {code}: {first.last_words()}")
        else:
            wrong += workshop.compare(job, out)
        tally.ended("refused in words; the first one ends as one left alone", wrong)
        workshop.log(f"two of {job}: {time.monotonic() - begin:.1f} s {'; '.join(wrong)}")


def at_once(job: str, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Starts a job twice in the same moment."""
    while tally.tried < count:
        out = workshop.new("two")
        both = [workshop.start(job, out) for _ in range(2)]
        codes, wrong = [process.wait() for process in both], []
        if 0 not in codes:
            wrong.append(f"none of them is done: {[process.last_words() for process in both]}")
        for code, process in zip(codes, both):
            if code and (code != EXIT_BAD_INPUT or "Traceback" in process.printed()):
                wrong.append(f"code {code}: {process.last_words()}")
        wrong += workshop.compare(job, out) if not wrong else []
        tally.ended("one is done, the other is refused or finds it done", wrong)
        workshop.log(f"two of {job} at once: codes {codes} {'; '.join(wrong)}")


EACH = {"train": 17, "convert": 4, "label": 9, "record": 4, "export": 4}
KINDS = {job: Kind(functools.partial(two, job), 5, 5 * each) for job, each in EACH.items()}
KINDS |= {f"{job} at once": Kind(functools.partial(at_once, job), 5, 5 * each) for job, each in EACH.items()}
