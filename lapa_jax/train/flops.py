"""Counting the floating-point operations of a function from its jaxpr.

XLA's own cost analysis counts the body of a scan once, however often it runs; here a scan counts its length.
"""

import math
from typing import NamedTuple

import jax
from jax.extend import core as jax_core

from lapa_jax.core import counting

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12,
         "TPU v6 lite": 918e12}  # fmt: skip
"""Dense bf16 peaks in FLOP/s (data sheets), by a part of the name that JAX gives a device: v5e is "TPU v5 lite",
v5p "TPU v5"."""


def peak_flops(kind: str) -> float | None:
    """The peak of a device whose `device_kind` is `kind`; None where it is not known."""
    matches = [name for name in PEAKS if name in kind]
    return PEAKS[max(matches, key=len)] if matches else None


class Flops(NamedTuple):
    """Floating-point operations of a training step.

    Attributes:
      model: what the gradient needs, however it is computed: of a trained layer three forward passes, of a frozen one
        one, or two where a gradient passes through it to what is trained. The numerator of MFU (Chowdhery et al. 2022).
      hardware: what is computed, with all that is computed again to save memory. The numerator of HFU.
    """

    model: float
    hardware: float


def trace_step(step, *args, **options) -> tuple[jax.stages.Traced, Flops]:
    """Traces `jax.jit(step, **options)` on these arguments, arrays or `ShapeDtypeStruct`s, and counts its FLOPs.

    Returns:
      The trace, which can be lowered, and the FLOPs on all devices together. It is traced again only where what is run
      is not what is to be counted: with kernels whose operations do not show, and where layers are computed twice.
    """
    with counting.watching() as met:
        traced = jax.jit(step, **options).trace(*args)
    hardware = count_flops(step, *args, recomputation=True) if counting.KERNEL in met else _flops(traced.jaxpr.jaxpr)
    return traced, Flops(count_flops(step, *args) if met else hardware, hardware)


def count_flops(function, *args, recomputation: bool = False) -> float:
    """FLOPs of the matrix products and convolutions that `function(*args)` runs (a multiply-add is two).

    Args:
      function: a traceable function.
      *args: its arguments, arrays or `ShapeDtypeStruct`s.
      recomputation: whether the layers that are computed again in the backward pass, to save memory, count twice.

    Element-wise work is left out: it is bound by memory, not by arithmetic, and MFU is defined on matrix products.
    """
    with counting.counting(recomputation):
        # A function of its own: JAX would answer from its cache with a trace that was made to be run.
        return _flops(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr)


def _flops(jaxpr) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracting)
    if name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[numbers.rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_channels
    inner = [_flops(jaxpr) for jaxpr in jax_core.jaxprs_in_params(equation.params)] if equation.params else []
    if name == "scan":
        return equation.params["length"] * sum(inner)
    # Of the branches of a cond one runs; the costliest is taken.
    return max(inner, default=0.0) if name == "cond" else sum(inner)
