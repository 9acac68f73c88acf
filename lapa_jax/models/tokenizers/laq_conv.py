"""Convolutional LAQ: latent actions from frame pairs by a VQ-VAE of strided and transposed convolutions.

The relatives are LAPO (arXiv 2312.10812) and Genie's latent action model (arXiv 2402.15391). The decoder knows the
first frame: from the codes alone, a dozen bits, no frame could be drawn.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers.laq_conv_modules import POOLINGS, FrameDecoder, PairEncoder, equal_parts
from lapa_jax.models.tokenizers.laq_modules import check_choice, check_whole_numbers, image_shape
from lapa_jax.models.tokenizers.laq_pairs import FramePairs


class Model(FramePairs):
    """The convolutional latent action tokenizer; what it shares with others of its kind is explained at `FramePairs`.

    Attributes:
      channels: of the grids after each halving; both sides of the image are divisible by 2^len(channels).
      blocks: residual blocks at each size.
      groups: of group norm; divides all channels.
      pooling: how the last grid becomes N vectors: "projection", by learned maps over the whole grid; "average" over N
        equal parts of it, which forgets where within a part; or "attention" of N learned queries.
      embed: width of the action that the decoder's blocks are told.
    """

    image_size: int | tuple[int, int] = 224
    quant_dim: int = 256
    quantizer: str = "vq"
    codebook_init: str = "data"
    replacement: str = "share"
    channels: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    groups: int = 32
    pooling: str = "projection"
    embed: int = 512

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        common = {"channels": self.channels, "blocks": self.blocks, "groups": self.groups, "dtype": dtype}
        self.encoder = PairEncoder(count=self.code_seq_len, width=self.quant_dim, pooling=self.pooling, **common)
        self.setup_codes()
        scale = 0.1 if self.output == "residual" else 1.0
        self.decoder = FrameDecoder(embed=self.embed, output_scale=scale, **common)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        check_choice("pooling", self.pooling, POOLINGS)
        check_whole_numbers(self, ("blocks", "groups", "embed"))
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

    def raw_delta(self, frames: jax.Array) -> tuple[jax.Array, dict]:
        return self.encoder(frames), self.context(frames[:, 0])

    def context(self, first: jax.Array) -> dict[str, list[jax.Array]]:
        return {"grids": self.decoder.context(first)}

    def pixels(self, context: dict, action: jax.Array) -> jax.Array:
        return self.decoder(context["grids"], action)
