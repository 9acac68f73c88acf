"""Where the time of traced steps went: matrix products, other operations, collectives, input, idle."""

import collections
import gzip
import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lapa_jax.core.errors import UserError
from lapa_jax.train.profiler import FOLDER, PROGRAM_FILE, STEP, WAIT

MATRIX, OTHER, COLLECTIVE, INPUT, IDLE = "matrix products", "other operations", "collectives", "input", "idle"
KINDS = (MATRIX, OTHER, COLLECTIVE, INPUT, IDLE)
"""What a moment counts as: the first of these that goes on in it, so that collectives are those that nothing hides."""

_MATRIX_OPS = ("dot", "convolution", "ragged-dot")
_MATRIX_CALLS = re.compile(r"gemm|matmul|dot|conv|cublas|cudnn|fmha|attention", re.IGNORECASE)
_COLLECTIVES = re.compile(r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|send|recv)(-start|-done)?")
_CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|fusion)=%?([\w.-]+)")

Interval = tuple[float, float]
"""Beginning and end in nanoseconds."""


class Operation(NamedTuple):
    """What the compiled program says of an operation: its kind, one of KINDS, or "" of one that only holds others; and
    which part of the model it is of."""

    kind: str
    of: str


class Total(NamedTuple):
    """Of an operation in a trace: its name, `Operation`, how often it ran, and seconds without what ran within it."""

    name: str
    operation: Operation
    count: int
    seconds: float


class Report(NamedTuple):
    """Attributes: steps: that were traced. seconds: they took. shares: {kind: share of the devices' time}. longest: the
    operations that took most. all_collectives: share of the time with one, hidden behind others or not."""

    steps: int
    seconds: float
    shares: dict[str, float]
    longest: list[Total]
    all_collectives: float


def read(run: str | pathlib.Path) -> dict[str, Report]:
    """{"host_0": its report, ...} of a run folder.

    Raises:
      UserError: the run has no trace.
    """
    if not pathlib.Path(run).is_dir():
        raise UserError(f"{run} does not exist; give a run folder")
    folder = pathlib.Path(run) / FOLDER
    traces = {host.name: sorted(host.rglob("*.xplane.pb")) for host in sorted(folder.glob("host_*"))}
    if not any(traces.values()):
        raise UserError(f"{run} has no trace; train with --config.train.profile='(20, 5)' to trace 5 steps from 20 on")
    program = folder / PROGRAM_FILE
    operations = parse(gzip.open(program, "rt", encoding="utf-8").read()) if program.is_file() else {}
    # The newest, where a run was traced again.
    return {host: summarize(_planes(files[-1]), operations) for host, files in traces.items() if files}


def parse(program: str) -> dict[str, Operation]:
    """{name: operation} of the text of a compiled program (HLO)."""
    instructions, holds = {}, collections.defaultdict(set)
    computation = ""
    for line in program.splitlines():
        if head := _HEAD.match(line):
            computation = head[1]
        elif found := _INSTRUCTION.match(line):
            name, opcode = found.groups()
            kind = _kind(opcode, line)
            holds[computation].add(kind)
            called = _CALLED.findall(line) if opcode == "fusion" or opcode in _CONTAINERS else []
            of = re.search(r'op_name="([^"]*)"', line)
            instructions[name] = kind, called, of[1] if of else ""
    return {name: Operation(MATRIX if kind == OTHER and any(MATRIX in holds[c] for c in called) else kind, of)
            for name, (kind, called, of) in instructions.items()}  # fmt: skip


def _kind(opcode: str, line: str) -> str:
    if opcode in _MATRIX_OPS:
        return MATRIX
    if opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', line)
        return MATRIX if target and _MATRIX_CALLS.search(target[1]) else OTHER
    if _COLLECTIVES.fullmatch(opcode):
        return COLLECTIVE
    return "" if opcode in _CONTAINERS else OTHER


class _Event(NamedTuple):
    device: str
    line: str
    name: str
    start: float
    end: float


def _planes(file: pathlib.Path) -> tuple[list[_Event], list[Interval], list[Interval]]:
    """Operations of the devices, the host's steps and its waits for data."""
    import jax

    events, steps, waits = [], [], []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                interval = event.start_ns, event.start_ns + event.duration_ns
                if event.name == STEP:
                    steps.append(interval)
                elif event.name == WAIT:
                    waits.append(interval)
                # GPUs have lines of their streams, and others that say the same again.
                elif plane.name.startswith("/host:") or line.name.startswith("Stream"):
                    stats = dict(event.stats)
                    if "hlo_op" in stats:
                        device = f"{plane.name} {stats.get('device_ordinal', '')}"
                        events.append(_Event(device, line.name, str(stats["hlo_op"]), *interval))
    return events, steps, waits


