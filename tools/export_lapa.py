"""Writes step shards as LAPA's own files: python tools/export_lapa.py SHARDS OUT --kind frames|latent|finetune.

frames: the folders of images of stage 1. latent: the jsonl of stage 2, with codes from the shards or from --labels.
finetune: the json of finetuning, with actions and states. tools/convert.py --format lapa reads the last two back.
"""

import argparse
import pathlib

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say
from lapa_jax.data.formats.lapa.export import KINDS, export


def main(argv: list[str]) -> None:
    """Exports and prints what came of it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("shards", metavar="SHARDS", type=pathlib.Path, help="a folder of step shards")
    parser.add_argument("output", metavar="OUT", type=pathlib.Path, help="the folder to write, new or empty")
    parser.add_argument("--kind", required=True, help="; ".join(f"{name}: {what}" for name, what in KINDS.items()))
    parser.add_argument("--split", action="append", help="a split to export; may be repeated; all of them by default")
    parser.add_argument("--labels", type=pathlib.Path, help="what launch/label.py wrote for SHARDS, for --kind latent")
    args = parser.parse_args(argv)
    report = export(args.shards, args.output, args.kind, args.split, args.labels)
    for split, counts in report["splits"].items():
        say(f"{args.output} {split}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    for what, count in sorted(report["left_out"].items()):
        say(f"  left out: {what}: {count}")
    if args.kind == "latent":
        say("  without `vision`: its ids need LAPA's VQGAN, which LAPA's loader expects to have been run")


if __name__ == "__main__":
    run_main(main)
