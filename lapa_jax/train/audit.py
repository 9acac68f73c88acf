"""What a compiled program spends its time on, by what its text says: products, memory, links; and what the sheet of the
device makes of that (a roofline, Williams et al. 2009).

It is an estimate. A product is taken at the rate that large ones reach, memory and links at their data sheet; kernels
that wait for each other, launches and the host are not in it.
"""

import collections
import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from lapa_jax.train import hlo, plan_hlo
from lapa_jax.train.plan_devices import Roofline, Target

SHARE = 0.01
"""Of all bytes: what moves as much is named."""
RELATIVE_RATE = {"bf16": 1.0, "f16": 1.0, "s8": 2.0, "f8e4m3fn": 2.0, "f8e5m2": 2.0}
"""Rates of products by the type of their operands, over that of bfloat16; of float32 the device tells
(`Device.float32_rate`). Other types run outside of the tensor cores."""
OUTSIDE = 0.05
MOVES = frozenset("parameter constant copy transpose bitcast reshape slice dynamic-slice dynamic-update-slice "
                  "concatenate pad broadcast tuple get-tuple-element reverse gather iota".split())
"""A fusion of nothing else only rearranges."""
HOST = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
_CONVOLUTION = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


class Product(NamedTuple):
    """A matrix product or convolution. Attributes: flops: of one run. dtype: of its operands. run: which."""

    flops: float
    dtype: str
    run: hlo.Run


class Audit(NamedTuple):
    """The findings.

    Attributes:
      flops: {dtype: FLOPs of all products}, of one device and step.
      traffic: {kind: bytes read and written}: "products", "fused attention", "collectives", "rearranging", "other".
      float32: bytes of `traffic` that instructions with a float32 result move.
      fused: kernels of fused attention that run. scores: products of each sequence's own, in attention outside of such:
        of queries and keys, of weights and values, and their gradients.
      sent: bytes sent by one device, (within a host or slice, between hosts).
      collectives: {kind: (instructions, how often they run in all, bytes that one device sends)}.
      exposed: bytes of it in collectives beside which no product is scheduled.
      host: names of instructions within loops that exchange data with the host.
      largest: [(bytes, kind, opcode, source)] of what moves more than `SHARE` of all bytes without being a product.
      unknown_loops: loops that do not say how often they run; they count once.
    """

    flops: dict[str, float]
    traffic: dict[str, float]
    float32: float
    fused: int
    scores: int
    sent: tuple[float, float]
    collectives: dict[str, tuple[int, int, float]]
    exposed: float
    host: list[str]
    largest: list[tuple[float, str, str, str]]
    unknown_loops: int


def audit(text: str, goal: Target) -> Audit:
    """Reads an optimised program for GPUs or TPUs.

    Args:
      text: `Compiled.as_text()`. goal: what it was compiled for.
    """
    module = hlo.Module(text)
    runs = list(module.runs())
    multiplied = list(products(module))
    flops = collections.Counter()
    for product in multiplied:
        flops[product.dtype] += product.flops * product.run.times
    with_product = _with_product(module, multiplied)
    traffic, float32, largest = collections.Counter(), 0.0, collections.Counter()
    for run in runs:
        size = module.traffic(run) * run.times
        kind = _kind(module, run, with_product)
        traffic[kind] += size
        float32 += size * any(array.dtype == "f32" for array in run.instruction.results[:1])
        if kind != "products":
            largest[kind, run.instruction.opcode, run.instruction.source] += size
    total = sum(traffic.values())
    devices = goal.hosts * goal.per_host
    program = plan_hlo.read(module, devices)
    return Audit(
        dict(flops), dict(traffic), float32,
        fused=sum(run.times for run in runs if _is_fused_attention(run.instruction)),
        scores=sum(p.run.times for p in multiplied
                   if _is_batched(p.run.instruction) and "attention" in p.run.instruction.source),
        sent=program.sent(goal.per_host),
        collectives=_collectives(program),
        exposed=sum(_exposed(module, runs, with_product, devices)),
        host=[run.instruction.name for run in runs if run.looped and _of_host(run.instruction)],
        largest=[(size, *what) for what, size in largest.most_common() if size > SHARE * total],
        unknown_loops=len({name for run in runs for name in run.unknown}),
    )  # fmt: skip


def estimate(findings: Audit, flops: float, goal: Target) -> Roofline:
    """What the step takes on that device.

    Args:
      findings: of the program. flops: of all products of a device and step, counted on the traced step: those of fused
        attention do not show in the program.
    """
    # What the program does not show is bfloat16: fused attention takes no other type.
    by_type = dict(findings.flops)
    by_type["bf16"] = by_type.get("bf16", 0.0) + max(0.0, flops - sum(findings.flops.values()))
    relative = {**RELATIVE_RATE, "f32": goal.device.float32_rate}
    needed = sum(count / relative.get(dtype, OUTSIDE) for dtype, count in by_type.items())
    return goal.device.roofline(needed, sum(findings.traffic.values()), findings.sent)


def products(module: hlo.Module) -> Iterator[Product]:
    """All matrix products and convolutions, those in fusions too."""
    for run in module.runs(into_fusions=True):
        computation, instruction = module.computations[run.computation], run.instruction
        operands = [computation[name].results[0] for name in instruction.operands if computation[name].results]
        target = re.search(r'custom_call_target="([^"]*)"', instruction.line)
        target = target[1] if target and instruction.opcode == "custom-call" else ""
        if instruction.opcode == "dot" or target.startswith(("__cublas$", "__cublas$lt")):
            yield Product(_dot_flops(instruction, operands[0]), operands[0].dtype, run)
        elif instruction.opcode == "convolution" or target.startswith("__cudnn$conv"):
            yield Product(_convolution_flops(instruction, operands, target), operands[0].dtype, run)


