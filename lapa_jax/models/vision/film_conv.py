"""Convolutions that the instruction steers: a small tower for policies that are trained from scratch.

The recipe of BC-Z (Jang et al. 2022, arXiv:2202.02005): feature-wise linear modulation (FiLM, Perez et al. 2018,
arXiv:1709.07871) of a convolutional network by the instruction. OpenVLA-OFT (Kim et al. 2025) puts the same on large
towers. Where things are is read off as expected coordinates, or with weights of its own for each place.
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Dtype, Range
from lapa_jax.models import base
from lapa_jax.nn.linear import Linear, fan_in_uniform
from lapa_jax.nn.norm import LayerNorm

UNIT = 3**0.5
"""Scale of kernels that keeps the variance of what goes through them, so that the instruction is heard at once."""


POINTED = 6.0
"""Scale of the kernel of points. Their softmaxes begin at different places, not all at the middle, where none of them
would say anything of the image and training would have to find that out first."""


class Film(nn.Module):
    """Scales and shifts features by what a condition says. dtype: of the computation; parameters are float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [N, rows, columns, D], condition [N, C] -> like x."""
        factors = Linear(2 * x.shape[-1], scale=UNIT, dtype=self.dtype, name="factors")(condition)[:, None, None]
        scale, shift = jnp.split(factors, 2, axis=-1)
        return x * (1 + scale) + shift


class Model(base.Part):
    """An image and an instruction to a few tokens.

    Attributes:
      widths: of the convolutions. strides: of each, 2 halves the image's sides; () is 2 everywhere.
      points: P, how many expected coordinates the tokens are made of: the mean place of a softmax over all places
        (spatial softmax, Levine et al. 2016, arXiv:1504.00702). It tells places finer than its grid, and its weights
        do not depend on the image's size. With 0 every place has weights of its own.
      condition: width of what the instruction is made into. Each place in it has weights of its own, since "the red one
        to the blue one" is not "the blue one to the red one"; so instructions must be padded to the same length always.
      tokens: T, how many the image becomes. dim: D, their width.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32.
    """

    widths: tuple[Count, ...] = (24, 48, 64)
    strides: tuple[Count, ...] = ()
    points: Annotated[int, Range(0)] = 0
    condition: Count = 128
    tokens: Count = 8
    dim: Count = 64
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        if not self.widths:
            raise UserError("widths is (); a tower needs at least one convolution")
        if self.strides and len(self.strides) != len(self.widths):
            raise UserError(f"strides is {self.strides} for widths {self.widths}; give one for each, or ()")

    @nn.compact
    def __call__(self, images: jax.Array, words: jax.Array, real: jax.Array) -> jax.Array:
        """Tokens of every image.

        Args:
          images: [B, ..., H, W, 3] uint8, or float in [0, 1].
          words: the instruction's embedded tokens [B, L, E], whatever their scale. real: [B, L], 0 for padding.

        Returns:
          [B, ..., T, D] in `dtype`.
        """
        dtype, (rows, *views, height, width, channels) = jnp.dtype(self.dtype), images.shape
        scale = 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
        x = ((images.astype(jnp.float32) / scale - 0.5) / 0.5).astype(dtype).reshape(-1, height, width, channels)
        condition = self._condition(words, real, dtype)
        condition = jnp.repeat(condition, x.shape[0] // rows, axis=0)
        strides = self.strides or (2,) * len(self.widths)
        for i, (features, stride) in enumerate(zip(self.widths, strides, strict=True)):
            conv = nn.Conv(features, (3, 3), stride, kernel_init=fan_in_uniform, dtype=dtype, name=f"conv_{i}")
            x = conv(x)
            x = LayerNorm(dtype=dtype, name=f"norm_{i}")(x)
            x = nn.relu(Film(dtype, name=f"film_{i}")(x, condition))
        x = self._expected_coordinates(x).astype(dtype) if self.points else x.reshape(len(x), -1)
        x = Linear(self.tokens * self.dim, dtype=dtype, name="read_off")(x)
        return x.reshape(rows, *views, self.tokens, self.dim)

    def _expected_coordinates(self, x: jax.Array) -> jax.Array:
        """x [N, rows, columns, D] -> [N, 2 P] float32: expected coordinates in [-1, 1], down and to the right."""
        count, height, width, _ = x.shape
        logits = Linear(self.points, scale=POINTED, dtype=x.dtype, name="points")(x).astype(jnp.float32)
        share = nn.softmax(logits.reshape(count, height * width, self.points), axis=1)
        down, right = jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width)
        grid = jnp.stack(jnp.meshgrid(down, right, indexing="ij"), axis=-1).reshape(-1, 2)
        return jnp.einsum("npk,pc->nkc", share, grid).reshape(count, -1)

    def _condition(self, words: jax.Array, real: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B, C]"""
        words = LayerNorm(dtype=dtype, name="norm_words")(words) * real[..., None].astype(dtype)
        return nn.relu(Linear(self.condition, scale=UNIT, dtype=dtype, name="words")(words.reshape(len(words), -1)))
