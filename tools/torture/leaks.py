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
GROWTH, SPARE, EACH = 1.05, 10, 0.05
"""What may grow from the middle third to the last one, the first left out, since caches fill there: the median of the
memory by a twentieth; the lower tenth of the descriptors and threads, which come and go in waves with the collection of
garbage, by ten and one for each twenty saves."""


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
    parts = samples[:third], samples[third : 2 * third] or samples, samples[-third:]
    for number, name in enumerate(("resident MB", "descriptors", "threads")):
        share = 10 if number else 2
        first, middle, last = (sorted(sample[number] for sample in part)[len(part) // share] for part in parts)
        most = max(sample[number] for sample in samples)
        tally.figures.append(f"{name}: {first:.0f}, {middle:.0f}, {last:.0f} in each third, {most:.0f} at most")
        allowed = middle + SPARE + EACH * saves / 3 if number else GROWTH * middle
        if last > allowed:
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
