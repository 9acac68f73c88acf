"""Compares the speed of two revisions in pairs: python tools/bench_guard.py OLD NEW [--config C ...] [--rate R ...]

OLD and NEW are revisions of git, or folders that hold a checkout ("." measures what is not committed). Both run at the
same time and are measured in turns: training steps on one batch, the loader, labels. A ratio above 1 says that NEW does
more samples in the same time. It ends with exit code 1 where NEW is more than --limit slower, and goes on with further
pairs while that is undecided. On a machine that does other work trust the ratio by CPU seconds, which decides.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator

from lapa_jax.core.arguments import Parser, check_options
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write

ROOT = pathlib.Path(__file__).resolve().parents[1]
SERVER = ROOT / "tools" / "benchmarks" / "rates.py"
MEASURED = {"configs/laq.py:small": ("step", "loader", "labels"), "configs/laq_conv.py:small": ("step", "labels"),
            "configs/vla_latent.py:tiny": ("step", "loader")}  # fmt: skip
"""What is measured unless --config or --rate say otherwise."""
NEEDED = ("lapa_jax", "configs")
HEAD = ("config", "rate", "new / old by CPU time", "by the clock", "pairs", "old, samples per CPU s", "new", "")


def main(argv: list[str]) -> None:
    """Measures, prints the table and ends with 1 where something is slower."""
    args, overrides = parse(argv)
    from tools.benchmarks import records

    configs = args.config or list(MEASURED)
    with tempfile.TemporaryDirectory(prefix="bench_guard_") as folder:
        trees = [checkout(revision, pathlib.Path(folder) / name) for revision, name in
                 ((args.old, "old"), (args.new, "new"))]  # fmt: skip
        rows = []
        for config in configs:
            rates = args.rate or MEASURED.get(config, ("step", "loader"))
            rows += compare(trees, config, rates, args, overrides)
    say("\n".join(lines(rows)))
    if args.json:
        records.write(args.json, "tools/bench_guard.py", argv, rows)
    slower = [f"{row['config']} {row['rate']}" for row in rows if row["slower"]]
    if slower:
        say(f"slower by more than {args.limit:.0%}: {', '.join(slower)}", file=sys.stderr)
        sys.exit(1)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line and the overrides of configs in it; a wrong one is a `UserError`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("old", metavar="OLD", help="revision of git, or folder of a checkout")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--config", action="append", help=f"may be repeated; {', '.join(MEASURED)} by default")
    parser.add_argument("--rate", action="append", choices=("step", "loader", "labels"), help="may be repeated")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of rounds, at least")
    parser.add_argument("--most", type=int, default=24, help="pairs where the limit lies within the interval")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds of a round, about")
    parser.add_argument("--limit", type=float, default=0.05, help="share by which NEW may be slower")
    parser.add_argument("--by", default="cpu", choices=("cpu", "clock"), help="which ratio decides; clock if idle")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    args, overrides = parser.parse_known_args(argv)
    check_options(parser, overrides)
    if not 1 <= args.pairs <= args.most or args.seconds <= 0 or not 0 < args.limit < 1:
        raise UserError(f"--pairs {args.pairs} is 1 or more and at most --most {args.most}, --seconds {args.seconds:g} "
                        f"above 0, --limit {args.limit:g} between 0 and 1")  # fmt: skip
    return args, overrides


def checkout(revision: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder of a revision's package and configs: that of a checkout itself, or `folder`, where they are put.

    Files of the revision are enough, so that one ended by force leaves no working tree behind that git knows of.
    """
    if (pathlib.Path(revision) / "lapa_jax").is_dir():
        return pathlib.Path(revision).resolve()
    archive = folder.with_suffix(".tar")
    done = subprocess.run(["git", "archive", f"--output={archive}", revision, *NEEDED], capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "git failed"
        raise UserError(f"'{revision}' is no revision of a repository here, nor a folder with lapa_jax/: {why}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    return folder


@contextlib.contextmanager
def server(tree: pathlib.Path, name: str, config: str, rates, seconds: float, overrides: list[str]) -> Iterator[tuple]:
    """Starts `benchmarks/rates.py` on the package in `tree`. Yields (wait, ask): the first waits until it is warm, the
    second has it measure a rate and returns {"samples", "cpu", "wall"}."""
    # Its package comes first, and nothing is written beside it.
    variables = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(SERVER), config, ",".join(rates), str(seconds), *overrides]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                   text=True, env=variables)  # fmt: skip

        def answer():
            line = process.stdout.readline()
            if line:
                return json.loads(line)
            process.wait()
            log.seek(0)
            why = (log.read().strip().splitlines() or ["it ended without a word"])[-1].removeprefix("error: ")
            raise UserError(f"{name} cannot measure {', '.join(rates)} of {config}: {why}")

        def wait() -> None:
            package = answer()["package"]
            if pathlib.Path(package) != (tree / "lapa_jax").resolve():
                raise UserError(f"{name}: Python imports lapa_jax from {package}, not from {tree}")

        def ask(rate: str) -> dict[str, float]:
            process.stdin.write(f"{rate}\n")
            process.stdin.flush()
            return dict(zip(("samples", "cpu", "wall"), answer()))

        try:
            yield wait, ask
        finally:
            process.kill()
            process.communicate()


def compare(trees, config: str, rates, args: argparse.Namespace, overrides: list[str]) -> Iterator[dict]:
    """Measures both trees in turns; yields a row for each rate."""
    from tools.benchmarks.pairs import in_turns, ratio

    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(server(tree, name, config, rates, args.seconds, overrides))
                 for tree, name in zip(trees, (f"OLD ({args.old})", f"NEW ({args.new})"))]  # fmt: skip
        for wait, _ in sides:
            wait()
        speed = lambda taken, key: taken["samples"] / taken[key]  # noqa: E731
        key = {"cpu": "cpu", "clock": "wall"}[args.by]
        gains = lambda pairs, key: ratio([speed(new, key) / speed(old, key) for old, new in pairs])  # noqa: E731

        def decided(pairs) -> bool:
            gain = gains(pairs, key)
            return not gain.low < 1 - args.limit < gain.high

        for rate in rates:
            (_, old), (_, new) = sides
            pairs = in_turns(lambda: old(rate), lambda: new(rate), args.pairs, args.most, decided)  # noqa: B023
            by_cpu, by_clock = gains(pairs, "cpu"), gains(pairs, "wall")
            slower = gains(pairs, key).median < 1 - args.limit
            old_speed, new_speed = (sorted(speed(side, "cpu") for side in column)[len(pairs) // 2]
                                    for column in zip(*pairs))  # fmt: skip
            say(f"{config} {rate}: {by_cpu} by CPU time, {by_clock} by the clock", file=sys.stderr)
            yield {"config": config, "rate": rate, "cpu": by_cpu._asdict(), "clock": by_clock._asdict(),
                   "old": old_speed, "new": new_speed, "slower": slower}  # fmt: skip


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `compare` or of a record."""
    return table(HEAD, map(_cells, rows))


def _cells(row: dict) -> tuple[str, ...]:
    from tools.benchmarks.pairs import Ratio

    by_cpu, by_clock = Ratio(**row["cpu"]), Ratio(**row["clock"])
    return (f"`{row['config']}`", row["rate"], str(by_cpu), str(by_clock), str(by_cpu.pairs), f"{row['old']:.0f}",
            f"{row['new']:.0f}", "slower" if row["slower"] else "")  # fmt: skip


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(ROOT))
    run_main(main)
