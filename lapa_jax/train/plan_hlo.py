"""What a compiled program sends between devices, read from its text (HLO)."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.train import hlo

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

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

    def sent(self, per_host: int) -> tuple[float, float]:
        """Bytes that a device sends (within its host, to other hosts), with `per_host` devices on each."""
        between = sum(c.moved for c in self.collectives if c.crosses(per_host))
        return sum(c.moved for c in self.collectives) - between, between


def read(module: hlo.Module, devices: int) -> Program:
    """What an optimised program sends, on so many devices."""
    runs = [run for run in module.runs(into_fusions=True) if kind_of(run.instruction)]
    collectives = tuple(collective(run, devices) for run in runs)
    return Program(collectives, len({name for run in runs for name in run.unknown}))


def kind_of(instruction: hlo.Instruction) -> str:
    """One of `KINDS`, or "" where it is no collective. Of an asynchronous one its start counts."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else ""


def total(collectives: Sequence[Collective], kind: str) -> tuple[int, float, float]:
    """(runs, bytes of the whole arrays, bytes that each device sends) of one kind."""
    chosen = [c for c in collectives if c.kind == kind]
    return sum(c.times for c in chosen), sum(c.times * c.size for c in chosen), sum(c.moved for c in chosen)


def collective(run: hlo.Run, devices: int) -> Collective:
    """What a run of an instruction sends, on a program for `devices`; it must be a collective."""
    instruction = run.instruction
    kind, groups = kind_of(instruction), _groups(instruction.line, devices)
    # Scalars that go along for bookkeeping are left out.
    arrays = [array for array in instruction.results if array.shape] or instruction.results
    size = sum(array.bytes for array in arrays)
    size = _whole(kind, instruction.opcode.endswith("-start"), size, groups.shape[1])
    return Collective(kind, size, groups, run.times, run.looped, instruction.source)


def _whole(kind: str, started: bool, size: int, members: int) -> int:
    """Bytes of the whole array from those of the result; that of an asynchronous start holds the operands as well."""
    if kind in ("all-gather", "reduce-scatter"):
        whole = size * members if kind == "reduce-scatter" else size
        return size * members // (members + 1) if started else whole
    return size // 2 if started and kind != "all-reduce" else size


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