def summarize(
    trace: tuple[Sequence[_Event], Sequence[Interval], Sequence[Interval]], operations: Mapping[str, Operation]
) -> Report:  # fmt: skip
    """The report of one host's trace; see `_planes` and `parse`."""
    events, steps, waits = trace
    if not steps:
        raise UserError("the trace holds no step of training; trace the run again")
    start = min(begin for begin, _ in steps)
    end = max(itertools.chain((e.end for e in events), (end for _, end in steps)))
    of_name = lambda name: operations.get(name) or Operation(_kind(_opcode(name), ""), "")  # noqa: E731
    devices = sorted({event.device for event in events})
    seconds = dict.fromkeys(KINDS, 0.0)
    hidden = 0.0
    for device in devices:
        busy = {kind: union((e.start, e.end) for e in events if e.device == device and of_name(e.name).kind == kind)
                for kind in (MATRIX, OTHER, COLLECTIVE)}  # fmt: skip
        hidden += length(busy[COLLECTIVE])
        covered: list[Interval] = []
        for kind, intervals in (*busy.items(), (INPUT, union(waits)), (IDLE, [(start, end)])):
            after = union([*covered, *clip(intervals, start, end)])
            seconds[kind] += length(after) - length(covered)
            covered = after
    whole = (end - start) * max(len(devices), 1)
    totals = [Total(name, of_name(name), count, time / 1e9) for name, (count, time) in self_times(events).items()]
    return Report(len(steps), (end - start) / 1e9, {kind: time / whole for kind, time in seconds.items()},
                  sorted(totals, key=lambda total: -total.seconds), hidden / whole)  # fmt: skip


def _opcode(name: str) -> str:
    """What an operation is called without its number, "dot" of "dot.12"."""
    return re.sub(r"[.\d]+$", "", name)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments as intervals that do not overlap, in order."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def clip(intervals: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """What of them lies between start and end."""
    return [(max(a, start), min(b, end)) for a, b in intervals if b > start and a < end]


def length(intervals: Iterable[Interval]) -> float:
    """Of intervals that do not overlap, together."""
    return sum(end - begin for begin, end in intervals)


def self_times(events: Iterable[_Event]) -> dict[str, tuple[int, float]]:
    """{operation: (how often, nanoseconds without those that ran within it on the same line)}."""
    counts: collections.Counter = collections.Counter()
    times: collections.Counter = collections.Counter()
    for _, line in itertools.groupby(sorted(events, key=lambda e: (e.device, e.line)), lambda e: (e.device, e.line)):
        stack: list[_Event] = []
        for event in sorted(line, key=lambda e: (e.start, -e.end)):
            while stack and stack[-1].end <= event.start:
                stack.pop()
            counts[event.name] += 1
            times[event.name] += event.end - event.start
            if stack:
                times[stack[-1].name] -= min(event.end, stack[-1].end) - event.start
            stack.append(event)
    return {name: (counts[name], times[name]) for name in counts}


def as_text(reports: Mapping[str, Report], longest: int = 10) -> str:
    """The reports in words: shares of every host, and the longest operations of the first."""
    lines = []
    for host, report in reports.items():
        each = report.seconds / report.steps
        lines.append(f"{host}: {report.steps} steps in {report.seconds:.3f} s, {each:.4f} s each")
        lines += [f"  {share:6.1%}  {kind}" for kind, share in report.shares.items()]
        if report.all_collectives > report.shares[COLLECTIVE]:
            lines.append(f"  {report.all_collectives:6.1%}  collectives in all, with those behind other operations")
    report = next(iter(reports.values()))
    whole = sum(total.seconds for total in report.longest) or 1.0
    lines += ["", f"longest operations ({next(iter(reports))}; without what runs within them)"]
    for total in report.longest[:longest]:
        what = f"{total.operation.kind or 'holds others'}: {total.operation.of}".rstrip(": ")
        lines.append(f"  {total.seconds / whole:6.1%} {1e3 * total.seconds / report.steps:9.3f} ms a step "
                     f"{total.count / report.steps:6.4g} x  {total.name}  {what}")  # fmt: skip
    return "\n".join(lines)
