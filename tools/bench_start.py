"""Where the time goes before the first training step: python tools/bench_start.py --config configs/laq.py:tiny

Runs `launch/train.py` twice, in processes of their own: with an empty folder of compiled programs ("cold") and again
with what the first start left there ("warm"), and ends each after its first step. Prints seconds of the clock and of
all cores by piece. Other arguments are those of launch/train.py; beside other work trust the CPU seconds.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from lapa_jax.core import config as config_lib
from lapa_jax.core.arguments import Parser, check_options
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNS = ("cold", "warm")


def main(argv: list[str]) -> None:
    """Starts cold and warm, and prints the table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="config file and optional variants, configs/laq.py:tiny")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    args, overrides = parser.parse_known_args(argv)
    check_options(parser, overrides)
    config_lib.load(args.config, overrides)
    with tempfile.TemporaryDirectory(prefix="bench_start_") as folder:
        starts = {run: start(args.config, overrides, pathlib.Path(folder), run) for run in RUNS}
    rows = rows_of(starts)
    say("\n".join(lines(rows)))
    if args.json:
        from tools.benchmarks import records

        records.write(args.json, "tools/bench_start.py", argv, rows)


def start(config: str, overrides: list[str], folder: pathlib.Path, run: str) -> dict[str, list[float]]:
    """Starts the command once; {piece: [seconds of the clock, CPU seconds]}."""
    out = folder / f"{run}.json"
    # Programs are kept as users have it, in a folder of caches that is empty at first.
    variables = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    arguments = ["--config", config, "--workdir", str(folder / run), *overrides]
    script = ROOT / "tools" / "benchmarks" / "start.py"
    done = subprocess.run([sys.executable, str(script), str(time.time()), str(out), *arguments], env=variables,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode or not out.is_file():
        why = (done.stderr.strip().splitlines() or ["it ended before the first step"])[-1].removeprefix("error: ")
        raise UserError(f"the {run} start of {config} failed: {why}")
    return json.loads(out.read_text("utf-8"))


def rows_of(starts: dict[str, dict[str, list[float]]]) -> list[dict]:
    """A row for each piece, in order, and their sum."""
    from tools.benchmarks.start import IMPORT, PIECES, REST

    rows = []
    for piece in (IMPORT, *PIECES, REST):
        taken = {run: starts[run].get(piece, [0.0, 0.0]) for run in RUNS}
        rows.append({"piece": piece, **{run: {"clock": wall, "cpu": cpu} for run, (wall, cpu) in taken.items()}})
    sums = {run: {key: sum(row[run][key] for row in rows) for key in ("clock", "cpu")} for run in RUNS}
    return [*rows, {"piece": "all", **sums}]


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `rows_of` or of a record."""
    head = ("piece", *(f"{run}, {what}" for run in RUNS for what in ("s", "CPU s")))
    cells = [(row["piece"], *(f"{row[run][key]:.1f}" for run in RUNS for key in ("clock", "cpu"))) for row in rows]
    return table(head, cells)


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(ROOT))
    run_main(main)
