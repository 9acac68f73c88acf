"""Times training steps of a config: alone on one batch, and with the loader; memory and achieved FLOP/s beside them.

python tools/bench_train.py --config configs/laq.py:tiny [--steps 30] [--rounds 3] [--config.key=value ...]

Both rates come from the same run, round by round, so their ratio holds on a noisy machine.
"""

import argparse
import pathlib
import resource
import statistics
import sys
import time

from lapa_jax.core import config as config_lib
from lapa_jax.core.arguments import Parser, check_options
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write

HEAD = ("device", "model", "batch", "samples/s, step alone", "samples/s with loader", "input wait", "peak memory",
        "GFLOP/s")  # fmt: skip


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--config", required=True, help="config file and optional variant, configs/laq.py:tiny")
    parser.add_argument("--steps", type=int, default=30, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; medians are printed")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    args, overrides = parser.parse_known_args(argv)
    check_options(parser, overrides)
    if args.steps < 1 or args.rounds < 1:
        raise UserError(f"--steps {args.steps} and --rounds {args.rounds} are 1 or more")
    config = config_lib.load(args.config, overrides)

    from lapa_jax.train.run import logging_to
    from lapa_jax.train.setup import compile_step, on_mesh, prepare

    setup = prepare(config)
    with on_mesh(setup.mesh), logging_to(None):
        step, flops = compile_step(setup)
        rounds = list(_rounds(setup, step, args.steps, args.rounds))
    rows = [_row(setup, flops, rounds)]
    say("\n".join(lines(rows)))
    if args.json:
        from tools.benchmarks import records

        records.write(args.json, "tools/bench_train.py", argv, rows)


def _rounds(setup, step, steps: int, rounds: int):
    """Yields (seconds a step on one batch, seconds a step with the loader, share of it spent waiting)."""
    from lapa_jax.train.sharding import shard_batch

    batches = setup.train_batches(0)
    fixed = shard_batch(setup.mesh, next(batches))
    # Three steps outside of the measurement: the first compiles, the next ones fill caches.
    state = run_steps(step, setup.init(fixed), [fixed] * 3)[0]
    for _ in range(rounds):
        state, alone, _ = run_steps(step, state, [fixed] * steps)
        loaded = (shard_batch(setup.mesh, next(batches)) for _ in range(steps))
        state, together, waited = run_steps(step, state, loaded)
        yield alone / steps, together / steps, waited / together


def run_steps(step, state, batches):
    """Trains on each of the batches.

    Returns:
      (the last state, seconds in all, seconds of them spent waiting for batches).
    """
    import jax

    start, waited = time.perf_counter(), 0.0
    iterator = iter(batches)
    while True:
        before = time.perf_counter()
        batch = next(iterator, None)
        waited += time.perf_counter() - before
        if batch is None:
            break
        state, metrics = step(state, batch)
    # Steps are dispatched ahead of the device: without waiting only the dispatch would be timed.
    jax.block_until_ready((state, metrics))
    return state, time.perf_counter() - start, waited


def seconds_of(call, repeats: int) -> list[float]:
    """Seconds that each of so many calls takes, until what it gives is there; two calls before them do not count."""
    import jax

    taken = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return taken[2:]


def peak_bytes() -> int | None:
    """The most that was in use on the first device since the process began; None where it does not tell, as of CPUs."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _row(setup, flops, rounds) -> dict:
    """What was measured, medians over the rounds. memory: bytes, of a device or, where that does not tell, resident."""
    import jax

    alone, together, wait = (statistics.median(column) for column in zip(*rounds, strict=True))
    batch = setup.config.train.batch_size
    memory = peak_bytes() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"device": f"{setup.mesh.size} × {jax.devices()[0].device_kind}", "model": setup.config.name,
            "batch": batch, "alone": batch / alone, "loaded": batch / together, "wait": wait, "memory": memory,
            "flops": flops.model / alone}  # fmt: skip


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `_row` or of a record."""
    return table(HEAD, map(_cells, rows))


def _cells(row: dict) -> tuple[str, ...]:
    return (row["device"], row["model"], str(row["batch"]), f"{row['alone']:.1f}", f"{row['loaded']:.1f}",
            f"{row['wait']:.0%}", f"{row['memory'] / 2**30:.2f} GiB", f"{row['flops'] / 1e9:.1f}")  # fmt: skip


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    run_main(main)
