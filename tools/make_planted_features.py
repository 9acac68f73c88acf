"""Makes step shards of feature vectors with known categories: python tools/make_planted_features.py OUT [--rows N].

What they are made of stands in lapa_jax/sample/planted.py. OUT becomes a folder of step shards with a file
planted.json beside them: the category of each feature, constants, duplicates, loners. The same arguments make the same
bytes.
"""

import argparse
import pathlib
import tempfile

import numpy as np

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import write_json
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.sample.planted import FILES, planted_features

TRUTH = "planted.json"


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=pathlib.Path, help="a new folder")
    parser.add_argument("--rows", type=int, default=20_000, help="feature vectors, held-out ones included")
    parser.add_argument("--categories", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the rows in the split val")
    args = parser.parse_args(argv)
    if args.rows < 2 * FILES or args.categories < 2:
        raise UserError(f"--rows must be {2 * FILES} or more and --categories 2 or more, got {args.rows} and "
                        f"{args.categories}")  # fmt: skip
    make(args.out, args.rows, args.seed, args.categories, args.val_fraction)


def make(out: pathlib.Path, rows: int, seed: int, categories: int, val_fraction: float) -> None:
    """Writes the shards by way of npz files, as anyone's features would come."""
    features, truth = planted_features(rows, seed, categories)
    # Through the converter and not around it, so that the shards are like any user's.
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "planted"
        source.mkdir()
        for i, part in enumerate(np.array_split(features, FILES)):
            np.savez(source / f"rows_{i:02d}.npz", feature=part)
        convert(source, out, Options(format="arrays", val_fraction=val_fraction))
    write_json(out / TRUTH, {"rows": rows, "seed": seed, **truth})
    say(f"{out}: {rows} rows of {features.shape[1]} features in {categories} categories")


if __name__ == "__main__":
    run_main(main)
