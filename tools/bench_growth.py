"""Measures how costs grow with one size at a time: python tools/bench_growth.py [--part NAME ...] [--out FOLDER].

A training step against the batch, the side of the images, the depth, the codes and the length of a sequence; opening
and reading data against its size; what a device sends against the devices, from plans. Beside each figure stands the
law that it should follow. Each part is a process of its own and writes growth_NAME.json and growth_NAME.png as soon as
it is done; one that fails is named, and the others go on. --list names the parts.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import check_can_write

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = ("part", "against", "from, to", "figure", "grows by", "law", "which grows by")


def main(argv: list[str]) -> None:
    """Runs the parts one after the other, and prints the table."""
    from tools.benchmarks import records
    from tools.benchmarks.growth import GROUPS

    args = _parse(argv, GROUPS)
    if args.list:
        for name in args.part:
            say(f"{name}: {GROUPS[name].about}, {', '.join(map(str, GROUPS[name].sizes))}")
        return
    if args.here:
        return _measure(args.here, args)
    args.out.mkdir(parents=True, exist_ok=True)
    measured, failed = {}, []
    for name in args.part:
        command = [sys.executable, str(ROOT / "tools" / "bench_growth.py"), "--here", name, "--out", str(args.out)]
        command += ["--sizes", str(args.sizes)] if args.sizes else []
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            failed.append(name)
            words = done.stderr.strip().splitlines() or ["it said nothing"]
            say(f"{name} failed with exit code {done.returncode}: {words[-1]}", file=sys.stderr)
        else:
            measured[name] = records.read(args.out / f"growth_{name}.json")
    say("\n".join(lines(measured)))
    if failed:
        raise UserError(f"not measured: {', '.join(failed)}")


def _parse(argv: list[str], groups) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--part", action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("growth"), help="folder of what is written")
    parser.add_argument("--sizes", type=int, help="only so many of each part, the smallest ones")
    parser.add_argument("--list", action="store_true", help="name the parts and their sizes")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in args.part or ():
        if name not in groups:
            raise UserError(f"--part {name} is no part{did_you_mean(name, groups)}")
    if args.sizes is not None and args.sizes < 2:
        raise UserError(f"--sizes {args.sizes}: growth is seen from two sizes on")
    check_can_write(args.out)
    args.part = args.part or list(groups)
    return args


def _measure(name: str, args: argparse.Namespace) -> None:
    """Measures a part in this process, and writes its record and its plot."""
    from tools.benchmarks import records
    from tools.benchmarks.growth import GROUPS

    group = GROUPS[name]
    growth = group.measure(group.sizes[: args.sizes])
    rows = [{"size": size, **{figure: {"measured": series.measured[k], "expected": series.expected[k]}
                              for figure, series in growth.series.items()}}
            for k, size in enumerate(growth.sizes)]  # fmt: skip
    laws = {figure: series.law for figure, series in growth.series.items()}
    sizes = ["--sizes", str(args.sizes)] if args.sizes else []
    records.write(args.out / f"growth_{name}.json", "tools/bench_growth.py", ["--part", name, *sizes], rows,
                  about=group.about, against=growth.axis, laws=laws)  # fmt: skip
    draw(args.out / f"growth_{name}.png", records.read(args.out / f"growth_{name}.json"))


def draw(path: pathlib.Path, record: dict) -> None:
    """A panel for each figure: what was measured, and the law as a dashed line. Sizes grow by factors."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullLocator

    from lapa_jax.plots import frames

    rows, sizes = record["rows"], [row["size"] for row in record["rows"]]
    with matplotlib.rc_context(frames.STYLE):
        lines = -(-len(record["laws"]) // 2)
        figure = Figure(figsize=(6.4, 2.4 * lines), layout="constrained")
        panels = figure.subplots(lines, 2).ravel()
        for axes, (name, law) in zip(panels, record["laws"].items(), strict=True):
            expected, measured = ([row[name][key] for row in rows] for key in ("expected", "measured"))
            axes.plot(sizes, expected, "--", color=frames.MUTED, label=law)
            axes.plot(sizes, measured, "o-", color=frames.BAR, label="measured")
            axes.set_xscale("log")
            axes.set_xticks(sizes, [EngFormatter(sep="")(size) for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            # A power of the size is a straight line where both axes are logarithmic.
            if min(expected) > 0 and max(expected) > 3 * min(expected):
                axes.set_yscale("log")
                ends = (measured[0], measured[-1])
                axes.set_yticks(ends, [f"{value:.3g}" for value in ends])
                axes.yaxis.set_minor_locator(NullLocator())
            else:
                axes.set_ylim(0, 1.3 * max(measured))
            axes.set_xlabel(record["against"])
            axes.set_title(name, loc="left")
            axes.legend(frameon=False, fontsize=8)
        frames.save(figure, path)


def lines(measured: Mapping[str, dict]) -> list[str]:
    """The table in Markdown, of records by the names of their parts."""
    return table(HEAD, [row for name, record in measured.items() for row in cells(name, record)])


def cells(name: str, record: dict) -> Iterator[Sequence[str]]:
    """Rows of the table: a figure's growth from the smallest size at which there is any to the largest, and what the
    law says of that."""
    for figure, law in record["laws"].items():
        rows = [row for row in record["rows"] if row[figure]["measured"] and row[figure]["expected"]]
        first, last = rows[0], rows[-1]
        grown = [f"{ratio:,.0f}" if (ratio := last[figure][key] / first[figure][key]) >= 100 else f"{ratio:.3g}"
                 for key in ("measured", "expected")]  # fmt: skip
        span = f"{first['size']:,} to {last['size']:,}"
        values = f"{first[figure]['measured']:.3g} to {last[figure]['measured']:.3g}"
        yield f"`{name}`", record["against"], span, f"{figure}: {values}", grown[0], law, grown[1]


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(ROOT))
    run_main(main)
