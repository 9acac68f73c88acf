"""Compares labelling with training: python tools/bench_label.py [--config configs/laq.py:small ...]

Labels a second, from stored images to shards of codes, against the training step's samples a second on one batch: in
turns, in one process, on the same cores. The weights are those that a run begins with, which cost the same as trained
ones. Encoding is less than a third of a training step, so labelling should reach three times its rate.
"""

import argparse
import pathlib
import sys
import tempfile

from lapa_jax.core.arguments import Parser, check_options
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write

CONFIGS = ("configs/laq.py:small", "configs/laq_conv.py:small")
HEAD = ("config", "labels / step by CPU time", "by the clock", "pairs")


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", action="append", help=f"may be repeated; {', '.join(CONFIGS)} by default")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of rounds")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds of a round, about")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    args, overrides = parser.parse_known_args(argv)
    check_options(parser, overrides)
    if args.pairs < 1 or args.seconds <= 0:
        raise UserError(f"--pairs {args.pairs} is 1 or more, --seconds {args.seconds:g} above 0")
    rows = [compare(config, args, overrides) for config in args.config or CONFIGS]
    say("\n".join(lines(rows)))
    if args.json:
        from tools.benchmarks import records

        records.write(args.json, "tools/bench_label.py", argv, rows)


def compare(spec: str, args: argparse.Namespace, overrides: list[str]) -> dict:
    """The row of a config."""
    from tools.benchmarks import pairs, rates

    config = rates.load(spec, overrides)
    with tempfile.TemporaryDirectory(prefix="bench_label_") as folder:
        measured = rates.Rates(config, ["step", "labels"], pathlib.Path(folder), args.seconds)
        turns = pairs.in_turns(lambda: measured.round("step"), lambda: measured.round("labels"), args.pairs, args.pairs)
    ratios = {key: pairs.ratio([(labels.samples / getattr(labels, key)) / (step.samples / getattr(step, key))
                                for step, labels in turns]) for key in ("cpu", "wall")}  # fmt: skip
    return {"config": spec, "cpu": ratios["cpu"]._asdict(), "clock": ratios["wall"]._asdict()}


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `compare` or of a record."""
    return table(HEAD, map(_cells, rows))


def _cells(row: dict) -> tuple[str, ...]:
    from tools.benchmarks.pairs import Ratio

    by_cpu, by_clock = Ratio(**row["cpu"]), Ratio(**row["clock"])
    return (f"`{row['config']}`", str(by_cpu), str(by_clock), str(by_cpu.pairs))


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    run_main(main)
