"""Modules as compiled programs, traced once for all tests of a process that call them alike.

Operation by operation a model is hundreds of small programs, and a `jax.jit` in every call traces it every time; that
is most of what tests of models cost.
"""

import functools

import jax


@functools.cache
def _program(module, function: str, options: tuple):
    return jax.jit(lambda args, arrays: getattr(module, function)(*args, **arrays, **dict(options)))


def apply(module, variables, *args, **options):
    """`module.apply`. Equal modules share a program; what is no array (`train`, `method`, `mutable`) is part of it."""
    return _call(module, "apply", (variables, *args), options)


def init(module, rngs, *args, **options):
    """`module.init`."""
    return _call(module, "init", (rngs, *args), options)


def _call(module, function: str, args: tuple, options: dict):
    fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
             if not jax.tree.leaves(value) or not hasattr(jax.tree.leaves(value)[0], "dtype")}  # fmt: skip
    arrays = {name: value for name, value in options.items() if name not in fixed}
    return _program(module, function, tuple(sorted(fixed.items())))(args, arrays)
