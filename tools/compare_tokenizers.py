"""Compares action tokenizers on held-out chunks at equal bits: bins, FAST (DCT + BPE), B-splines and trained ones.

python tools/compare_tokenizers.py --data NAME=SHARDS ... [--runs NAME=RUN ...] --out DIR
    [--chunk_length 16 NAME=STEPS ... | --chunk_seconds 1 NAME=SECONDS ...] [--gripper NAME=DIMENSION ...]

SHARDS are folders of step shards with actions and the splits train (all is fitted on it) and val (all is measured on
it), or the word sample. A trained run is compared on the data sets it was trained on. DIR gets comparison.md (tables),
comparison.json (all figures) and one plot a data set.
"""

import argparse
import os
import pathlib
from collections.abc import Sequence

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.data.shards.step_shards import read_dataset

LENGTH = 16


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    folders = dict(pairs := [_pair(text, "--data", "NAME=SHARDS") for text in args.data])
    steps = _values(args.chunk_length, "--chunk_length", folders, int)
    seconds = _values(args.chunk_seconds, "--chunk_seconds", folders, float)
    grippers = _grippers(args.gripper, folders)
    runs = [_pair(text, "--runs", "NAME=RUN") for text in args.runs]
    for folder in folders.values():
        read_dataset(folder)

    # After the checks: importing matplotlib takes a second.
    startup.say(f"comparing action tokenizers on {', '.join(folders)}")
    _one_thread()
    from lapa_jax.evaluate.codecs import comparison
    from lapa_jax.evaluate.codecs.chunks import read_chunks

    comparison.check_names([name for name, _ in pairs])
    sets = [
        read_chunks(name, folder, length=steps.get(name, None if name in seconds else LENGTH),
                    seconds=seconds.get(name), grippers=grippers.get(name, ()))
        for name, folder in folders.items()
    ]  # fmt: skip
    for path in comparison.compare(sets, _learned(runs, sets), args.out):
        say(path)


def _one_thread() -> None:
    """Times are of one thread; these are read when the libraries are first used."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _learned(runs: Sequence[tuple[str, str]], sets: Sequence) -> dict[str, list]:
    if not runs:
        return {}
    from lapa_jax.evaluate.codecs.learned import codecs_of

    return codecs_of(runs, sets)


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UserError(f"{option} {text} is not of the form {form}")
    return name, value


def _values(texts: Sequence[str], option: str, names: Sequence[str], kind: type) -> dict[str, int | float]:
    """{data set: number} of texts "16" (for all) and "NAME=16" (for one)."""
    values = {}
    # What is for all comes first, so that a data set's own value replaces it.
    for text in sorted(texts, key=lambda text: "=" in text):
        name, sign, number = text.rpartition("=")
        try:
            value = kind(number)
        except ValueError:
            raise UserError(f"{option} {text}: '{number}' is no number of {option.rpartition('_')[2]}") from None
        if not 0 < value < float("inf"):
            raise UserError(f"{option} {text}: chunks must be longer than 0")
        values |= {_checked(name, option, names): value} if sign else dict.fromkeys(names, value)
    return values


def _grippers(texts: Sequence[str], names: Sequence[str]) -> dict[str, list[int]]:
    grippers: dict[str, list[int]] = {}
    for text in texts:
        name, number = _pair(text, "--gripper", "NAME=DIMENSION")
        if not number.removeprefix("-").isdigit():
            raise UserError(f"--gripper {text}: '{number}' is no dimension; the first is 0, the last -1")
        grippers.setdefault(_checked(name, "--gripper", names), []).append(int(number))
    return grippers


def _checked(name: str, option: str, names: Sequence[str]) -> str:
    if name not in names:
        raise UserError(f"{option} names data set '{name}', which --data does not{did_you_mean(name, names)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=SHARDS")
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME=RUN", help="trained action tokenizers")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--chunk_length", nargs="+", default=[], metavar="STEPS",
                        help=f"steps of a chunk, for all or NAME=STEPS; {LENGTH} by default")  # fmt: skip
    length.add_argument("--chunk_seconds", nargs="+", default=[], metavar="SECONDS",
                        help="the same in seconds, where the data have a clock")  # fmt: skip
    parser.add_argument("--gripper", nargs="+", default=[], metavar="NAME=DIMENSION",
                        help="dimensions that are grippers, besides those of two values or of that name")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
    return parser


if __name__ == "__main__":
    run_main(main)
