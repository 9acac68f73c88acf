"""Kernels of linear layers as 8-bit integers with a scale for each output; activations stay as they are.

A kernel [..., in, out], stacked or not, becomes "kernel_int8" int8 [..., in, out] and "kernel_scale" f32 [..., out],
kernel ≈ kernel_int8 * kernel_scale: symmetric, the largest absolute value of a column becomes 127, and each number is
off by half a scale at most (Jacob et al. 2018, for weights alone). `Linear` multiplies by either form, so that every
method of a model takes such parameters; in memory they are a byte a number at all times.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.nn.linear import INT8_KERNEL, INT8_SCALE, Linear

LARGEST = 127
KERNEL = tree.SEPARATOR + "kernel"


def linear_layers(model: nn.Module) -> dict[str, jnp.dtype]:
    """The linear layers that a model makes, in order: {"llm/decoder/layers/attention/query": what it computes in}.

    Nothing is computed.
    """
    met = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            met[tree.SEPARATOR.join(context.module.path)] = jnp.dtype(context.module.dtype)
        return call(*args, **kwargs)

    rngs = {name: jax.random.key(0) for name in ("params", "noise", "dropout")}
    with nn.intercept_methods(note):
        jax.eval_shape(lambda batch: model.init(rngs, batch, train=True), model.example(1))
    return dict(sorted(met.items()))


def choose(layers: Iterable[str], modules: str) -> list[str]:
    """Those layers whose whole path matches a regular expression.

    Raises:
      UserError: it cannot be read, or matches none.
    """
    try:
        chosen = [layer for layer in layers if re.fullmatch(modules, layer)]
    except re.error as error:
        raise UserError(f"'{modules}' is no regular expression ({error})") from None
    if not chosen:
        raise UserError(f"'{modules}' matches no linear layer; there are {', '.join(layers)}")
    return chosen


def quantize_layers(params: Mapping, layers: Sequence[str]) -> dict:
    """Nested parameters with the kernels of `layers` as integers, all else as it is."""
    flat = tree.flatten(params)
    for layer in layers:
        base = layer + tree.SEPARATOR
        flat[base + INT8_KERNEL], flat[base + INT8_SCALE] = quantize(flat.pop(layer + KERNEL))
    return tree.unflatten(flat)


@jax.jit
def quantize(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kernel [..., in, out] -> int8 [..., in, out] in -127..127 and scales f32 [..., out]; 1 for columns of zeros."""
    kernel = jnp.asarray(kernel, jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest / LARGEST)
    rounded = jnp.clip(jnp.round(kernel / scale), -LARGEST, LARGEST)
    return rounded.astype(jnp.int8), scale[..., 0, :]


def expected(shapes: Mapping, variables: Mapping) -> dict:
    """What variables should look like of which some kernels are integers.

    Args:
      shapes: the nested shapes and dtypes of the float model. variables: those of the model that is loaded.

    Returns:
      `shapes`, with integers and scales in place of the kernels that `variables` hold as integers.
    """
    flat = tree.flatten(shapes)
    for name in tree.flatten(variables):
        layer = name.removesuffix(tree.SEPARATOR + INT8_KERNEL)
        if layer != name and layer + KERNEL in flat:
            shape = flat.pop(layer + KERNEL).shape
            flat[name] = jax.ShapeDtypeStruct(shape, np.int8)
            flat[layer + tree.SEPARATOR + INT8_SCALE] = jax.ShapeDtypeStruct((*shape[:-2], shape[-1]), np.float32)
    return tree.unflatten(flat)


def is_int8(variables: Mapping) -> bool:
    """Whether some kernels are integers."""
    return any(name.endswith(tree.SEPARATOR + INT8_KERNEL) for name in tree.flatten(variables))
