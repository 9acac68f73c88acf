"""Positions: a bias from continuous distances on a grid, a convolution that lets tokens see their neighbours, and
rotary positions in a sequence."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.nn.linear import Linear, fan_in_uniform


class ContinuousPositionBias(nn.Module):
    """A bias on attention logits from a small network over the distances between grid cells.

    The distance of two cells, (rows, columns), enters as sign(d) * log(|d| + 1), so that any grid can use the weights.
    The network runs once per distinct distance, of which a grid has (2H-1)(2W-1), not once per pair of cells.

    Attributes:
      dim: width of the network's two hidden layers (leaky ReLU, slope 0.1).
      heads: number of heads, one bias each.
    """

    dim: int
    heads: int

    @nn.compact
    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """Returns the f32 bias [heads, H*W, H*W] from (query cell, key cell), cells in row-major order."""
        height, width = grid
        rows, columns = np.meshgrid(np.arange(1 - height, height), np.arange(1 - width, width), indexing="ij")
        distance = np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32)
        x = jnp.asarray(np.sign(distance) * np.log(np.abs(distance) + 1))
        for index in range(2):
            x = nn.leaky_relu(Linear(self.dim, name=f"hidden_{index}")(x), 0.1)
        x = Linear(self.heads, name="out")(x)
        return jnp.moveaxis(x[_pairs_to_distance(height, width)], -1, 0)


def _pairs_to_distance(height: int, width: int) -> np.ndarray:
    """For each pair of cells (i, j), the row of the table of distances that holds position(i) - position(j)."""
    row, column = np.divmod(np.arange(height * width), width)
    rows = row[:, None] - row[None] + height - 1
    columns = column[:, None] - column[None] + width - 1
    return rows * (2 * width - 1) + columns


class NeighbourConv(nn.Module):
    """Adds to each token a depthwise 3x3x3 convolution over (time, rows, columns), causal in time ("PEG").

    Tap 2 of the time axis is the same frame, taps 1 and 0 the frames before; rows and columns are padded by one cell.
    Written as a sum of shifted products, which XLA fuses into one pass: a grouped 3-D convolution is far slower on a
    CPU, and taps that would only see padding (two of three for a single frame) cost nothing.

    Attributes:
      axes: where time, rows and columns lie in the input, e.g. (1, 2, 3).
      dtype: dtype of the computation; parameters are float32.
    """

    axes: tuple[int, int, int] = (1, 2, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] with time, rows and columns at `axes` -> the same shape, in `dtype`."""
        dim = x.shape[-1]
        kernel = self.param("kernel", fan_in_uniform, (3, 3, 3, 1, dim)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (dim,)).astype(self.dtype)
        x = x.astype(self.dtype)
        return x + bias + depthwise_conv(x, kernel[:, :, :, 0], self.axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: jax.Array, kernel: jax.Array, axes: tuple[int, int, int]) -> jax.Array:
    """The causal depthwise convolution of `NeighbourConv` without bias and residual; kernel: [3, 3, 3, D].

    Has its own gradient: differentiating the sum would keep every shifted copy of `x` for the backward pass.
    """
    return _shifted_sum(x, kernel, axes, before=(2, 1, 1))


def _shifted_sum(x, kernel, axes, *, before):
    """Sum over taps of x, shifted by (tap - before) cells and zero outside, times kernel[tap]."""
    total = jnp.zeros_like(x)
    for taps, window in _windows(x, axes, before):
        total = total + window * kernel[taps]
    return total


def _windows(x, axes, before):
    """Each tap with the shifted x that it sees, without the taps that see nothing but zeros."""
    padding = [(0, 0)] * x.ndim
    for axis, pad in zip(axes, before, strict=True):
        padding[axis] = (pad, 2 - pad)
    padded, sizes = jnp.pad(x, padding), [x.shape[axis] for axis in axes]
    for taps in np.ndindex(3, 3, 3):
        if any(abs(tap - pad) >= size for tap, pad, size in zip(taps, before, sizes, strict=True)):
            continue
        starts, ends = [0] * x.ndim, list(x.shape)
        for axis, tap, size in zip(axes, taps, sizes, strict=True):
            starts[axis], ends[axis] = tap, tap + size
        yield taps, jax.lax.slice(padded, starts, ends)


def _conv_forward(x, kernel, axes):
    return depthwise_conv(x, kernel, axes), (x, kernel)


def _conv_backward(axes, saved, grad):
    x, kernel = saved
    # The gradient of a shift is the opposite shift: the flipped kernel, with future frames in place of past ones.
    x_grad = _shifted_sum(grad, kernel[::-1, ::-1, ::-1], axes, before=(0, 1, 1))
    others = tuple(range(x.ndim - 1))
    kernel_grad = jnp.zeros(kernel.shape, jnp.float32)
    for taps, window in _windows(x, axes, (2, 1, 1)):
        kernel_grad = kernel_grad.at[taps].set(jnp.sum(window * grad, axis=others, dtype=jnp.float32))
    return x_grad, kernel_grad.astype(kernel.dtype)


depthwise_conv.defvjp(_conv_forward, _conv_backward)


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary positions (RoPE, Su et al. 2021), in the layout of Llama: feature i turns together with i + D/2.

    The pair (x_i, x_(i + D/2)) is turned by the angle position * base^(-2i/D), so that the product of a query and a key
    depends on the difference of their positions alone.

    Args:
      x: [N, L, heads, D], D even. positions: i32 [N, L].

    Returns:
      The same shape and dtype; angles and products are float32.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
