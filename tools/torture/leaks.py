"""Thousands of steps with evaluations and saves: memory, descriptors and threads stay what they were."""

import pathlib
import random
import time

from tools.torture.processes import Process
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import CONFIG, Workshop, script

EVERY, EVALUATED = 10, 200
"""Steps between two saves, and between two evaluations."""
FEWEST = 150
"""Saves after which pools of threads are full, and more of them tell something."""
GROWTH, MORE = 1.05, 3
"""How much larger the median of the last third may be than that of the middle one: memory, and descriptors and threads.
The first third is left out: caches fill there."""


def run(workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Trains for `count` saves of ten steps each, but for `FEWEST` at least, and watches the process."""
    count = max(count, FEWEST)
    out, steps = workshop.new("leaks"), count * EVERY
    settings = (f"steps={steps}", f"save_every={EVERY}", f"eval_every={min(EVALUATED, steps)}", "log_every=10",
                "keep_last=3", "trackers=('tensorboard',)")  # fmt: skip
    command = script("launch/train.py", "--config", CONFIG, *(f"--config.train.{each}" for each in settings),
                     "--workdir", out)  # fmt: skip
    process = Process(command, workshop.environment, workshop.folder / "printed" / "leaks.txt",
                      workshop.folder / "tmp" / "leaks")  # fmt: skip
    process.until(lambda: "saved step" in process.printed())
    samples, told = [], time.monotonic()
    while process.running:
        if sample := _sample(process.popen.pid):
            samples.append(sample)
        if time.monotonic() - told > 5:
            told = time.monotonic()
            workshop.log(f"{process.printed().count('saved step')} of {count} saves: {sample}")
        time.sleep(0.5)
    saves = process.printed().count("saved step")
    if process.popen.returncode:
        tally.ended("run", [f"code {process.popen.returncode}: {process.last_words()}"])
    if saves < count:
        tally.ended("run", [f"{saves} saves instead of {count}"])
    third = max(1, len(samples) // 3)
    names = ("resident MB", "descriptors", "threads")
    for number, name in enumerate(names):
        middle, last = (sorted(sample[number] for sample in part)[len(part) // 2]
                        for part in (samples[third : 2 * third] or samples, samples[-third:]))  # fmt: skip
        grew = last > middle * GROWTH if number == 0 else last > middle + MORE
        tally.figures.append(f"{name}: {samples[0][number]:.0f} at first, {middle:.0f} in the middle, {last:.0f} in "
                             "the last third")  # fmt: skip
        if grew:
            tally.ended(name, [f"grew from {middle:.0f} to {last:.0f}"])
    tally.ended("saves", times=saves)
    tally.figures.append(f"{steps:,} steps, {1 + steps // EVALUATED} evaluations")


def _sample(pid: int) -> tuple[float, int, int] | None:
    """Resident MB, descriptors and threads of a process; None where it has ended."""
    folder = pathlib.Path(f"/proc/{pid}")
    try:
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        descriptors = len(list((folder / "fd").iterdir()))
        return int(fields["VmRSS"].split()[0]) / 1000, descriptors, int(fields["Threads"])
    except (OSError, KeyError):
        return None


KINDS = {"saves": Kind(run, 1000, 420)}
