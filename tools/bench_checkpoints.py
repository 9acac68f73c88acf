"""Measures what checkpoints cost: python tools/bench_checkpoints.py [--megabytes 1024] [--repeats 5]. Prints a table.

A state of so many megabytes, parameters and two slots of an optimizer, is saved to the run folder and to the fast level
in turns. Then the files of the run folder's checkpoint are read from the disk, without and with the comparison of
checksums, in turns, and compared where they lie in memory. Medians, with the smallest and largest in brackets. Files
are dropped from the memory of the system before each reading from the disk.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from lapa_jax.core import integrity
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import check_room, file_to_write

ARRAYS, SLOTS = 8, 3
"""Arrays of each collection; the parameters and two slots of an optimizer."""
HEAD = ("what", "seconds", "GB/s", "the run waits, s")


def main(argv: list[str]) -> None:
    """Saves and reads, and prints the table."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench_checkpoints_") as folder:
        check_room(pathlib.Path(folder), int(args.megabytes * 1e6 * 5))
        with _quiet():
            rows = measure(pathlib.Path(folder), args)
    say("\n".join(lines(rows)))
    if args.json:
        from tools.benchmarks import records

        records.write(args.json, "tools/bench_checkpoints.py", argv, rows)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; a wrong one is a `UserError`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--megabytes", type=float, default=1024, help="of the state")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--folder", type=pathlib.Path, help="where the temporary folder is made: the disk to measure")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    args = parser.parse_args(argv)
    if args.megabytes < 1 or args.repeats < 1:
        raise UserError("--megabytes and --repeats are 1 or more")
    return args


def measure(folder: pathlib.Path, args: argparse.Namespace) -> list[dict]:
    """Rows {"what", "seconds": [...], "bytes", "waited": [...] or None}."""
    from lapa_jax.train.checkpoint import Checkpointer
    from lapa_jax.train.checkpoint_folder import folder_of
    from lapa_jax.train.fast_checkpoints import FastCheckpoints

    state, size = _state(args.megabytes)
    durable = Checkpointer(folder / "run", keep_last=2, best_metric=None)
    fast = FastCheckpoints(folder / "fast", "run", {}, keep=2)
    # The first save also makes what all later ones use.
    saves = {"save to the run folder": durable, "save to the fast level": fast}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in saves}
    for step in range(args.repeats + 1):
        for name, level in saves.items():
            os.sync()
            taken[name].append(_save(level, state, step))
    rows = [{"what": name, "seconds": [whole for whole, _ in times[1:]], "bytes": size,
             "waited": [waited for _, waited in times[1:]]} for name, times in taken.items()]  # fmt: skip

    checkpoint = folder_of(folder / "run", args.repeats)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    compare = lambda: integrity.check(checkpoint, "measure on another disk")  # noqa: E731
    readings: dict[str, tuple[Callable, bool]] = {
        "read from the disk": (lambda: [_read(path) for path in files], True),
        "read from the disk and compare checksums": (compare, True),
        "compare checksums of files in memory": (compare, False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for _ in range(args.repeats):
        for name, (reading, dropped) in readings.items():
            if dropped:
                _drop(files)
            start = time.perf_counter()
            reading()
            seconds[name].append(time.perf_counter() - start)
    return rows + [{"what": name, "seconds": times, "bytes": size, "waited": None} for name, times in seconds.items()]


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `measure` or of a record."""
    return table(HEAD, map(_cells, rows))


def _cells(row: dict) -> tuple[str, ...]:
    rates = [row["bytes"] / 1e9 / seconds for seconds in row["seconds"]]
    return row["what"], _spread(row["seconds"]), _spread(rates), _spread(row["waited"]) if row["waited"] else ""


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _state(megabytes: float):
    """A state of normally distributed numbers, which compress as little as weights, and its bytes."""
    import jax
    import jax.numpy as jnp

    from lapa_jax.train.state import State

    rng = np.random.default_rng(0)
    shape = (max(1, round(megabytes * 1e6 / (4 * ARRAYS * SLOTS) / 1024)), 1024)
    params, *slots = ({f"array{k}": jnp.asarray(rng.standard_normal(shape, np.float32)) for k in range(ARRAYS)}
                      for _ in range(SLOTS))  # fmt: skip
    state = State(jnp.zeros((), jnp.int32), {"params": params}, tuple(slots))
    return state, sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _save(level, state, step: int) -> tuple[float, float]:
    """Seconds until a checkpoint is written, and seconds until the run could have gone on."""
    start = time.perf_counter()
    level.save(state, step, {}, None)
    waited = time.perf_counter() - start
    level.wait()
    return time.perf_counter() - start, waited


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the line that each save has in the log."""
    log = logging.getLogger("lapa_jax")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _read(path: pathlib.Path) -> None:
    """As checksums are read, in pieces, and nothing done with them."""
    buffer = bytearray(integrity.CHUNK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _drop(files: list[pathlib.Path]) -> None:
    """Has the system forget what it keeps of the files, where it is Linux."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    run_main(main)
