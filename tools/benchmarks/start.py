"""One start of a training command with a clock at its pieces: what `tools/bench_start.py` runs in a process of its own.

The functions that a start goes through are replaced by ones that take the time and call them; it ends with the first
training step. A piece that runs within another one counts for itself alone.
"""

import contextlib
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator

PIECES = {
    "build": ("lapa_jax.train.loop", "prepare"),
    "trace": ("lapa_jax.train.setup", "trace_step"),
    "lower": ("lapa_jax.train.setup", "lower_step"),
    "compile": ("lapa_jax.train.loop", "compile_step"),
    "initialise": ("lapa_jax.train.loop", "Loop._start"),
    "first evaluation": ("lapa_jax.train.loop", "Loop._evaluate"),
    "first step": ("lapa_jax.train.loop", "Loop._one_step"),
}
"""{piece: (module, function)} in the order they happen; "trace" runs within "lower", and that within "compile"."""
IMPORT, REST = "import", "rest"


class Clock:
    """Seconds of the clock and of all cores by piece; `taken` is {piece: [wall, CPU]}."""

    def __init__(self, begun: float):
        """begun: when the command was started, in seconds since the epoch."""
        # Until now the process has done nothing but start and import.
        self.taken = {IMPORT: [time.time() - begun, time.process_time()]}
        self._stack, self._last = [IMPORT], self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _charge(self) -> None:
        """What passed since the last change belongs to the innermost piece."""
        now = self._now()
        sums = self.taken.setdefault(self._stack[-1], [0.0, 0.0])
        for k in range(2):
            sums[k] += now[k] - self._last[k]
        self._last = now

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[None]:
        """What runs within it belongs to this piece."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def begin_rest(self) -> None:
        """What belongs to no piece from now on is the rest and not the import."""
        self._charge()
        self._stack[0] = REST


def watch(clock: Clock, finish) -> None:
    """Puts the clock around all pieces; `finish()` is called after the first step."""
    for name, (module, path) in PIECES.items():
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, attribute, _timed(clock, name, getattr(owner, attribute), finish))
    loop = importlib.import_module("lapa_jax.train.loop")
    train = loop.train

    def begin(*args, **options):
        clock.begin_rest()
        train(*args, **options)

    loop.train = begin


def _timed(clock: Clock, name: str, function, finish):
    @functools.wraps(function)
    def timed(*args, **options):
        with clock.piece(name):
            result = function(*args, **options)
            if name == "first step":
                import jax

                jax.block_until_ready(args[0]._state)
        if name == "first step":
            finish()
        return result

    return timed


def main(argv: list[str]) -> None:
    """argv: when the command was started, a file for the times, arguments of launch/train.py."""
    begun, out, *arguments = argv
    clock = Clock(float(begun))

    def finish() -> None:
        with open(out, "w") as file:
            json.dump(clock.taken, file)
        # What is under way in other threads is not waited for.
        os._exit(0)

    from launch import train

    watch(clock, finish)
    train.main(arguments)


if __name__ == "__main__":
    import pathlib

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from lapa_jax.core.errors import run_main

    run_main(main)
