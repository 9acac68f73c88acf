"""Positions: a bias from continuous distances on a grid, and a convolution that lets tokens see their neighbours."""

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


def depthwise_conv(x: jax.Array, kernel: jax.Array, axes: tuple[int, int, int]) -> jax.Array:
    """The causal depthwise convolution of `NeighbourConv` without bias and residual; kernel: [3, 3, 3, D]."""
    padding = [(0, 0)] * x.ndim
    for axis, before, after in zip(axes, (2, 1, 1), (0, 1, 1), strict=True):
        padding[axis] = (before, after)
    padded = jnp.pad(x, padding)
    sizes = [x.shape[axis] for axis in axes]
    total = jnp.zeros_like(x)
    for taps in np.ndindex(3, 3, 3):
        # A tap that lies two frames back sees only padding when there are at most two frames, and so on.
        if 2 - taps[0] >= sizes[0]:
            continue
        window = padded
        for axis, tap, size in zip(axes, taps, sizes, strict=True):
            window = jax.lax.slice_in_dim(window, tap, tap + size, axis=axis)
        total = total + window * kernel[taps]
    return total
