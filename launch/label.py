"""Labels a folder of step shards with a trained tokenizer: of frame pairs, of actions or of features.

python launch/label.py --run RUN --data SHARDS --out LABELS [--format sidecar|full|npz|hdf5] [--split train --split val]
    [--continuous]

The same command goes on after an interruption: it writes what is missing. Several hosts each take a share, and so do
jobs that know nothing of each other, with --share I/N; whichever finishes last writes the summary.
"""

import argparse

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_can_write
from lapa_jax.core.share import HELP, parse_share
from lapa_jax.data.shards.labels import FORMATS, TABLES, check_out
from lapa_jax.data.shards.step_shards import read_dataset


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    share = parse_share(args.share) or (0, 1)
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    if args.format not in (*FORMATS, *TABLES):
        raise UserError(f"--format {args.format} is unknown{did_you_mean(args.format, (*FORMATS, *TABLES))}")
    splits = read_dataset(args.data)["splits"]  # raw videos are refused at once
    for split in args.split or ():
        if split not in splits:
            raise UserError(f"{args.data} has no split '{split}'{did_you_mean(split, splits)}")
    check_out(args.data, args.out)
    check_can_write(args.out)

    # After the checks: importing jax takes seconds, and a typing error should be told at once.
    startup.begin(f"labelling {args.data} with {args.run}")
    import jax

    import lapa_jax
    from lapa_jax.inference.load import kind_of_run
    from lapa_jax.label.labeller import Labeller
    from lapa_jax.label.tables import TableLabeller
    from lapa_jax.train import distributed

    distributed.initialize(stop_together=False)
    kind = kind_of_run(args.run)
    if kind.codes is None:
        raise UserError(f"{args.run} holds a {kind.noun}, which gives no codes of the data; give a run of a tokenizer")
    tokenizer = lapa_jax.load(args.run, step=args.step)
    make = TableLabeller if args.format in TABLES else Labeller
    labeller = make(tokenizer, args.data, args.out, format=args.format, splits=args.split, dataset=args.dataset,
                    continuous=args.continuous)  # fmt: skip
    if "latent" not in labeller.source.features:
        startup.say(f"{args.run} has no codes (model.quantizer is 'none'): steps are labelled with their deltas")
    startup.say("the first batch compiles")
    # The processes of a share divide it among themselves.
    processes = jax.process_count()
    host = (share[0] * processes + jax.process_index(), share[1] * processes)
    summary = labeller.run(batch_size=args.batch_size, host=host)
    if summary is None:
        say(f"this share of {args.out} is done; others are at work on the rest, or have to be started")
        return
    for split, figures in summary["splits"].items():
        say(_describe(split, figures, summary["labels"]["codebook_size"]))
    say(f"labels: {args.out}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder of a tokenizer")
    parser.add_argument("--data", required=True, help="folder of step shards")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--format", default="sidecar",
                        help="sidecar (codes only, default) or full shards; npz or hdf5, a table a split")  # fmt: skip
    parser.add_argument("--split", action="append", help="a split to label; may be repeated; all of them by default")
    parser.add_argument("--batch_size", type=int, default=64, help="frame pairs per batch over all devices of a host")
    parser.add_argument("--continuous", action="store_true",
                        help="of frame pairs: write the deltas besides, float32 [positions, features], unrounded")
    parser.add_argument("--share", metavar="I/N", help=HELP)
    parser.add_argument("--dataset", help="of a run on several datasets: the one whose scaling applies to --data")
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    return parser


FEATURES = 8
"""Features of a delta whose spread is shown."""


def _describe(split: str, figures: dict, codebook_size) -> str:
    """A split's code usage, or the spread of its deltas, in a few lines."""
    if "positions" in figures:
        return _describe_positions(split, figures)
    lines = [f"{split}: {figures['steps']} steps, {figures['clipped']} of them (an episode's last) with a clipped pair"]
    for position, spread in enumerate(figures.get("delta_std", ())):
        shown = " ".join(f"{value:.3g}" for value in spread[:FEATURES]) + (" ..." if len(spread) > FEATURES else "")
        lines.append(f"  delta, position {position}: standard deviations {shown}")
    if "perplexity" not in figures:
        return "\n".join(lines)
    lines += [
        f"  perplexity {figures['perplexity']:.2f} of {codebook_size} per position, "
        f"{figures['sequence_perplexity']:.1f} over sequences ({figures['sequences_used']:.0f} occur)",
        f"  most frequent sequence {figures['most_frequent_sequence']}: {figures['most_frequent_share']:.0%} of steps",
    ]
    for position, counts in enumerate(figures["histogram"]):
        shares = " ".join(f"{count / figures['steps']:4.0%}" for count in counts)
        lines.append(f"  position {position}: {shares}")
    return "\n".join(lines)


def _describe_positions(split: str, figures: dict) -> str:
    remarks = ""
    if "padded" in figures:
        remarks = f", {figures['without_action']} of them without an action, {figures['padded']} padded"
    lines = [f"{split}: {figures['steps']} steps{remarks}"]
    for position in figures["positions"]:
        used = f"{position['used']} of {position['size']} codes occur"
        lines.append(f"  {position['name']}: {used}, perplexity {position['perplexity']:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
