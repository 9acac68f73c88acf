"""Rates of one revision: training steps, the loader and labels of a config, a round at a time.

python tools/benchmarks/rates.py CONFIG step,loader SECONDS [--config.key=value ...] serves rounds to
`tools/bench_guard.py`: it answers each line on stdin, the name of a rate, with a line of JSON on stdout. This file is
run with the package of another revision: it imports nothing of tools/, and of the package at first what all revisions
since 2e7f5da have.
"""

import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError, run_main

SAMPLE, GAP = "sample", 3
"""Data and gap of configs that name none."""


class Round(NamedTuple):
    """What was done and what it took. samples: how many. cpu: seconds of all cores. wall: seconds of the clock."""

    samples: int
    cpu: float
    wall: float


def cpu_seconds() -> float:
    """CPU time of this process and its workers."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        # The second field is the program's name in brackets, which may hold blanks: fields are counted behind it. 11
        # and 12 are then user and system time.
        fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(function: Callable[[], int]) -> Round:
    """A round of `function`, which says how many samples it did."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    samples = function()
    return Round(samples, cpu_seconds() - cpu, time.perf_counter() - wall)


def load(spec: str, overrides: list[str]):
    """A config; where it names no data it gets those of the sample that comes with the package."""
    config = config_lib.load(spec, overrides)
    if not config.data.get("path") and not config.data.get("mixture"):
        gap = [f"--config.data.gap_frames={GAP}"] if "gap_frames" in config.data else []
        config = config_lib.load(spec, [f"--config.data.path={SAMPLE}", *gap, *overrides])
    return config


def step_rate(setup, state) -> Callable[[int], Round]:
    """Does so many training steps on one batch."""
    import jax

    from lapa_jax.train.setup import compile_step
    from lapa_jax.train.sharding import shard_batch

    step, _ = compile_step(setup)
    batch, metrics = shard_batch(setup.mesh, next(setup.train_batches(0))), None

    def steps(count: int) -> int:
        nonlocal state, metrics
        for _ in range(count):
            state, metrics = step(state, batch)
        # Steps are dispatched ahead of the device: without waiting only the dispatch would be timed.
        jax.block_until_ready((state, metrics))
        return count * setup.config.train.batch_size

    return lambda count: timed(lambda: steps(count))


def loader_rate(config) -> Callable[[int], Round]:
    """Takes so many batches of the loader. Imports no jax."""
    from lapa_jax.data.loader.loader import train_batches
    from lapa_jax.data.training import open_training

    data, options = open_training(config.data, batch_size=config.train.batch_size), config.data
    batches = train_batches(data.train, seed=0, batch_size=config.train.batch_size, augment=data.augment,
                            threads=options.threads, workers=options.workers, prefetch=options.prefetch)  # fmt: skip

    def take(count: int) -> int:
        return sum(config.train.batch_size for _ in itertools.islice(batches, count))

    def measure(count: int) -> Round:
        take(2 * options.prefetch)  # What was prepared while others were measured counts for nothing.
        return timed(lambda: take(count))

    return measure


def label_rate(setup, state, folder: pathlib.Path) -> Callable[[int], Round]:
    """Labels the training split so many times, from stored images to shards of codes.

    Raises:
      UserError: the model gives no codes.
    """
    from lapa_jax.data.shards.step_shards import dataset_folder
    from lapa_jax.label.labeller import Labeller
    from lapa_jax.train.checkpoint import Checkpointer

    run = folder / "run"
    checkpoints = Checkpointer(run, keep_last=1, best_metric=None)
    checkpoints.save(state, 0, {**setup.meta(), "step": 0}, None)
    checkpoints.close()
    (run / "config.json").write_text(json.dumps(config_lib.to_json(setup.config)), "utf-8")
    tokenizer, data = lapa_jax.load(run), dataset_folder(setup.config.data.path)

    def label(count: int) -> int:
        labels = 0
        for _ in range(count):
            shutil.rmtree(folder / "labels", ignore_errors=True)
            labeller = Labeller(tokenizer, data, folder / "labels", splits=("train",))
            labels += labeller.run(progress=False)["splits"]["train"]["steps"]
        return labels

    return lambda count: timed(lambda: label(count))


class Rates:
    """The rates of a config by name, each warmed up; `round(name)` measures one for about so many CPU seconds."""

    def __init__(self, config, names: list[str], folder: pathlib.Path, seconds: float):
        self._functions, self._counts = {}, {}
        if "loader" in names:
            self._functions["loader"] = loader_rate(config)
        if set(names) - {"loader"}:
            self._functions |= _of_model(config, names, folder)
        for name, function in self._functions.items():
            function(2)
            taken = function(2)
            self._counts[name] = max(1, math.ceil(2 * seconds / max(taken.cpu, 1e-6)))

    def round(self, name: str) -> Round:
        """A round of the rate `name`."""
        return self._functions[name](self._counts[name])


def _of_model(config, names: list[str], folder: pathlib.Path) -> dict[str, Callable[[int], Round]]:
    """The rates that need a model: one is built and initialised for all of them."""
    from lapa_jax.train.run import logging_to
    from lapa_jax.train.setup import on_mesh, prepare
    from lapa_jax.train.sharding import shard_batch

    functions, setup = {}, prepare(config)
    with on_mesh(setup.mesh), logging_to(None):
        state = setup.init(shard_batch(setup.mesh, next(setup.train_batches(0))))
        # Labels first: a training step takes the state over.
        if "labels" in names:
            functions["labels"] = label_rate(setup, state, folder)
        if "step" in names:
            functions["step"] = step_rate(setup, state)
    return functions


def main(argv: list[str]) -> None:
    """Prepares the rates, says so, and serves rounds until stdin ends.

    Args:
      argv: a config, the names of rates with commas between them, the CPU seconds of a round, overrides.
    """
    config, names, seconds, *overrides = argv
    # Answers alone go to stdout, whatever libraries print.
    answers, sys.stdout = sys.stdout, sys.stderr
    if not pathlib.Path(config.partition(":")[0]).is_file():
        raise UserError(f"it has no {config.partition(':')[0]}")
    with tempfile.TemporaryDirectory() as folder:
        rates = Rates(load(config, overrides), names.split(","), pathlib.Path(folder), float(seconds))
        _answer(answers, {"package": str(pathlib.Path(lapa_jax.__file__).resolve().parent)})
        for line in sys.stdin:
            _answer(answers, rates.round(line.strip()))


def _answer(answers, value) -> None:
    """A line of JSON for `tools/bench_guard.py`, which no person reads."""
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    run_main(main)