def _collectives(program: plan_hlo.Program) -> dict[str, tuple[int, int, float]]:
    kinds = [collective.kind for collective in program.collectives]
    totals = {kind: plan_hlo.total(program.collectives, kind) for kind in plan_hlo.KINDS if kind in kinds}
    return {kind: (kinds.count(kind), runs, moved) for kind, (runs, _, moved) in totals.items()}


def _with_product(module: hlo.Module, multiplied: list[Product]) -> set[str]:
    """Names of the computations that hold a product, or a fusion that does."""
    names, before = {product.run.computation for product in multiplied}, 0
    while len(names) > before:
        before = len(names)
        for name, computation in module.computations.items():
            if any(i.opcode in hlo.FUSIONS and dict(hlo.called_by(i))["calls"] in names for i in computation.values()):
                names.add(name)
    return names


def _is_batched(instruction: hlo.Instruction) -> bool:
    """Whether it multiplies the matrices of each sequence and head: the compiler for TPUs makes a convolution of that,
    along an axis of which each result sees one position."""
    if instruction.opcode == "convolution":
        return re.search(r"dim_labels=\w*\d", instruction.line) is not None
    return re.search(r'lhs_batch_dim(ensions":\["|s=\{)\d', instruction.line) is not None


def _dot_flops(instruction: hlo.Instruction, left: hlo.Array) -> float:
    """Two for each product of numbers: results x what is summed over."""
    noted = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.line)
    listed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)
    axes = [int(axis) for axis in json.loads(noted[1])] if noted else [int(a) for a in listed[1].split(",") if a]
    return 2.0 * math.prod(instruction.results[0].shape) * math.prod(left.shape[axis] for axis in axes)


def _convolution_flops(instruction: hlo.Instruction, operands: list[hlo.Array], target: str) -> float:
    """Two for each result of the forward convolution x kernel positions that meet the input x features that come in."""
    inputs, kernel, output = (*operands[:2], instruction.results[0])
    if target.endswith("convBackwardFilter"):  # of the images and the output's gradient
        kernel, output = instruction.results[0], operands[1]
    elif target.endswith("convBackwardInput"):  # of the output's gradient and the kernel
        inputs, output = instruction.results[0], operands[0]
    of_input, of_kernel, of_output = _CONVOLUTION.search(instruction.line).groups()
    size = lambda array, labels, label: array.shape[labels.index(label)]  # noqa: E731
    flops = 2.0 * size(output, of_output, "b") * size(output, of_output, "f") * size(kernel, of_kernel, "i")
    for number, axis in enumerate(sorted(label for label in of_output if label.isdigit())):
        sizes = (size(inputs, of_input, axis), size(kernel, of_kernel, axis), size(output, of_output, axis))
        flops *= _positions(instruction.line, number, *sizes)
    return flops


def _positions(line: str, axis: int, inputs: int, kernel: int, outputs: int) -> int:
    """How many pairs of a result and a position of the kernel meet a number of the input, along one axis."""
    window = re.search(r"window=\{([^}]*)\}", line)
    given = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    of_axis = lambda name, default: given[name].split("x")[axis] if name in given else default  # noqa: E731
    stride, spread, gap = (int(of_axis(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(of_axis("pad", "0_0").partition("_")[0])
    end = (inputs - 1) * spread
    meets = lambda at: 0 <= at <= end and at % spread == 0  # noqa: E731
    return sum(meets(out * stride + at * gap - before) for out in range(outputs) for at in range(kernel))


def _kind(module: hlo.Module, run: hlo.Run, with_product: set[str]) -> str:
    instruction = run.instruction
    if plan_hlo.kind_of(instruction):
        return "collectives"
    if _is_fused_attention(instruction):
        return "fused attention"
    if instruction.opcode in ("dot", "convolution") or "__cublas" in instruction.line or "__cudnn" in instruction.line:
        return "products"
    fused = module.computations.get(dict(hlo.called_by(instruction)).get("calls", ""), {})
    if instruction.opcode in hlo.FUSIONS:
        if dict(hlo.called_by(instruction))["calls"] in with_product:
            return "products"
        opcodes = {inner.opcode for inner in fused.values()}
    else:
        opcodes = {instruction.opcode.removesuffix("-start")}
    return "rearranging" if opcodes <= MOVES else "other"


def _is_fused_attention(instruction: hlo.Instruction) -> bool:
    """Whether it is a kernel of cuDNN's, or of Pallas for TPUs, of which this project uses no other."""
    return instruction.opcode == "custom-call" and ("fmha" in instruction.line or "tpu_custom_call" in instruction.line)


def _exposed(module: hlo.Module, runs: list[hlo.Run], with_product: set[str], devices: int) -> Iterator[float]:
    """Bytes sent by collectives beside which no product runs, in the order in which the program is scheduled."""
    for run in runs:
        if not plan_hlo.kind_of(run.instruction):
            continue
        order = list(module.computations[run.computation].values())
        begin = order.index(run.instruction)
        end = next((i for i, other in enumerate(order) if i > begin and run.instruction.name in other.operands), begin)
        beside = order[begin + 1 : end] if run.instruction.opcode.endswith("-start") else []
        if not any(_kind(module, run._replace(instruction=other), with_product) == "products" for other in beside):
            yield plan_hlo.collective(run, devices).moved


def _of_host(instruction: hlo.Instruction) -> bool:
    return instruction.opcode in HOST or "callback" in instruction.line.partition("metadata=")[0]
