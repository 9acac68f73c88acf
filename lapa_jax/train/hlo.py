"""The optimised program of XLA (HLO text) as instructions, how often each of them runs, and what it reads and writes.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here loops multiply: XLA notes how often
one runs (`known_trip_count`) wherever it knows, which of scans it always does. The compiler for TPUs notes nothing;
there the number is read from the loop's condition, `i < n`: scans count from 0.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32,
        "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
        "f8e4m3fn": 8, "f8e5m2": 8}  # fmt: skip
FREE = frozenset("parameter get-tuple-element tuple bitcast constant while call conditional after-all partition-id "
                 "replica-id iota async-start async-update optimization-barrier".split())
"""What moves nothing by itself."""
FUSIONS = ("fusion", "fusion-start")
"""The second one runs beside what follows it (XLA of jax 0.11); it moves no more."""

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_NAME = re.compile(r"^  (ROOT )?%([\w.-]+) = ")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|\w+_computations?)=(?:%?([\w.-]+)|\{([^}]*)\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_ON_CHIP = re.compile(r"T\(.*S\(1\)")
"""In a TPU's layouts, which have tiles (T), the memory on the chip (VMEM). On GPUs S(1) is memory for collectives."""
_ALIAS = "output_to_operand_aliasing={{}: (0, {})}"
"""Of a fusion within one for TPUs: the same array under another layout, which is read as far as it is needed."""
_OPERAND = re.compile(r"%([\w.-]+)")


class Array(NamedTuple):
    """Attributes: dtype: as XLA names it, "bf16". shape: sizes. on_chip: whether it lies in the memory of a TPU's chip,
    to which no traffic counts."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        return BITS.get(self.dtype, 0) * math.prod(self.shape) // 8

    @property
    def moved(self) -> int:
        """Bytes that go to or from memory when it is written or read as a whole."""
        return 0 if self.on_chip else self.bytes


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: within its computation. opcode: "fusion", "all-gather-start", ...
      results: the arrays that it gives, of a tuple all.
      operands: names of instructions of the same computation.
      line: the whole text, with what it calls and where it comes from.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str

    @property
    def source(self) -> str:
        """Where it comes from in the traced function, "jit(step)/jvp(Model)/...", as far as XLA tells."""
        name = re.search(r'op_name="([^"]*)"', self.line)
        return name[1] if name else ""

    @property
    def bytes(self) -> int:
        """Of its results."""
        return sum(array.bytes for array in self.results)

    @property
    def moved(self) -> int:
        """Of its results, what lies in memory."""
        return sum(array.moved for array in self.results)


class Run(NamedTuple):
    """An instruction as the program runs it.

    Attributes:
      instruction: of `computation`, by its name.
      times: how often. looped: whether within a loop.
      unknown: names of the loops around it that do not say how often they run; they count once.
    """

    instruction: Instruction
    computation: str
    times: int
    looped: bool
    unknown: tuple[str, ...]


class Module:
    """Attributes: computations: {name: {name: Instruction}}, in the order in which they run. entry: the first one's
    name."""

    def __init__(self, text: str):
        """Args: text: `Compiled.as_text()`."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, name = "", ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                name = head[2]
                self.entry = name if head[1] else self.entry
                self.computations[name] = {}
            elif start := _NAME.match(line):
                instruction = _instruction(start[2], line, start.end())
                self.computations[name][instruction.name] = instruction

    def runs(self, into_fusions: bool = False) -> Iterator[Run]:
        """All instructions, with how often they run; of fusions the whole, and with `into_fusions` what is in them."""
        return self._visit(self.entry, Run(None, "", 1, False, ()), into_fusions)

    def _visit(self, name: str, outer: Run, into_fusions: bool) -> Iterator[Run]:
        for instruction in self.computations[name].values():
            yield outer._replace(instruction=instruction, computation=name)
            for role, computation in called_by(instruction):
                # What a reduction or a collective applies is a function of two numbers.
                applied = role == "to_apply" and instruction.opcode != "call"
                if role == "condition" or applied or (instruction.opcode in FUSIONS and not into_fusions):
                    continue
                inner = outer
                if role == "body":
                    trips = self.trips(instruction)
                    unknown = outer.unknown if trips else (*outer.unknown, instruction.name)
                    inner = Run(None, "", outer.times * (trips or 1), True, unknown)
                yield from self._visit(computation, inner, into_fusions)

    def trips(self, loop: Instruction) -> int | None:
        """How often the body of a `while` runs; None where the program does not tell."""
        if noted := _TRIPS.search(loop.line):
            return int(noted[1])
        condition = self.computations.get(dict(called_by(loop)).get("condition", ""), {})
        if not condition:
            return None
        root = list(condition.values())[-1]
        if root.opcode != "compare" or "direction=LT" not in root.line or len(root.operands) != 2:
            return None
        limit = condition.get(root.operands[1])
        value = re.search(r" constant\((\d+)\)", limit.line) if limit else None
        return int(value[1]) if value else None

    def total_traffic(self) -> float:
        """Bytes that the program reads and writes, all in all."""
        return float(sum(run.times * self.traffic(run) for run in self.runs()))

    def traffic(self, run: Run) -> int:
        """Bytes that one run of an instruction reads from and writes to memory.

        A slice of a larger array counts as what is taken of it, an update in place as what is written: a layer of a
        scan does not read the weights of all layers.
        """
        instruction, computation = run.instruction, self.computations[run.computation]
        if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
            return 0
        if instruction.opcode in FUSIONS:
            fused = self.computations[dict(called_by(instruction))["calls"]]
            return sum(self._read(fused)) + _written_by(fused)
        return _moved(instruction, computation)

    def _read(self, fused: Mapping[str, Instruction]) -> list[int]:
        """Bytes of each of its parameters, in their order, that a fusion reads."""
        users: dict[str, list[Instruction]] = {}
        for instruction in fused.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)

        def read(instruction: Instruction) -> int:
            parts = 0
            for user in users.get(instruction.name, []):
                if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == instruction.name:
                    parts += user.bytes
                elif user.opcode == "dynamic-update-slice" and user.operands[0] == instruction.name:
                    continue  # written in place
                elif user.opcode in ("bitcast", "get-tuple-element", "reshape") or _ALIAS in user.line:
                    parts += read(user)
                elif user.opcode in FUSIONS:  # the compiler for TPUs fuses fusions
                    within = self._read(self.computations[dict(called_by(user))["calls"]])
                    parts += sum(size for name, size in zip(user.operands, within) if name == instruction.name)
                else:
                    return instruction.bytes
            return min(parts, instruction.bytes)

        parameters = [instruction for instruction in fused.values() if instruction.opcode == "parameter"]
        order = lambda instruction: int(re.search(r" parameter\((\d+)\)", instruction.line)[1])  # noqa: E731
        return [read(one) if one.moved else 0 for one in sorted(parameters, key=order)]


