"""Convolutional LAQ: latent actions from frame pairs by a VQ-VAE of strided and transposed convolutions.

The relatives are LAPO (arXiv 2312.10812) and Genie's latent action model (arXiv 2402.15391). The decoder knows the
first frame: from the codes alone, a dozen bits, no frame could be drawn.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count
from lapa_jax.models.tokenizers.laq.frame_pair_model import FramePairModel, from_data
from lapa_jax.models.tokenizers.laq.modules import image_shape
from lapa_jax.models.tokenizers.laq.quantizers import CodebookInit, Quantizer, Replacement
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.conv import GridMaps
from lapa_jax.nn.linear import Linear, fan_in_uniform
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.residual import Down, Norm, ResBlock, conv

__all__ = ["Model", "from_data"]

Pooling = Literal["projection", "average", "attention"]


class PairEncoder(nn.Module):
    """Each frame by the same convolutions to N vectors; the delta is what the second frame has over the first.

    The difference is what makes it say what changes: it is zero for two equal frames, whatever they show. Vectors made
    from both frames stacked as channels say mostly what the first one looks like, which the decoder knows already.

    Attributes: channels, blocks, groups, dtype: as of `Down`; count: N, vectors to make; width: Q, of each;
      pooling: "projection", learned maps over the whole grid; "average" over each of N equal parts of it; or
      "attention" of N learned queries to the cells with learned positions.
    """

    channels: tuple[int, ...]
    blocks: int
    groups: int
    count: int
    width: int
    pooling: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """f32 [B, 2, H, W, 3] -> f32 [B, N, Q]."""
        single = frames.reshape(-1, *frames.shape[2:])
        x = Down(self.channels, self.blocks, self.groups, self.dtype, name="down")(single)[-1]
        x = self._pool(Norm(self.groups, self.dtype, name="norm")(x))
        # Frames went through the convolutions as one batch: every second one is the second of a pair.
        x = x.reshape(-1, 2, self.count, self.width)
        return x[:, 1] - x[:, 0]

    def _pool(self, x: jax.Array) -> jax.Array:
        """[B, rows, columns, C] -> f32 [B, N, Q]. The last layer is float32: a delta is the difference of two frames'
        vectors, in which the rounding of bfloat16 would remain."""
        if self.pooling == "attention":
            return Linear(self.width, name="out")(self._attend(x))
        x = conv(self.width, 3, jnp.float32, "out")(x)
        if self.pooling == "projection":
            return GridMaps(self.count, name="maps")(x)
        batch, height, width, _ = x.shape
        rows, columns = equal_parts((height, width), self.count)
        x = x.reshape(batch, rows, height // rows, columns, width // columns, self.width)
        return x.mean((2, 4)).reshape(batch, self.count, self.width)

    def _attend(self, x: jax.Array) -> jax.Array:
        """[B, rows, columns, C] -> [B, N, C]."""
        batch, channels = x.shape[0], x.shape[-1]
        x = x.reshape(batch, -1, channels)
        x = x + self.param("positions", nn.initializers.normal(1.0), x.shape[1:]).astype(x.dtype)
        queries = self.param("queries", nn.initializers.normal(1.0), (self.count, channels)).astype(x.dtype)
        # One head over all channels: each code is one weighted mean of the cells.
        pool = Attention(1, channels, cosine=True, dtype=self.dtype, name="pool")
        pooled = pool(jnp.broadcast_to(queries, (batch, *queries.shape)), LayerNorm(dtype=self.dtype, name="cells")(x))
        return LayerNorm(dtype=self.dtype, name="pooled")(pooled)


class FrameDecoder(nn.Module):
    """A U-Net over the first frame whose upward blocks are conditioned on the action.

    The action scales and shifts the channels of all cells alike: where something happens is for the first frame to
    say, what happens for the codes. Grids of the way down are added on the way up at the same size. At full size there
    are half as many channels as after the first halving, and no blocks.

    Attributes: channels, blocks, groups, dtype: as of `Down`; embed: width of the embedded action; output_scale: factor
      on the initial weights of the pixels; out_channels: of the result, the colours and what is predicted beside them.
    """

    channels: tuple[int, ...]
    blocks: int
    groups: int
    embed: int
    output_scale: float
    dtype: jnp.dtype
    out_channels: int = 3

    def setup(self):
        widths = (self.channels[0] // 2, *self.channels)
        self.stem = conv(widths[0], 3, self.dtype, None)
        self.down = Down(self.channels, self.blocks, self.groups, self.dtype)
        self.action = [Linear(self.embed, dtype=self.dtype) for _ in range(2)]
        self.mix = [[ResBlock(self.groups, self.dtype) for _ in range(self.blocks)] for _ in self.channels]
        self.up = [nn.ConvTranspose(width, (4, 4), (2, 2), padding="SAME", dtype=self.dtype,
                                    kernel_init=fan_in_uniform) for width in widths[:-1]]  # fmt: skip
        self.norm = Norm(self.groups, self.dtype)
        scaled = lambda *args: self.output_scale * fan_in_uniform(*args)  # noqa: E731
        self.to_pixels = nn.Conv(self.out_channels, (3, 3), padding=1, dtype=jnp.float32, kernel_init=scaled)

    def context(self, first: jax.Array) -> list[jax.Array]:
        """First frames f32 [B, H, W, 3] -> grids from the full size down to the smallest."""
        stem = self.stem(first)
        return [stem, *self.down(stem)]

    def __call__(self, grids: list[jax.Array], action: jax.Array) -> jax.Array:
        """Grids of `context` and an action [B, N, Q] -> f32 [B, H, W, out_channels]."""
        enter, leave = self.action
        condition = nn.silu(leave(nn.silu(enter(action.reshape(action.shape[0], -1)))))
        x = grids[-1]
        for skip, up, blocks in zip(grids[-2::-1], self.up[::-1], self.mix[::-1], strict=True):
            for block in blocks:
                x = block(x, condition)
            # Added and not stacked: the channels on both ways are as many at each size.
            x = up(x) + skip
        return self.to_pixels(self.norm(x).astype(jnp.float32))


def equal_parts(grid: tuple[int, int], count: int) -> tuple[int, int]:
    """The (rows, columns) of `count` equal parts of a grid, as square as possible; of two the one with more rows.

    Raises:
      UserError: the grid has no so many equal parts.
    """
    rows, columns = grid
    options = [(r, count // r) for r in range(count, 0, -1)
               if count % r == 0 and rows % r == 0 and columns % (count // r) == 0]  # fmt: skip
    if not options:
        raise UserError(f"code_seq_len {count} does not divide the grid of {rows}x{columns} cells into equal parts; "
                        "give another length, or pooling 'projection' or 'attention'")
    return min(options, key=lambda parts: abs(math.log(rows * parts[1] / (columns * parts[0]))))


class Model(FramePairModel):
    """The convolutional latent action tokenizer; what it shares with others of its kind: see `FramePairModel`.

    Attributes:
      channels: of the grids after each halving; both sides of the image are divisible by 2^len(channels).
      blocks: residual blocks at each size.
      groups: of group norm; divides all channels.
      pooling: how the last grid becomes N vectors: "projection", by learned maps over the whole grid; "average" over N
        equal parts of it, which forgets where within a part; or "attention" of N learned queries.
      embed: width of the action's embedding, on which the decoder's blocks are conditioned.
    """

    image_size: int | tuple[int, int] = 224
    quant_dim: Count = 256
    quantizer: Quantizer = "vq"
    codebook_init: CodebookInit = "data"
    replacement: Replacement = "share"
    channels: tuple[int, ...] = (64, 128, 256, 512)
    blocks: Count = 2
    groups: Count = 32
    pooling: Pooling = "projection"
    embed: Count = 512

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        common = {"channels": self.channels, "blocks": self.blocks, "groups": self.groups, "dtype": dtype}
        self.encoder = PairEncoder(count=self.code_seq_len, width=self.quant_dim, pooling=self.pooling, **common)
        self.setup_codes()
        scale = 0.1 if self.output == "residual" else 1.0
        self.decoder = FrameDecoder(embed=self.embed, output_scale=scale, out_channels=5 if self.flow else 3, **common)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        self._check_channels()
        self.check_common()
        height, width = image_shape(self.image_size)
        if height % self.cell or width % self.cell:
            raise UserError(f"image_size {self.image_size} is not divisible by {self.cell}, which {len(self.channels)} "
                            "halvings need; give another size or fewer channels")
        rows, columns = self.grid
        if rows * columns * self.channels[-1] <= self.groups:
            raise UserError(f"channels {self.channels} halve {height}x{width} pixels to one cell, where group norm of "
                            f"{self.groups} groups has one number each to norm; give fewer groups or fewer channels")
        if self.pooling == "average":
            equal_parts(self.grid, self.code_seq_len)

    @nn.nowrap
    def _check_channels(self) -> None:
        channels = self.channels
        if not channels or any(not isinstance(c, int) or c < 1 or c % self.groups for c in channels):
            raise UserError(f"channels is {channels!r}; give one or more multiples of groups, {self.groups}")
        if channels[0] % (2 * self.groups):
            raise UserError(f"the first of channels {channels} is halved at full size, and groups, {self.groups}, must "
                            f"still divide it; give a multiple of {2 * self.groups}")

    @property
    def cell(self) -> int:
        return 2 ** len(self.channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last grid."""
        height, width = image_shape(self.image_size)
        return height // self.cell, width // self.cell

    @property
    def frame_encoder(self) -> str:
        return "down"

    @nn.nowrap
    def frame_features(self, params: dict, frames: jax.Array) -> jax.Array:
        down = Down(self.channels, self.blocks, self.groups, jnp.dtype(self.dtype), parent=None)
        return down.apply({"params": params}, frames)[-1]

    def raw_delta(self, frames: jax.Array) -> tuple[jax.Array, dict]:
        return self.encoder(frames), self.context(frames[:, 0])

    def context(self, first: jax.Array) -> dict[str, list[jax.Array]]:
        return {"grids": self.decoder.context(first)}

    def pixels(self, context: dict, action: jax.Array) -> jax.Array:
        return self.decoder(context["grids"], action)
