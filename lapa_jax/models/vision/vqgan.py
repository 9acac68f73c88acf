"""The image tokenizer of LAPA-7B: a convolutional VQGAN (Esser et al. 2021) as the Large World Model has it (Liu et al.
2024), by default with its sizes: 256 pixels to 16 x 16 codes of 8192.

Modules are named as in the released file, so that its arrays are the parameters. Everything is float32 at the highest
precision of the device: of two codes that lie nearly as close, rounding would choose.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count
from lapa_jax.models import base

GROUPS = 32
HIGHEST = jax.lax.Precision.HIGHEST

Conv = functools.partial(nn.Conv, precision=HIGHEST)
Norm = functools.partial(nn.GroupNorm, num_groups=GROUPS, epsilon=1e-6)


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, added to the input, which a 1x1 convolution brings to `features`."""

    features: int

    @nn.compact
    def __call__(self, x):
        y = Conv(self.features, (3, 3))(nn.silu(Norm()(x)))
        y = Conv(self.features, (3, 3))(nn.silu(Norm()(y)))
        return y + (x if x.shape[-1] == self.features else Conv(self.features, (1, 1))(x))


class Downsample(nn.Module):
    """Half the side. Zeros are put below and to the right only."""

    @nn.compact
    def __call__(self, x):
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return Conv(x.shape[-1], (3, 3), strides=(2, 2), padding="VALID")(padded)


class Upsample(nn.Module):
    """Twice the side: each cell four times, then a convolution."""

    @nn.compact
    def __call__(self, x):
        return Conv(x.shape[-1], (3, 3))(x.repeat(2, axis=1).repeat(2, axis=2))


class DownsamplingBlock(nn.Module):
    """Residual blocks of a level, and half the side unless it is the last."""

    features: int
    blocks: int
    last: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(self.blocks):
            x = ResnetBlock(self.features)(x)
        return x if self.last else Downsample()(x)


class UpsamplingBlock(nn.Module):
    """Residual blocks of a level, and twice the side unless it is the last."""

    features: int
    blocks: int
    last: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(self.blocks):
            x = ResnetBlock(self.features)(x)
        return x if self.last else Upsample()(x)


class MidBlock(nn.Module):
    """Two residual blocks at the smallest size."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = ResnetBlock(x.shape[-1])(x)
        return x


class Encoder(nn.Module):
    """[N, H, W, 3] -> [N, H / 2^(levels - 1), W / 2^(levels - 1), latent]."""

    widths: tuple[int, ...]
    blocks: int
    latent: int

    @nn.compact
    def __call__(self, x):
        x = Conv(self.widths[0], (3, 3))(x)
        for level, width in enumerate(self.widths):
            x = DownsamplingBlock(width, self.blocks, level == len(self.widths) - 1)(x)
        return Conv(self.latent, (3, 3))(nn.silu(Norm()(MidBlock()(x))))


class Decoder(nn.Module):
    """The way back, with one residual block more a level."""

    widths: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(self, x):
        x = MidBlock()(Conv(self.widths[-1], (3, 3))(x))
        for level, width in enumerate(reversed(self.widths)):
            x = UpsamplingBlock(width, self.blocks + 1, level == len(self.widths) - 1)(x)
        return Conv(3, (3, 3))(nn.silu(Norm()(x)))


class Codebook(nn.Module):
    """f32 [size, width]. Attributes: size, width."""

    size: int
    width: int

    def setup(self):
        self.embeddings = self.param("embeddings", nn.initializers.normal(1.0), (self.size, self.width))

    def nearest(self, x: jax.Array) -> jax.Array:
        """The codes i32 [...] of vectors [..., width], by Euclid's distance, the first of equals."""
        distance = (
            jnp.sum(x**2, -1, keepdims=True)
            + jnp.sum(self.embeddings**2, -1)
            - 2 * jnp.matmul(x, self.embeddings.T, precision=HIGHEST)
        )
        return jnp.argmin(distance, -1).astype(jnp.int32)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The vectors [..., width] of codes i32 [...]."""
        return self.embeddings[codes]


class Model(base.Part):
    """Images to codes and back.

    Attributes:
      widths: channels of the levels, the first at full size, each at half the side of the one before; multiples of 32.
      blocks: residual blocks a level of the encoder.
      latent: channels behind the encoder. codebook_size: K. code_width: of a code.
    """

    widths: tuple[int, ...] = (128, 256, 256, 512, 768)
    blocks: Count = 2
    latent: Count = 64
    codebook_size: Count = 8192
    code_width: Count = 64

    def setup(self):
        self.encoder = Encoder(self.widths, self.blocks, self.latent)
        self.quant_conv = Conv(self.code_width, (1, 1))
        self.quantize = Codebook(self.codebook_size, self.code_width)
        self.post_quant_conv = Conv(self.latent, (1, 1))
        self.decoder = Decoder(self.widths, self.blocks)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        if not self.widths or any(width < 1 or width % GROUPS for width in self.widths):
            raise UserError(f"widths are {self.widths}; they must be multiples of {GROUPS}, the groups of the norms")

    @property
    def cell(self) -> int:
        """Pixels that the side of one code's cell covers."""
        return 2 ** (len(self.widths) - 1)

    @nn.nowrap
    def example(self, batch_size: int) -> np.ndarray:
        """The smallest images that the model takes."""
        return np.zeros((batch_size, self.cell, self.cell, 3), np.uint8)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images as they come back from their codes, see `encode` and `decode`."""
        return self.decode(self.encode(images))

    def features(self, images: jax.Array) -> jax.Array:
        """Images uint8 [N, H, W, 3], sides multiples of `cell` -> f32 [N, H/cell, W/cell, code_width]."""
        if images.dtype != jnp.uint8:
            raise UserError(f"images are {images.dtype}; uint8 is expected")
        # as numpy computes it for the released model: uint8 / 127.5 in float64, of which 256 values remain
        table = jnp.asarray((np.arange(256) / 127.5 - 1.0).astype(np.float32))
        return self.quant_conv(self.encoder(table[images]))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images uint8 [N, H, W, 3] -> codes i32 [N, H/cell, W/cell]."""
        return self.quantize.nearest(self.features(images))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [N, rows, columns] -> images f32 [N, rows * cell, columns * cell, 3] in [-1, 1]."""
        x = self.decoder(self.post_quant_conv(self.quantize.lookup(codes)))
        return jnp.clip(x, -1.0, 1.0)