def called_by(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """(role, computation) of all that an instruction calls."""
    for role, one, several in _CALLED.findall(instruction.line):
        for called in [one] if one else re.findall(r"[\w.-]+", several):
            yield role, called


def arrays(types: str) -> tuple[Array, ...]:
    """The arrays in the text of a type, which may be a tuple."""
    return tuple(Array(dtype, tuple(int(n) for n in shape.split(",") if n), _ON_CHIP.search(layout) is not None)
                 for dtype, shape, layout in _ARRAY.findall(types))  # fmt: skip


def _instruction(name: str, line: str, start: int) -> Instruction:
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    operands = tuple(_OPERAND.findall(line[opening:closing]))
    return Instruction(name, line[end:opening].strip(), arrays(line[start:end]), operands, line)


def _closing(line: str, opening: int) -> int:
    """The position after the bracket that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(line)):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        if depth == 0:
            return position + 1
    return len(line)


def _moved(instruction: Instruction, computation: Mapping[str, Instruction]) -> int:
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return (instruction.bytes if operands[0].moved else 0) + instruction.moved
    if instruction.opcode == "dynamic-update-slice":
        return operands[1].moved + (operands[1].bytes if instruction.moved else 0)
    read = sum(operand.moved for operand in operands)
    if instruction.opcode.endswith("-start"):  # the result names the operands again
        return max(instruction.moved, read)
    results = instruction.results
    if instruction.opcode == "custom-call" and len(results) > 1 and results[-1].dtype in ("s8", "u8"):
        results = results[:-1]  # the workspace of a library, of which nobody knows how much it uses
    return sum(array.moved for array in results) + read


def _written_by(fused: Mapping[str, Instruction]) -> int:
    """Bytes that a fusion writes."""

    def written(instruction: Instruction) -> int:
        if instruction.opcode == "tuple":
            return sum(written(fused[name]) for name in instruction.operands if name in fused)
        if instruction.opcode == "dynamic-update-slice" and instruction.operands[1] in fused:
            return fused[instruction.operands[1]].bytes if instruction.moved else 0
        if instruction.opcode == "bitcast" and instruction.operands[0] in fused and instruction.moved:
            return written(fused[instruction.operands[0]])
        return instruction.moved

    return written(list(fused.values())[-1])
