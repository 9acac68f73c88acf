"""Residual convolutions: blocks of group norm, SiLU and 3x3 convolutions, and the halvings of a grid between them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.linear import Linear, fan_in_uniform


class Norm(nn.Module):
    """Group norm, then optionally a scale and a shift per channel from a condition, then SiLU.

    Attributes: groups: of the channels; dtype: of the result, statistics are float32.
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """x: [B, H, W, C], condition: [B, E] -> [B, H, W, C]."""
        x = nn.GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
        if condition is not None:
            factors = Linear(2 * x.shape[-1], dtype=self.dtype, name="condition")(condition)[:, None, None]
            scale, shift = jnp.split(factors, 2, axis=-1)
            # 1 + scale: with small initial weights the block starts as if there were no condition.
            x = x * (1 + scale) + shift
        return nn.silu(x)


class ResBlock(nn.Module):
    """Group norm, SiLU and a 3x3 convolution, twice, added to the input; a condition enters at the second norm.

    Attributes: groups, dtype: as of `Norm`.
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """x: [B, H, W, C], condition: [B, E] -> [B, H, W, C]."""
        y = Norm(self.groups, self.dtype, name="norm_0")(x)
        y = conv(x.shape[-1], 3, self.dtype, "conv_0")(y)
        y = Norm(self.groups, self.dtype, name="norm_1")(y, condition)
        return x + conv(x.shape[-1], 3, self.dtype, "conv_1")(y)


class Down(nn.Module):
    """Convolutions that halve the grid (4x4, stride 2), each followed by residual blocks.

    Attributes: channels: of each halving; blocks: residual blocks after each; groups, dtype: as of `Norm`.
    """

    channels: tuple[int, ...]
    blocks: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B, H, W, C] -> the grids after each halving, [B, H / 2, W / 2, channels[0]] first."""
        grids = []
        for level, width in enumerate(self.channels):
            x = conv(width, 4, self.dtype, f"down_{level}", stride=2)(x)
            for block in range(self.blocks):
                x = ResBlock(self.groups, self.dtype, name=f"block_{level}_{block}")(x)
            grids.append(x)
        return grids


def conv(width: int, kernel: int, dtype, name: str | None, stride: int = 1) -> nn.Conv:
    """A convolution padded so that the grid is divided by the stride, no more and no less."""
    return nn.Conv(width, (kernel, kernel), (stride, stride), padding=(kernel - 1) // 2, dtype=dtype,
                   kernel_init=fan_in_uniform, name=name)  # fmt: skip
