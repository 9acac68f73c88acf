"""Learns inverse dynamics from few demonstrations, and writes videos again with the actions that it sees in them.

    python tools/pseudo_actions.py --demonstrations DIR --data VIDEOS --out DIR [--gap 4] [--steps 2000] [--size 32]

The result are step shards like any others, to train a policy on. Run again, what is finished is left as it is.
"""

import argparse
import pathlib

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say
from lapa_jax.data.shards.step_shards import read_dataset


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demonstrations", required=True, help="folder of step shards with actions, to learn from")
    add("--data", required=True, help="folder of step shards whose split train gets pseudo-actions")
    add("--out", type=pathlib.Path, required=True, help="a new or empty folder")
    add("--gap", type=int, default=4, help="frames between the two that the model sees")
    add("--steps", type=int, default=2000, help="of training")
    add("--size", type=int, default=32, help="edge of the images in pixels")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for folder in (args.demonstrations, args.data):
        read_dataset(folder)

    startup.begin(f"learning inverse dynamics from {args.demonstrations}")
    from lapa_jax.label.pseudo_actions import Options, write

    options = Options(gap=args.gap, size=args.size, steps=args.steps, seed=args.seed)
    summary = write(args.demonstrations, args.data, args.out, options)
    r2 = summary["action_r2"]
    against = "" if r2 is None else f", R² {r2:.3f} against the actions that the data have"
    say(f"{args.out}: pseudo-actions of {summary['steps']} steps{against}")


if __name__ == "__main__":
    run_main(main)
