"""Exports a trained model as a folder of its own: weights and config, a StableHLO program, or 8-bit weights.

python launch/export.py --run RUN --out DIR [--format safetensors|stablehlo|int8] [--dtype bfloat16] [--step N]

Adapters are merged into their kernels. The folder appears whole, at the end, or not at all.
"""

import argparse
import pathlib

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_folder, check_new_folder, clear_leftovers, write_json
from lapa_jax.core.lock import beside, locked

FORMATS = ("safetensors", "stablehlo", "int8")
OF_FORMAT = {"platform": "stablehlo", "data": "int8", "labels": "int8", "split": "int8", "dataset": "int8",
             "samples": "int8", "modules": "int8", "max_error": "int8"}  # fmt: skip
"""Options that one format alone has."""
SAMPLES, MAX_ERROR = 512, 5.0


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    _check(args)
    with locked(beside(args.out), f"exporting to {args.out}"):
        _export(args)


def _export(args: argparse.Namespace) -> None:
    # After the checks: importing jax takes seconds, and a typing error should be told at once.
    startup.begin(f"exporting {args.run} to {args.out}")
    import jax

    from lapa_jax.export import int8_error, model_card, stablehlo, variants
    from lapa_jax.inference.load import kind_of_run, load

    platforms, kind = args.platform or ["cpu", "cuda"], kind_of_run(args.run)
    if args.format == "stablehlo":
        stablehlo.check_kind(kind, args.run, platforms)
    if args.format == "int8":
        int8_error.check_kind(kind, args.run)
    trained = load(args.run, args.step, devices=jax.local_devices()[:1])
    trained, report = variants.merged(trained), None
    if args.format == "int8":
        trained, report = _in_int8(trained, args)
    elif args.dtype:
        trained = variants.in_bfloat16(trained)
    clear_leftovers(args.out)
    with atomic_folder(args.out) as folder:
        if args.format == "stablehlo":
            startup.say(f"lowering the program for {' and '.join(platforms)}, then writing {args.out}")
            stablehlo.save_program(trained, folder, platforms)
        else:
            startup.say(f"writing {args.out}")
            trained.save_pretrained(folder)
        if report:
            write_json(folder / int8_error.REPORT_FILE, report)
        model_card.write(folder, trained, args.run, args.license)
    for file in sorted(pathlib.Path(args.out).iterdir()):
        say(f"{file}  {file.stat().st_size / 1e6:.2f} MB")


def _in_int8(trained, args):
    """The int8 variant and its report, printed; refuses one whose error is too large.

    What stays float is rounded afterwards, so that integers and error are those of the numbers of the run.
    """
    from lapa_jax.evaluate import options_of
    from lapa_jax.export import int8_error, variants

    modules, limit = args.modules or ".*", MAX_ERROR if args.max_error is None else args.max_error
    where = {"run": args.run, "out": args.out, "data": args.data, "split": args.split,
             "pairs": args.samples or SAMPLES}  # fmt: skip
    where |= options_of(trained.kind, {"dataset": args.dataset, "labels": args.labels}, args.run)
    small = variants.in_int8(trained, modules)
    if args.dtype:
        small = variants.in_bfloat16(small)
    startup.say("measuring the error of int8; the first batch compiles")
    report = {**int8_error.compare(trained, small, **where), "modules": modules, "max_error": limit}
    say(int8_error.describe(report))
    int8_error.check_error(report, limit)
    return small, report


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if args.format not in FORMATS:
        raise UserError(f"--format '{args.format}' is not known{did_you_mean(args.format, FORMATS)}")
    if args.dtype not in (None, "bfloat16"):
        raise UserError(f"--dtype '{args.dtype}' is not bfloat16; leave it out to keep numbers as they are stored")
    for option, expected in OF_FORMAT.items():
        if getattr(args, option) is not None and args.format != expected:
            raise UserError(f"--{option} goes with --format {expected}, and this is {args.format}; leave it out")
    if args.samples is not None and args.samples < 2:
        raise UserError(f"--samples {args.samples} must be at least 2")
    if args.max_error is not None and not args.max_error > 0:
        raise UserError(f"--max_error {args.max_error} must be more than 0, in percent")
    check_new_folder(args.out)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder")
    parser.add_argument("--out", required=True, help="folder to write, new or empty")
    parser.add_argument("--format", default="safetensors",
                        help="safetensors (weights and config, default), stablehlo or int8")  # fmt: skip
    parser.add_argument("--dtype",
                        help="bfloat16: kernels and tokens' embedding in half the room; else as stored")  # fmt: skip
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    parser.add_argument("--license", help="of the weights, for the model card: an SPDX identifier, apache-2.0")
    stablehlo = parser.add_argument_group("stablehlo")
    stablehlo.add_argument("--platform", action="append",
                           help="cpu, cuda, rocm or tpu; may be repeated; cpu and cuda by default")  # fmt: skip
    int8 = parser.add_argument_group("int8, whose error is measured on held-out samples")
    int8.add_argument("--data", help="folder of step shards; the run's own by default")
    int8.add_argument("--labels", help="of a policy of latent actions: those of --data, from launch/label.py")
    int8.add_argument("--split", help="the split to measure on; val by default")
    int8.add_argument("--dataset", help="of a run on several datasets: the one whose scaling applies to --data")
    int8.add_argument("--samples", type=int, help=f"how many samples at most; {SAMPLES} by default")
    int8.add_argument("--modules", help="regular expression of the layers that become int8; all by default")
    limit = (f"refuse an error of more percent; {MAX_ERROR:g} by default. Of actions it is the mean difference "
             "relative to the standard deviation of the worst dimension, of codes the share that changes")  # fmt: skip
    int8.add_argument("--max_error", type=float, help=limit)
    return parser


if __name__ == "__main__":
    run_main(main)
