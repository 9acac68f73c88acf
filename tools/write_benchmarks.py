"""Writes the figures of docs/results/benchmarks.md from the records of the benchmarks: python tools/write_benchmarks.py
[--check].

A benchmark with --json docs/results/benchmarks/NAME.json leaves a record. On the page its command, machine and table
stand between two comments, "figures: NAME" and "end of figures"; everything else is written by hand and stays. With
--check nothing is written, and the command ends with an error where the page is not the one that the records give.
"""

import argparse
import importlib
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE, RECORDS = ROOT / "docs/results/benchmarks.md", ROOT / "docs/results/benchmarks"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(?=<!-- end of figures -->\n)", re.DOTALL)
GROWTH = "growth"
"""The block of all parts of `tools/bench_growth.py`, each of which has a record, growth_PART.json."""


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

    used = []

    def block(match: re.Match) -> str:
        name, recorded = match[2], {}
        for stem in _records(name):
            path = RECORDS / f"{stem}.json"
            if not path.is_file():
                alike = did_you_mean(name, [other.stem for other in RECORDS.glob("*.json")])
                raise UserError(f"{PAGE.name}: 'figures: {name}' has no record {path}; run the benchmark with --json"
                                f"{alike}")  # fmt: skip
            recorded[stem] = records.read(path)
        used.extend(recorded)
        commands = ", ".join(f"`{record['command']}`" for record in recorded.values())
        machine = next(iter(recorded.values()))["machine"]
        return "\n".join([f"{match[1]}", f"{commands} on {machine}:", "", *_lines(name, recorded), "", ""])

    page = BLOCK.sub(block, page)
    if idle := sorted({path.stem for path in RECORDS.glob("*.json")} - set(used)):
        raise UserError(f"{PAGE.name} has no figures of {RECORDS / idle[0]}.json")
    return page


def _records(name: str) -> list[str]:
    """The records of a block, by their files' names: the one that is called so, or all parts of growth."""
    from tools.benchmarks.growth import GROUPS

    parts = [f"{GROWTH}_{part}" for part in GROUPS]
    return [part for part in parts if (RECORDS / f"{part}.json").is_file()] or parts[:1] if name == GROWTH else [name]


def _lines(name: str, recorded: Mapping[str, dict]) -> list[str]:
    """The table of a block, by the benchmark whose command the records name."""
    from tools import bench_growth

    if name == GROWTH:
        return bench_growth.lines({stem.removeprefix(f"{GROWTH}_"): record for stem, record in recorded.items()})
    script = pathlib.PurePath(shlex.split(recorded[name]["command"])[1]).stem
    return importlib.import_module(f"tools.{script}").lines(recorded[name]["rows"])


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(ROOT))
    run_main(main)
