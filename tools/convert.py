"""Converts data to step shards: python tools/convert.py SOURCE OUT [--format auto] [options].

SOURCE is what you have: an RLDS/TFDS folder, a LeRobot dataset, robomimic HDF5, WebDataset tars, LAPA's json, a folder
of videos or pictures, or arrays; docs/reference/data_formats.md tells what each looks like. OUT becomes a folder of
step shards. It can be killed at any moment; the same command finishes the work, with the same result to the byte. Jobs
that know nothing of each other divide it with --share I/N; whichever finishes last packs the shards.
"""

import argparse
import os
import pathlib
from collections.abc import Mapping

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import one_line, say
from lapa_jax.core.files import check_can_write
from lapa_jax.core.share import HELP, parse_share
from lapa_jax.data import formats
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.pool import PATIENCE
from lapa_jax.data.convert.run import REPORT, convert
from lapa_jax.data.convert.shares import convert_share

FEW = 3
"""Fewer held-out episodes are named."""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line as a namespace; a wrong one is a `UserError`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", type=pathlib.Path)
    parser.add_argument("output", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--format", default="auto", help=f"auto or one of {', '.join(formats.NAMES)}")
    parser.add_argument(
        "--fps",
        default="native",
        help="of videos: target frames per second, or native; for folders of pictures, the rate they were taken at",
    )
    parser.add_argument("--size", default="256", help="side of the square pictures in pixels, or native")
    parser.add_argument(
        "--resize", default="squash", help="squash (change the aspect ratio) or center_crop (cut a square)"
    )
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100")
    parser.add_argument("--cameras", default="all", help="names separated by commas, the main one first; or all, none")
    parser.add_argument("--action", default="all", help="vectors that make up the action, separated by commas; or none")
    parser.add_argument("--state", default="all", help="state vectors to join, separated by commas; or all, none")
    parser.add_argument(
        "--convention", help="of RLDS data: a known dataset's name or a json file; an unknown dataset prints a template"
    )
    parser.add_argument(
        "--captions",
        help="of videos: json, jsonl, csv or Something-Something-V2 list of instructions; a column `arrays` names npz "
        "files with `action` (T, A) and `state` (T, S) for videos of T + 1 frames, relative to this file; by default "
        "episodes.jsonl in SOURCE where there is one; none for none",
    )
    parser.add_argument(
        "--filter",
        help="of videos as they are found: all, or some of the rules cuts (split at scene cuts), still (leave out what "
        "stands still for seconds), blank (black frames), short (seconds), small (pixels), duplicates (distance of "
        "hashes), each with a value if wished: all,still=3. report.json counts what it does, and "
        "tools/inspect_data.py shows it",
    )
    parser.add_argument("--white", type=int, help="value of white in images of 16 bits: 4095 of a camera of 12 bits")
    parser.add_argument(
        "--split", default="auto", help="auto (the source's own, else by a hash of the episode), all train or all val"
    )
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the episodes held out by auto")
    parser.add_argument("--samples_per_shard", type=int, help="steps a shard; an episode is never cut")
    parser.add_argument("--shard_bytes", type=int, help="bytes a shard, 512 MiB by default")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes; 0 works in this one")
    parser.add_argument("--share", metavar="I/N", help=HELP)
    parser.add_argument("--max_errors", type=int, default=0, help="unreadable episodes that are tolerated")
    parser.add_argument("--max_missing", type=int, help="listed but absent episodes that are tolerated; default: any")
    parser.add_argument("--episode_timeout", type=float, default=PATIENCE, help="seconds that one episode may take")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Runs the conversion and prints what came of it."""
    args = parse(argv)
    names = set(Options.__dataclass_fields__) - {"fps", "size"}
    numbers = {"fps": _number(args.fps, "--fps", float), "size": _number(args.size, "--size", int)}
    options = Options(**numbers, **{name: getattr(args, name) for name in names})
    limits = {name: getattr(args, name) for name in ("max_errors", "max_missing", "episode_timeout")}
    for name, value in {"workers": args.workers, **limits}.items():
        if value is not None and not value >= 0:
            raise UserError(f"--{name} is 0 or more, got {value}")
    check_can_write(args.output)
    if share := parse_share(args.share):
        report = convert_share(args.source, args.output, options, share, args.workers, **limits)
    else:
        report = convert(args.source, args.output, options, args.workers, **limits)
    if report is None:
        say(f"this share of {args.output} is done; others are at work on the rest, or have to be started")
        return
    done = "is already finished" if report["finished"] else "is finished"
    say(f"{args.output} {done}: {summary(report)}")
    for line in split_lines(report.get("splits", {}), args.split, report.get("held_out_by")):
        say(f"  {line}")
    for error in report["errors"][:10]:
        say(f"  unreadable: {one_line(error['path'])}: {one_line(error['error'])}")
    for what in ("missing", "left_out", "fields_left_out", "steps_dropped", "blank_pictures", "remarks", "filter"):
        if report[what]:
            say(f"  {what.replace('_', ' ')}: {_counts(report[what])}")
    if missing := report["notes"].get("frame_numbers_missing"):
        say(f"  frame numbers missing between those that are there: {missing}")
    for column, dimensions in report.get("far_values", {}).items():
        say(f"  warning: values far out in '{column}', as data.normalize=q01_q99 scales it:")
        for text in dimensions[:10]:
            say(f"    {text}")
    if report.get("far_values"):
        say("    tools/inspect_data.py tells the choices")
    if report["notes"].get("captions"):
        say(f"  instructions from {report['notes']['captions']}: {_counts(report['notes'])}")
    say(f"  the whole report is {args.output / REPORT}")


def summary(report: Mapping) -> str:
    """One line: the format, how much of it, and how many errors."""
    counts = f"{report['episodes']} episodes, {report['steps']} steps, {len(report['errors'])} errors"
    return f"{counts} ({report['format']})"


def split_lines(splits: Mapping, asked: str, held_out_by: str | None = None) -> list[str]:
    """What is in the splits, and what it means that one is empty or that few episodes are held out.

    Args:
      splits: {name: {"episodes", "steps"}}, of those that have any. asked: --split.
      held_out_by: what decided the splits, in words.
    """
    train, val = (splits.get(name, {"episodes": 0})["episodes"] for name in ("train", "val"))
    if not splits:  # a report from before they were in it
        return []
    counts = ", ".join(f"{name}: {of['episodes']} episodes, {of['steps']} steps" for name, of in splits.items())
    lines = [f"{counts} (by {held_out_by})" if held_out_by else counts]
    others = "convert others with --split val and set data.val_path"
    if not val:
        again = "" if train < 2 else ", or all again with --split auto and a --val_fraction above 0"
        lines.append(f"warning: nothing is held out, and training needs something to be judged by: {others}{again}")
    elif not train and asked != "val":
        lines.append("warning: there is nothing to train on, all of it is held out: convert it with --split train")
    elif val < FEW and train:
        lines.append(f"warning: {val} of {train + val} episodes are held out, and figures on so few say little: "
                     f"raise --val_fraction, or {others}")  # fmt: skip
    return lines


def _counts(value) -> str:
    """A list of places by number and first entry, names in full, a table of counts by its entries."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items() if name != "captions")
    if isinstance(value[0], Mapping):
        return f"{len(value)} episodes, the first: {one_line(value[0]['path'])}: {one_line(value[0]['error'])}"
    return ", ".join(value)


def _cores() -> int:
    """The cores this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str, option: str, kind: type) -> float | int | None:
    if text == "native":
        return None
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{option} is a number or 'native', got '{text}'") from None


if __name__ == "__main__":
    run_main(main)
