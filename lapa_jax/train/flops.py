"""Counting the floating-point operations of a function from its jaxpr.

XLA's own cost analysis counts the body of a scan once, however often it runs; here a scan counts its length.
"""

import math

import jax
from jax.extend import core as jax_core


def count_flops(function, *args) -> float:
    """FLOPs of the matrix products and convolutions that `function(*args)` runs (a multiply-add is two).

    Args:
      function: a traceable function.
      *args: its arguments, arrays or `ShapeDtypeStruct`s.

    Element-wise work is left out: it is bound by memory, not by arithmetic, and MFU is defined on matrix products.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


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
