"""Measures this project on the GPU at hand: python tools/gpu_report.py [--part NAME ...] [--out FILE.json].

Rates of products, training steps of LAQ (344 M) and of 1B and 7B policies with LoRA, actions of 7B policies in bfloat16
and int8, labels, an exported program; random weights, no data. Writes JSON and prints a table in Markdown. Each part is
a process of its own with its own time limit: one that fails, hangs or runs out of memory is named in the table, its
memory is given back, and the others go on. What --minutes leaves no time for is said. --list names the parts, --tiny
tries all of them at the smallest sizes, on a CPU too.
"""

import argparse
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.escape import markdown, say, table
from lapa_jax.core.files import file_to_write, read_json, write_json

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD = ("part", "what", "figures", "peak memory, GiB", "planned, GiB")
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Flags of XLA for CPUs, which all versions have: it ends at a flag that it does not know."""
NO_GPU = "JAX finds no GPU here, without which these sizes take hours; --tiny tries all parts at the smallest ones"
WORDS = 300
"""Characters of what a part said last that are kept where it failed."""


def main(argv: list[str]) -> None:
    """Runs the parts one after the other, keeps what came of each, and prints the table."""
    # Names and limits are known without jax: this process must not take the GPU's memory.
    from tools.gpu.parts import PARTS

    args = _parser().parse_args(argv)
    if args.run_one:
        _run_one(args.run_one, args.out, args.tiny)
        return
    chosen = _chosen(args.part, PARTS)
    if args.list:
        for name in chosen:
            say(f"{name}: {PARTS[name].about}, at most {PARTS[name].seconds} s")
        return
    if args.minutes <= 0:
        raise UserError(f"--minutes {args.minutes:g} must be above 0")
    results, end = {"machine": machine()}, time.monotonic() + 60 * args.minutes
    parts = results["parts"] = {}
    for name in chosen:
        left = end - time.monotonic()
        if left < 1:
            parts[name] = {"status": "not run", "why": f"no time was left of --minutes {args.minutes:g}"}
        else:
            parts[name] = measure(name, min(left, PARTS[name].seconds), args.tiny)
        status = parts[name]
        if NO_GPU in status.get("why", ""):
            raise UserError(NO_GPU)
        say(f"{name}: {status['status']} {status.get('why', '')} ({status.get('seconds', 0):.0f} s)", file=sys.stderr)
        # Kept after each part: an interrupted report has what was measured before.
        write_json(args.out, results)
    say("\n".join(report(results)))
    if not any(part["status"] == "measured" for part in parts.values()):
        sys.exit(1)


def measure(name: str, limit: float, tiny: bool) -> dict:
    """One part in a process of its own.

    Args:
      name: of `parts.PARTS`. limit: seconds.

    Returns:
      {"status": "measured", "failed" or "timed out", "seconds", "rows": what was measured, also before a failure,
      "device": what the process ran on, "why": what it said last}.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_report_") as folder:
        out = pathlib.Path(folder) / "rows.json"
        command = [sys.executable, "-B", str(ROOT / "tools" / "gpu_report.py"), "--run_one", name, "--out", str(out)]
        # As launch/slurm/env.sh: what a run may fill of the memory.
        env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", **os.environ}
        if tiny:  # at these sizes compiling is what takes time
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {QUICK}"
        with open(pathlib.Path(folder) / "log.txt", "w+", errors="replace") as log:
            try:
                done = subprocess.run([*command, *["--tiny"] * tiny], stdout=log, stderr=log, env=env, timeout=limit)
                status = "failed" if done.returncode else "measured"
                why = f"exit code {done.returncode}: " if done.returncode else ""
            except subprocess.TimeoutExpired:
                status, why = "timed out", f"after {limit:.0f} s: "
            log.seek(0)
            lines = [line for line in log.read().splitlines() if line.strip()]
        kept = read_json(out) if out.is_file() else {}
    result = {"status": status, "seconds": time.monotonic() - start, "rows": [], **kept}
    if status != "measured":
        result["why"] = why + (_last_words(lines) or "it said nothing")
    return result


def _last_words(lines: Sequence[str]) -> str:
    """The line that says what went wrong: of a traceback the error, and not what follows it."""
    errors = [line for line in lines if "RESOURCE_EXHAUSTED" in line or line.split(":")[0].endswith(("Error", "error"))]
    return (errors or lines or [""])[-1].strip()[:WORDS]


def _run_one(name: str, out: pathlib.Path, tiny: bool) -> None:
    """Runs a part in this process, and writes its rows after each of them."""
    import jax

    from tools.gpu.parts import PARTS, on_device

    if not tiny and jax.default_backend() == "cpu":
        raise UserError(NO_GPU)
    kept = {"rows": []}
    for row in PARTS[name].measure(tiny):
        kept = {"device": on_device(), "rows": [*kept["rows"], row]}
        write_json(out, kept)


def report(results: Mapping) -> Iterator[str]:
    """The lines of the table in Markdown, and before it what it was measured on."""
    parts = results["parts"]
    devices = sorted({part["device"] for part in parts.values() if "device" in part})
    about = {"devices": ", ".join(devices) or "none was reached", **results["machine"]}
    yield "; ".join(f"{name}: {markdown(value)}" for name, value in about.items())
    yield ""
    rows = []
    for name, part in parts.items():
        for row in part.get("rows", ()):
            figures = "; ".join(f"{key} {_number(value)}" for key, value in row["figures"].items())
            memory = (_gib(row.get("peak_bytes")), _gib(row.get("planned_bytes")))
            rows.append((name, markdown(row["what"]), figures, *memory))
        if part["status"] != "measured":
            rows.append((name, f"{part['status']}: {markdown(part['why'])}", "", "", ""))
    yield from table(HEAD, rows)


def machine() -> dict[str, str]:
    """Driver, versions and commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit, changed = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"), _said(
        "git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")  # fmt: skip
    return {"driver": driver.splitlines()[0] if driver else "none", **versions,
            "commit": (commit or "unknown") + (", with changes" if changed else ""),
            "CPU cores": str(os.cpu_count())}  # fmt: skip


def _said(*command: str) -> str:
    """What a program prints; "" where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _gib(size: int | None) -> str:
    return "" if not size else f"{size / 2**30:.2f}"


def _chosen(asked: Sequence[str], parts: Mapping) -> list[str]:
    """Names of the parts that were asked for, by their names or what these begin with; all if none."""
    for name in asked:
        if not any(part.startswith(name) for part in parts):
            raise UserError(f"--part {name} is no part{did_you_mean(name, parts)}")
    return [part for part in parts if not asked or any(part.startswith(name) for name in asked)]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--part", action="append", default=[], help="only this one, or those that begin so; repeatable")
    parser.add_argument("--out", type=file_to_write, default="gpu_report.json", help="where the figures go")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (8)")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: whether it works, on a CPU too")
    parser.add_argument("--list", action="store_true", help="name the parts and their time limits")
    parser.add_argument("--run_one", help=argparse.SUPPRESS)
    return parser
