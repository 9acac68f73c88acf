"""Converts data to step shards: python tools/convert.py IN OUT --format video [options].

IN is a folder, nested or flat: every mp4, webm, avi, mkv, gif, mov, m4v or mpg file is an episode, and so is every
folder of pictures (frames in the order of the numbers in their names). OUT becomes a folder of step shards. The command
can be killed at any moment; the same command finishes the work, with the same result to the byte.
"""

import argparse
import os
import pathlib

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.data.conversion.plan import Options
from lapa_jax.data.conversion.run import REPORT, convert


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line as a namespace; a wrong one is a `UserError`."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("input", metavar="IN", type=pathlib.Path)
    parser.add_argument("output", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--format", default="video", help="video")
    parser.add_argument(
        "--fps",
        default="native",
        help="target frames per second, or native; for folders of pictures, the rate they were taken at",
    )
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument(
        "--resize", default="squash", help="squash (change the aspect ratio) or center_crop (cut a square)"
    )
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100")
    parser.add_argument(
        "--captions",
        help="json, jsonl, csv or Something-Something-V2 list of instructions; a column `arrays` names npz files with "
        "`action` (T, A) and `state` (T, S) for videos of T + 1 frames, relative to this file",
    )
    parser.add_argument("--split", default="auto", help="auto (by a hash of the episode), train or val (all of it)")
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the episodes held out by auto")
    parser.add_argument("--samples_per_shard", type=int, help="steps a shard; an episode is never cut")
    parser.add_argument("--shard_bytes", type=int, help="bytes a shard, 512 MiB by default")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes; 0 works in this one")
    parser.add_argument("--max_errors", type=int, default=0, help="unreadable episodes that are tolerated")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Runs the conversion and prints what came of it."""
    args = parse(argv)
    names = set(Options.__dataclass_fields__) - {"fps"}
    options = Options(fps=_fps(args.fps), **{name: getattr(args, name) for name in names})
    if args.workers < 0 or args.max_errors < 0:
        raise UserError(f"--workers and --max_errors are 0 or more, got {args.workers} and {args.max_errors}")
    report = convert(args.input, args.output, options, args.workers, args.max_errors)
    done = "is already finished" if report["finished"] else "is finished"
    errors = f"{len(report['errors'])} errors"
    print(f"{args.output} {done}: {report['episodes']} episodes, {report['steps']} steps, {errors}")
    for error in report["errors"][:10]:
        print(f"  unreadable: {error['path']}: {error['error']}")
    if report["errors"] or report["arrays_left_out"] or report["captions"].get("captions_without_video"):
        print(f"  what was left out is listed in {args.output / REPORT}")


def _cores() -> int:
    """The cores this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fps(text: str) -> float | None:
    if text == "native":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--fps is a number or 'native', got '{text}'") from None


if __name__ == "__main__":
    run_main(main)
