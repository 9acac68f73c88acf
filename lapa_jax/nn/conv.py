"""Convolutions from one grid to a smaller one, derived from the two grids."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.nn.linear import fan_in_uniform

# From grids of at most this many cells a side, one unpadded convolution goes the rest of the way.
SMALL_GRID = 4


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolution: kernel and stride as (rows, columns), zero padding of `padding` cells on every padded side."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: int


def downsample_specs(grid: tuple[int, int], target: tuple[int, int]) -> tuple[ConvSpec, ...]:
    """The convolutions that lead from `grid` to `target` cells (rows, columns).

    Padded 3x3 convolutions halve the grid (rounding up) until it is the target, or small (at most 4 cells a side), or
    halving would overshoot; then one unpadded convolution as large as needed reaches the target. For the grids and code
    lengths of the official LAQ (1, 2, 4, 16, 64, 256 codes) these are exactly its layers.
    """
    size, specs = grid, []
    while size != target or not specs:
        halves = tuple((s + 1) // 2 for s in size)
        stride = tuple(2 if s > t and h >= t else 1 for s, h, t in zip(size, halves, target, strict=True))
        if size != target and (stride == (1, 1) or max(size) <= SMALL_GRID):
            specs.append(ConvSpec((size[0] - target[0] + 1, size[1] - target[1] + 1), (1, 1), 0))
            break
        specs.append(ConvSpec((3, 3), stride, 1))
        size = tuple(h if step == 2 else s for s, h, step in zip(size, halves, stride, strict=True))
    return tuple(specs)


def code_grid(grid: tuple[int, int], code_seq_len: int) -> tuple[int, int]:
    """The (rows, columns) in which `code_seq_len` codes cover a grid of patches, with cells as square as possible.

    A side of n cells can be covered by k codes where k divides n, ceil(n/2), ceil(n/4), ... Of two equally square
    coverings the taller one is taken: 2 codes on a square grid are 2 rows of 1.

    Raises:
      UserError: no such covering exists; the message lists the nearest lengths that have one.
    """
    options = [(rows, code_seq_len // rows) for rows in _reachable(grid[0])
               if code_seq_len % rows == 0 and code_seq_len // rows in _reachable(grid[1])]  # fmt: skip
    if not options:
        valid = sorted(valid_lengths(grid), key=lambda n: (abs(n - code_seq_len), n))[:8]
        raise UserError(
            f"code_seq_len {code_seq_len} cannot cover the grid of {grid[0]}x{grid[1]} patches evenly; "
            f"the nearest lengths that can: {', '.join(map(str, sorted(valid)))}"
        )
    # How far cells are from squares, then the taller covering.
    return min(options, key=lambda codes: (abs(math.log(grid[0] * codes[1] / (grid[1] * codes[0]))), -codes[0]))


def valid_lengths(grid: tuple[int, int]) -> set[int]:
    """All code lengths that can cover a grid."""
    return {rows * columns for rows in _reachable(grid[0]) for columns in _reachable(grid[1])}


def _reachable(side: int) -> set[int]:
    """How many codes can cover a side of so many cells: the divisors of it, of half of it, rounded up, and so on."""
    counts = set()
    while True:
        counts |= {k for k in range(1, side + 1) if side % k == 0}
        if side == 1:
            return counts
        side = (side + 1) // 2


class GridMaps(nn.Module):
    """Reduces a grid to `count` vectors by learned maps: each feature of each vector is a weighted sum of that feature
    over all cells. Unlike convolutions, every vector sees the whole grid.

    Attributes: count: vectors to make. The parameter "maps" [count, cells, D] is float32; so is the result.
    """

    count: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, rows, columns, D] -> f32 [N, count, D]."""
        x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
        maps = self.param("maps", nn.initializers.normal(x.shape[1] ** -0.5), (self.count, *x.shape[1:]))
        return jnp.einsum("ncd,kcd->nkd", x, maps)


class Downsample(nn.Module):
    """The convolutions of `downsample_specs` with ReLU between them, width unchanged.

    Attributes:
      grid: cells of the input (rows, columns).
      target: cells of the output (rows, columns).
      dtype: dtype of the computation; parameters ("conv_0/kernel" [rows, columns, in, out], ...) are float32.
    """

    grid: tuple[int, int]
    target: tuple[int, int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, rows, columns, D] -> [N, target rows, target columns, D]."""
        for index, spec in enumerate(downsample_specs(self.grid, self.target)):
            x = nn.relu(x) if index else x
            x = nn.Conv(
                x.shape[-1], spec.kernel, spec.stride, padding=spec.padding,
                kernel_init=fan_in_uniform, dtype=self.dtype, name=f"conv_{index}",
            )(x)  # fmt: skip
        return x
