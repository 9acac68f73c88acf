"""Writes the figures of docs/results/benchmarks.md from the records of the benchmarks: python tools/write_benchmarks.py
[--check].

A benchmark with --json leaves a record in docs/results/benchmarks. On the page its command, machine and table stand
between two comments, "figures: NAME" and "end of figures"; everything else is written by hand and stays. With --check
nothing is written, and the command ends with an error where the page is not the one that the records give.
"""

import argparse
import itertools
import pathlib
import re
import sys

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say, table

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE, RECORDS = ROOT / "docs/results/benchmarks.md", ROOT / "docs/results/benchmarks"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(?=<!-- end of figures -->\n)", re.DOTALL)


def main(argv: list[str]) -> None:
    """Writes the page, or with --check compares it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    args = parser.parse_args(argv)
    if not PAGE.is_file():
        raise UserError(f"{PAGE} does not exist; run this in a clone of the repository, which has the pages")
    old = PAGE.read_text("utf-8")
    new = written(old)
    if not args.check:
        PAGE.write_text(new, "utf-8")
        say(PAGE)
    elif old != new:
        raise UserError(f"{PAGE} is not what the records give; run tools/write_benchmarks.py")


def written(page: str) -> str:
    """The page with the figures of the records.

    Raises:
      UserError: the page asks for figures of which there is no record, or a record stands nowhere on it.
    """
    from tools.benchmarks import records

    tables, used = _tables(), []

    def block(match: re.Match) -> str:
        name = match[2]
        if name not in tables:
            raise UserError(f"{PAGE.name}: 'figures: {name}' is no benchmark{did_you_mean(name, tables)}")
        files, lines = tables[name]
        if missing := [file for file in files if not (RECORDS / file).is_file()]:
            raise UserError(f"{PAGE.name}: there is no record {RECORDS / missing[0]}; run the benchmark with --json")
        used.extend(files)
        recorded = [records.read(RECORDS / file) for file in files]
        commands = ", ".join(f"`{record['command']}`" for record in recorded)
        return "\n".join([f"{match[1]}", f"{commands} on {recorded[0]['machine']}:", "", *lines(*recorded), "", ""])

    page = BLOCK.sub(block, page)
    if idle := sorted({path.name for path in RECORDS.glob("*.json")} - set(used)):
        raise UserError(f"{PAGE.name} has no figures of {RECORDS / idle[0]}")
    return page


def _tables() -> dict:
    """{name: (files of its records, function of these records that gives the lines of the table)}."""
    from tools import bench_checkpoints, bench_growth, bench_label, bench_loader, bench_open, bench_start
    from tools.benchmarks.growth import GROUPS

    labels = lambda record: table(bench_label.HEAD, map(bench_label.cells, record["rows"]))  # noqa: E731
    measured = [name for name in GROUPS if (RECORDS / f"growth_{name}.json").is_file()]
    saved = lambda record: table(bench_checkpoints.HEAD, map(bench_checkpoints.cells, record["rows"]))  # noqa: E731
    parts = lambda *records: table(bench_growth.HEAD, itertools.chain(  # noqa: E731
        *(bench_growth.cells(name, record) for name, record in zip(measured, records, strict=True))))  # fmt: skip
    return {
        "loader": (["loader.json"], lambda record: bench_loader.lines(record["rows"])),
        "start": (["start.json"], lambda record: bench_start.lines(record["rows"])),
        "labels": (["labels.json"], labels),
        "checkpoints": (["checkpoints.json"], saved),
        "open": (["open.json"], lambda record: bench_open.lines(record["rows"])),
        "growth": ([f"growth_{name}.json" for name in measured], parts),
    }


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(ROOT))
    run_main(main)
