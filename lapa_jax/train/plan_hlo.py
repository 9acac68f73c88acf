"""What a compiled program sends between devices, read from its text (HLO).

A collective within a loop is written once and runs as often as the loop: XLA notes how often a loop runs wherever it
knows (`known_trip_count`), and scans it always knows. The compiler for TPUs notes nothing; there the number is read
from the loop's condition, `i < n`: scans count from 0. Loops within loops multiply.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32,
        "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}  # fmt: skip

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPCODE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|\w+_computations?)=(?:%?([\w.-]+)|\{([^}]*)\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%([\w.-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"^  ROOT .* compare\([^,]*, (?:\S+ )?%([\w.-]+)\), direction=LT")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}|source_target_pairs=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=(?:@?\w*)?mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array that it is about: gathered, before it is scattered, reduced; of the other kinds
        what each device has of it.
      groups: int [groups, members]: which devices, by their numbers in the mesh, take part together; of permutes pairs
        of source and target.
      times: how often the program runs it.
      looped: whether it is within a loop.
      name: where it comes from in the source, as far as XLA tells.
    """

    kind: str
    size: int
    groups: np.ndarray
    times: int
    looped: bool
    name: str

    @property
    def moved(self) -> float:
        """Bytes that each device sends in all runs, by the algorithms that send least (rings)."""
        members = self.groups.shape[1]
        share = {"all-reduce": 2 * (members - 1) / members, "collective-permute": 1.0}
        return self.times * self.size * share.get(self.kind, (members - 1) / members)

    def crosses(self, per_host: int) -> bool:
        """Whether devices of different hosts take part together, with `per_host` devices on each."""
        return bool((self.groups // per_host != self.groups[:, :1] // per_host).any())


class Program(NamedTuple):
    """Attributes: collectives: all of them. unknown_loops: how many loops with collectives within do not say how often
    they run; they are counted once."""

    collectives: tuple[Collective, ...]
    unknown_loops: int


def read(text: str, devices: int) -> Program:
    """Reads an optimised program as `Compiled.as_text()` gives it.

    Args:
      text: the program. devices: how many it runs on.
    """
    computations, entry = _computations(text)
    limits = _limits(text)
    collectives, unknown = [], 0

    def visit(name: str, times: int, looped: bool) -> int:
        """The number of collectives in a computation and in what it calls."""
        nonlocal unknown
        before = len(collectives)
        for line in computations.get(name, ()):
            if match := _OPCODE.search(line):
                collectives.append(_collective(line, match, times, looped, devices))
                continue
            roles = dict(_called(line)) if " while(" in line else {}
            trips = int(match[1]) if (match := _TRIPS.search(line)) else limits.get(roles.get("condition"))
            for role, called in _called(line):
                loop = role == "body"
                count = visit(called, times * (trips if loop and trips else 1), looped or loop)
                unknown += bool(loop and count and not trips)
        return len(collectives) - before

    visit(entry, 1, False)
    return Program(tuple(collectives), unknown)


def total(collectives: Sequence[Collective], kind: str) -> tuple[int, float, float]:
    """(runs, bytes of the whole arrays, bytes that each device sends) of one kind."""
    chosen = [c for c in collectives if c.kind == kind]
    return sum(c.times for c in chosen), sum(c.times * c.size for c in chosen), sum(c.moved for c in chosen)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """{name: lines that call something or communicate}, and the name of the entry."""
    bodies, entry, name = collections.defaultdict(list), "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            entry = name if head[1] else entry
        elif _OPCODE.search(line) or _CALLED.search(line):
            bodies[name].append(line)
    return dict(bodies), entry


def _limits(text: str) -> dict[str, int]:
    """{computation: n} of those that end in a comparison `i < n` with a constant, as conditions of loops do."""
    limits, constants, name = {}, {}, ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, constants = head[2], {}
        elif constant := _CONSTANT.search(line):
            constants[constant[1]] = int(constant[2])
        elif (below := _BELOW.match(line)) and below[1] in constants:
            limits[name] = constants[below[1]]
    return limits


def _called(line: str) -> Iterator[tuple[str, str]]:
    """(role, computation) of all that an instruction calls."""
    for role, one, several in _CALLED.findall(line):
        for called in [one] if one else re.findall(r"[\w.-]+", several):
            yield role, called


def _collective(line: str, match: re.Match, times: int, looped: bool, devices: int) -> Collective:
    kind, started = match[1], bool(match[2])
    groups = _groups(line, devices)
    size = _whole(kind, started, _bytes(line[: match.start()].partition(" = ")[2]), groups.shape[1])
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, size, groups, times, looped, name[1] if name else "")


def _whole(kind: str, started: bool, size: int, members: int) -> int:
    """Bytes of the whole array from those of the result; that of an asynchronous start holds the operands as well."""
    if kind in ("all-gather", "reduce-scatter"):
        whole = size * members if kind == "reduce-scatter" else size
        return size * members // (members + 1) if started else whole
    return size // 2 if started and kind != "all-reduce" else size


def _bytes(types: str) -> int:
    """Of all arrays in a type, which may be a tuple; scalars that go along for bookkeeping are left out."""
    arrays = [(BITS[t], [int(n) for n in d.split(",") if n]) for t, d in _ARRAY.findall(types) if t in BITS]
    arrays = [(bits, dims) for bits, dims in arrays if dims] or arrays
    return sum(bits * math.prod(dims) for bits, dims in arrays) // 8


def _groups(line: str, devices: int) -> np.ndarray:
    """The device groups of a collective, int [groups, members]."""
    if listed := _LISTED.search(line):
        groups = re.findall(r"\{([\d,]*)\}", listed[1] or listed[2])
        return np.array([[int(n) for n in group.split(",")] for group in groups])
    if iota := _IOTA.search(line):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        return _arranged(dims, order).reshape(shape)
    if mesh := _MESH.search(line):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        ids = np.arange(devices)
        if mesh[2]:
            ids = _arranged([int(n) for n in mesh[2].split(",")], mesh[3] and [int(n) for n in mesh[3].split(",")])
        return _by_axes(ids.reshape(list(axes.values())), list(axes), mesh[4])
    return np.arange(devices)[None]


def _arranged(dims: Sequence[int], order: Sequence[int] | None) -> np.ndarray:
    numbers = np.arange(math.prod(dims)).reshape(dims)
    return (numbers.transpose(order) if order else numbers).reshape(-1)


def _by_axes(ids: np.ndarray, names: list[str], chosen: str) -> np.ndarray:
    """Groups over some axes of a mesh: "'a','b'", or a part of one, "'a':(2)4": of axis a, as 2 x 4 x rest, the 4."""
    shape, together = [], []
    parts = {name: (pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)}
    for axis, name in enumerate(names):
        size = ids.shape[axis]
        split = [size]
        if name in parts and parts[name][0]:
            before, own = int(parts[name][0]), int(parts[name][1])
            split = [before, own, size // (before * own)]
        if name in parts:
            together.append(len(shape) + len(split) // 2)
        shape += split
    rest = [axis for axis in range(len(shape)) if axis not in together]
    members = math.prod(shape[axis] for axis in together)
    return ids.reshape(shape).transpose([*rest, *together]).reshape(-1, members)
