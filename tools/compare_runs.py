"""Runs beside each other: python tools/compare_runs.py RUN RUN [RUN ...] [--out DIR].

Writes DIR/index.html, which needs nothing else, the same as comparison.md, and curves.png: the runs' curves over each
other, the metrics of the last evaluation in training and of launch/eval.py with their differences to the first run, and
the keys of the configs that differ. The tables also go to the terminal.
"""

import argparse
import pathlib

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("runs", metavar="RUN", nargs="+", type=pathlib.Path, help="run folders, the reference first")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("comparison"),
                        help="folder to write; comparison by default")  # fmt: skip
    args = parser.parse_args(argv)

    # After the arguments: matplotlib takes a second.
    startup.say(f"comparing {', '.join(map(str, args.runs))}")
    from lapa_jax.plots import runs

    compared = runs.read(args.runs)
    written = runs.write(args.out, compared)
    say(runs.as_markdown(compared))
    say("\n".join(map(str, written)))


if __name__ == "__main__":
    run_main(main)
