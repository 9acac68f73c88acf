"""Tries to break lapa_jax: python tools/torture.py [--part NAME ...] [--scale F] [--seed N] [--out FILE.json].

Kills, full disks, damaged files, signals, two commands on one folder, hostile messages, thousands of saves, the data of
64 hosts. Prints a line for each kind: how often it was tried, how it ended, what was lost. Ends with 1 where something
was lost. With --out it goes on where it was interrupted; a part that fails by itself does not stop the others.
--scale 1 takes hours on two cores (--list says how long each part takes), --scale 0.05 some minutes.
"""

import argparse
import importlib
import os
import pathlib
import random
import sys
import tempfile
import time
import traceback

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.escape import say
from lapa_jax.core.files import read_json, write_json
from tools.torture.tally import Tally, line, markdown
from tools.torture.workshop import NotHere, Workshop

PREFIXES = ("JAX_", "XLA_FLAGS")
PARTS = ("kills", "disk", "damage", "signals", "two", "server", "leaks", "hosts")


def main(argv: list[str]) -> None:
    """Runs the parts, prints and keeps what came of them."""
    args = _parser().parse_args(argv)
    kinds = _chosen(args.part)
    if args.list:
        for name, kind in kinds.items():
            say(f"{name}: {kind.count} at scale 1, about {kind.seconds / 60:.0f} minutes")
        say(f"in all about {sum(kind.seconds for kind in kinds.values()) / 60:.0f} minutes")
        return
    if not 0 < args.scale <= 10:
        raise UserError(f"--scale {args.scale:g} must be above 0 and at most 10")
    about = {"scale": args.scale, "seed": args.seed}
    rows = _earlier(args.out, about)
    with tempfile.TemporaryDirectory(prefix="torture_") as temporary:
        workshop = Workshop(pathlib.Path(args.folder or temporary))
        # Before any part imports jax: what is done within this process is done as its commands do it.
        os.environ.update({name: value for name, value in workshop.environment.items() if name.startswith(PREFIXES)})
        for name, kind in kinds.items():
            if name in rows:
                workshop.log(f"{name} is done already")
                continue
            rows[name] = _run(name, kind, workshop, args)
            if args.out:
                write_json(args.out, {**about, "rows": rows})
    chosen = {name: rows[name] for name in kinds}
    say(markdown(chosen) if args.markdown else "\n".join(line(name, row) for name, row in chosen.items()))
    if any(row["lost"] for row in chosen.values()):
        sys.exit(1)


def _run(name: str, kind, workshop, args: argparse.Namespace) -> dict:
    """The row of one kind; where it fails by itself that is a loss, since nobody knows how it would have ended."""
    tally, start = Tally(), time.monotonic()
    count = max(1, round(args.scale * kind.count))
    workshop.log(f"{name}: {count} of {kind.count}")
    try:
        kind.run(workshop, count, random.Random(f"{args.seed} {name}"), tally)
    except NotHere as error:
        tally.figures.append(f"not tried: {error}")
    except Exception as error:
        workshop.log(traceback.format_exc())
        tally.ended("the torture failed", [f"{type(error).__name__}: {error}"])
    row = {"tried": tally.tried, "endings": dict(sorted(tally.endings.items())), "lost": tally.lost,
           "figures": tally.figures, "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
    workshop.log(line(name, row))
    for what in tally.lost:
        workshop.log(f"  lost: {what}")
    return row


def _chosen(parts: list[str]) -> dict:
    """{"part/kind": Kind} of the parts that were named, "kills" or "kills/train"; of all where none was."""
    kinds = {f"{part}/{name}": kind for part in PARTS
             for name, kind in importlib.import_module(f"tools.torture.{part}").KINDS.items()}  # fmt: skip
    for part in parts:
        if not any(name == part or name.startswith(f"{part}/") for name in kinds):
            raise UserError(f"--part {part} is unknown{did_you_mean(part, [*PARTS, *kinds])}")
    return {name: kind for name, kind in kinds.items()
            if not parts or name in parts or name.partition("/")[0] in parts}  # fmt: skip


def _earlier(out: pathlib.Path | None, about: dict) -> dict:
    """The rows of an earlier call with the same scale and seed."""
    if out is None or not out.exists():
        return {}
    content = read_json(out)
    if {name: content.get(name) for name in about} != about:
        raise UserError(f"{out} holds results of another --scale or --seed; name another file, or remove it")
    return content["rows"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--part", action="append", default=[], metavar="NAME",
                        help=f"one of {', '.join(PARTS)}, or a kind (kills/train); may be repeated; all by default")
    parser.add_argument("--scale", type=float, default=0.05, help="share of the attempts that --list names")
    parser.add_argument("--seed", type=int, default=0, help="of what is hurt when")
    parser.add_argument("--out", type=pathlib.Path, help="file of results, from which an interrupted call goes on")
    parser.add_argument("--folder", help="where to work, kept for the next call; a temporary folder by default")
    parser.add_argument("--markdown", action="store_true", help="print the results as a table in Markdown")
    parser.add_argument("--list", action="store_true", help="print the kinds and how long each takes at scale 1")
    return parser
