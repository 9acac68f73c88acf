"""Measures opening numeric data: python tools/bench_open.py [--steps 10000000]. Prints a table in Markdown.

A split of so many steps is made in a temporary folder (about 140 bytes a step) and opened as stage 3 opens it: chunks
of actions with state and instruction. Numbers, instructions and episodes are read from the table that lies beside the
shards, so the shards themselves are sparse files here. What is measured: seconds to open, bytes that are sent to each
worker, and the memory of the workers when they have read some batches.
"""

import argparse
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import numpy as np

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write
from lapa_jax.data import pipeline
from lapa_jax.data.loader.loader import train_batches
from lapa_jax.data.shards import mapped
from lapa_jax.data.shards import table as table_lib
from lapa_jax.data.shards.step_shards import StepShards, dataset_fingerprint, write_dataset
from lapa_jax.data.statistics import column_statistics

WIDTH, TEXTS, LENGTH = 7, 1000, 100
"""Dimensions of actions and states, distinct instructions, steps of an episode."""
SHARD = 1 << 20


def main(argv: list[str]) -> None:
    """Makes the split, opens it and prints what that took."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make(pathlib.Path(folder), args.steps)
        rows = measure(pathlib.Path(folder), args)
    say("\n".join(lines(rows)))
    if args.json:
        from tools.benchmarks import records

        records.write(args.json, "tools/bench_open.py", argv, rows)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; a wrong one is a `UserError`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=500, help="of 256 chunks, that the workers read")
    parser.add_argument("--folder", type=pathlib.Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    args = parser.parse_args(argv)
    if args.steps < 1000 or args.workers < 1:
        raise UserError("--steps is 1000 or more, --workers 1 or more")
    return args


def make(folder: pathlib.Path, steps: int) -> None:
    """A split "train" of `steps` steps: its table, and sparse files in place of its shards."""
    rng = np.random.default_rng(0)
    starts = np.arange(0, steps, LENGTH)
    lengths = np.minimum(LENGTH, steps - starts)
    last = np.zeros(steps, bool)
    last[starts + lengths - 1] = True
    bounds = [*range(0, steps, SHARD), steps]
    shards = [{"name": f"train-{k:05d}.tar", "samples": end - begin, "bytes": 3072 * (end - begin), "sha256": "0" * 64}
              for k, (begin, end) in enumerate(zip(bounds, bounds[1:]))]  # fmt: skip
    features = {name: {"shape": [WIDTH], "dtype": "float32"} for name in ("action", "state")}
    features["instruction"] = {"codec": "txt"}
    splits = {"train": {"episodes": len(starts), "steps": steps, "shards": shards}}
    within = np.concatenate([np.arange(shard["samples"]) for shard in shards])
    arrays = {"text": np.repeat(np.arange(len(starts)) % TEXTS, lengths).astype(np.int32)}
    for number, member in enumerate(("action.npy", "state.npy", "txt")):
        present = ~last if member == "action.npy" else np.ones(steps, bool)
        places = np.stack([within * 3072 + 1024 * number + 512, np.full(steps, 156), np.full(steps, -1)], 1)
        arrays[f"member/{member}"], arrays[f"present/{member}"] = np.where(present[:, None], places, -1), present
    for name in ("action", "state"):
        rows = rng.standard_normal((steps, WIDTH), np.float32)
        arrays[f"column/{name}"], arrays[f"check/{name}"] = rows, table_lib.row_checks(rows)
    arrays["episode/id"] = np.char.mod("e%d", np.arange(len(starts))).astype(np.bytes_)
    arrays |= {"episode/start": starts, "episode/length": lengths, "episode/fps": np.full(len(starts), 5.0)}
    arrays |= {"episode/task": np.full(len(starts), -1, np.int32), "shard/start": np.array(bounds)}
    described = {"features": features, "splits": splits, "fingerprint": dataset_fingerprint(features, splits)}
    texts = [f"pick up the red block number {n} and put it into the bowl" for n in range(TEXTS)]
    mapped.write(table_lib.table_path(folder, "train"), table_lib.seal(arrays, texts, {}, described, "train"))
    for shard in shards:
        (folder / shard["name"]).touch()
        os.truncate(folder / shard["name"], shard["bytes"])
    summary = column_statistics([rng.standard_normal((10000, WIDTH))])
    statistics = {"action": summary, "state": summary}
    write_dataset(folder, features=features, fps=5.0, source={}, splits=splits, statistics=statistics)


def measure(folder: pathlib.Path, args: argparse.Namespace) -> list[dict]:
    """Rows of what was measured, {"what", "value" with its unit}."""
    values = {"steps": f"{args.steps:,}"}
    _, seconds = timed(lambda: StepShards(folder))
    values["opening the shards"] = f"{seconds:.2f} s"
    source, seconds = timed(lambda: pipeline.build(options(folder), "train"))
    values["opening chunks of actions, with state and instruction"] = f"{seconds:.2f} s"
    sent = len(ForkingPickler.dumps(source))
    values["sent to each worker"] = f"{sent / 1e6:.2f} MB, {sent / args.steps:.2f} bytes a step"
    batches = train_batches(source, seed=0, batch_size=256, workers=args.workers)
    next(batches)
    begin = time.perf_counter()
    for _ in range(args.batches):
        next(batches)
    rate = 256 * args.batches / (time.perf_counter() - begin)
    sizes = [memory(process.pid) for process in multiprocessing.active_children()]
    for name, size in zip(("in all", "of its own", "of mapped files, which all share"), map(max, zip(*sizes))):
        values[f"resident memory of a worker after {args.batches} batches of 256 chunks, {name}"] = f"{size:.0f} MB"
    values[f"chunks a second, {args.workers} workers"] = f"{rate:,.0f}"
    return [{"what": what, "value": value} for what, value in values.items()]


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `measure` or of a record."""
    return table(("", ""), [(row["what"], row["value"]) for row in rows])


def options(folder: pathlib.Path) -> dict:
    """`config.data` of chunks of actions with state and instruction."""
    return {"path": str(folder), "samples": "chunks", "fields": ("text", "state", "action"), "chunk_length": 8,
            "normalize": "q01_q99", "text_tokenizer": {"name": "bytes"}, "text_length": 64}  # fmt: skip


def timed(function: Callable) -> tuple[object, float]:
    """What a function gives, and the seconds that it took."""
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def memory(pid: int) -> tuple[float, float, float]:
    """Resident memory of a process in MB: in all, of its own, of mapped files."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text("utf-8").split("\n")
    sizes = {name: int(value.split()[0]) * 1024 / 1e6 for name, _, value in (line.partition(":") for line in lines)
             if name in ("VmRSS", "RssFile")}  # fmt: skip
    return sizes["VmRSS"], sizes["VmRSS"] - sizes["RssFile"], sizes["RssFile"]


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    run_main(main)
