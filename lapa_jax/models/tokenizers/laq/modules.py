"""The two halves of LAQ: the encoder of frame pairs and the decoder."""

import math
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.nn.conv import Downsample, GridMaps, code_grid
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.patches import from_patches, to_patches, whole_patches
from lapa_jax.nn.position import ContinuousPositionBias
from lapa_jax.nn.residual import Down
from lapa_jax.nn.transformer import Transformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Stem = Literal["patches", "conv"]


def image_shape(image_size) -> tuple[int, int]:
    """(height, width) of an image size that is one number or a pair."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def to_unit_range(frames: jax.Array, expected: tuple[int, ...]) -> jax.Array:
    """uint8 in 0..255 or float in [0, 1] -> f32 in [0, 1].

    Raises:
      UserError: another dtype, or a shape other than `expected` behind the batch axis.
    """
    if tuple(frames.shape[1:]) != expected:
        raise UserError(f"frames have shape {tuple(frames.shape)}; the model takes {('B', *expected)}")
    if frames.dtype == jnp.uint8:
        return frames.astype(jnp.float32) / 255
    if jnp.issubdtype(frames.dtype, jnp.floating):
        return frames.astype(jnp.float32)
    raise UserError(f"frames have dtype {frames.dtype}; give uint8 in 0..255 or floats in [0, 1]")


def check_image_size(size) -> None:
    """Raises UserError unless the size is one number or a pair, of at least 1."""
    if not isinstance(size, int) and len(size) != 2:
        raise UserError(f"image_size is {size}; give one number or (height, width)")
    for side in image_shape(size):
        if not isinstance(side, int) or side < 1:
            raise UserError(f"image_size is {side!r}; it must be a whole number of at least 1")


def check_encoder(model) -> None:
    """Refuses sizes that the encoder cannot have; `model` has the fields of `PairEncoder`, by the same names."""
    check_image_size(model.image_size)
    if model.mlp_ratio * 2 / 3 * model.dim < 1:
        raise UserError(f"mlp_ratio {model.mlp_ratio} leaves no feature of {model.dim} to the feed-forward; give more")
    code_grid(whole_patches(image_shape(model.image_size), model.patch_size), model.code_seq_len)
    if model.stem == "conv":
        halvings = halvings_to(model.patch_size)
        if not halvings:
            raise UserError(f"stem 'conv' halves images until a patch is a cell, and patch_size is {model.patch_size}; "
                            "give 2, 4, 8, 16, 32 or 64, or stem 'patches'")  # fmt: skip
        if model.dim % 2**halvings:
            raise UserError(f"stem 'conv' halves dim once for each of {halvings} halvings, and {model.dim} is not "
                            f"divisible by {2**halvings}; give such a dim or stem 'patches'")  # fmt: skip


def halvings_to(patch_size: int) -> int:
    """How many halvings make a patch a cell; 0 where none do: it is one pixel, or no power of two."""
    return patch_size.bit_length() - 1 if patch_size.bit_count() == 1 else 0


class PatchEmbedding(nn.Module):
    """Patches to tokens: layer norm, linear, layer norm. Attributes: patch_size, dim (of a token), dtype."""

    patch_size: int
    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """[..., H, W, 3] -> [..., patches, dim]."""
        x = to_patches(frames, self.patch_size)
        x = Linear(self.dim, dtype=self.dtype, name="project")(LayerNorm(dtype=self.dtype, name="norm_in")(x))
        return LayerNorm(dtype=self.dtype, name="norm_out")(x)


class ConvEmbedding(nn.Module):
    """Residual convolutions that halve the image until each patch is a cell, then linear and layer norm to tokens.

    A patch's linear map sees a small shift of what the patch shows as other content; convolutions see a motion (as
    Xiao et al. 2021, arXiv 2106.14881, found stems of convolutions easier to train). Channels double with each halving.

    Attributes: as of `PatchEmbedding`.
    """

    patch_size: int
    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """[..., H, W, 3] -> [..., patches, dim]."""
        rows, columns = whole_patches(frames.shape[-3:-1], self.patch_size)
        x = frames[..., : rows * self.patch_size, : columns * self.patch_size, :]
        x = x.reshape(-1, *x.shape[-3:])
        halvings = halvings_to(self.patch_size)
        channels = tuple(self.dim >> level for level in range(halvings, 0, -1))
        x = Down(channels, 1, math.gcd(8, channels[0]), self.dtype, name="down")(x)[-1]
        x = x.reshape(*frames.shape[:-3], rows * columns, -1)
        return LayerNorm(dtype=self.dtype, name="norm_out")(Linear(self.dim, dtype=self.dtype, name="project")(x))


EMBEDDINGS = {"patches": PatchEmbedding, "conv": ConvEmbedding}


class PairEncoder(nn.Module):
    """Frame pairs to deltas: tokens of both frames see each other, each frame is reduced to the grid of codes, and the
    delta is what the second has over the first.

    Attributes: as of `lapa_jax.models.tokenizers.laq.Model`.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    dim: int
    quant_dim: int
    code_seq_len: int
    spatial_depth: int
    temporal_depth: int
    heads: int
    dim_head: int
    layout: str
    pooling: str
    dtype: str
    remat: str
    mlp_ratio: float = 4.0
    stem: str = "patches"

    @classmethod
    def of(cls, model, **other) -> "PairEncoder":
        """The encoder of a model that has these fields by the same names, but for `other`."""
        fields = ("image_size", "patch_size", "dim", "quant_dim", "code_seq_len", "spatial_depth", "temporal_depth",
                  "heads", "dim_head", "layout", "pooling", "mlp_ratio", "stem", "dtype", "remat")  # fmt: skip
        return cls(**{field: getattr(model, field) for field in fields} | other)

    def setup(self):
        self.grid = whole_patches(image_shape(self.image_size), self.patch_size)
        dtype, (rows, columns) = jnp.dtype(self.dtype), self.grid
        official = self.layout == "official"
        common = {"heads": self.heads, "dim_head": self.dim_head, "raw_kv": official, "dtype": dtype}
        common |= {"mlp_ratio": self.mlp_ratio, "remat": self.remat}
        self.patch_embedding = EMBEDDINGS[self.stem](self.patch_size, self.dim, dtype)
        self.position_bias = ContinuousPositionBias(self.dim, self.heads)
        self.spatial = Transformer(self.spatial_depth, view=(2, rows, columns), **common)
        # The temporal stack sees tokens as [B * rows * columns, 2, D]. The official convolution reads this memory as
        # (2, rows, columns), which scrambles time and space.
        view, axes = ((2, rows, columns), (1, 2, 3)) if official else ((rows, columns, 2), (3, 1, 2))
        self.temporal = Transformer(self.temporal_depth, view=view, axes=axes, **common)
        # float32: a delta is the difference of two frames' vectors, in which the rounding of bfloat16 would remain.
        self.project = Linear(self.quant_dim)
        if self.pooling == "maps":
            self.downsample = GridMaps(self.code_seq_len)
        else:
            self.downsample = Downsample(self.grid, code_grid(self.grid, self.code_seq_len))

    def embed(self, frames: jax.Array) -> jax.Array:
        """f32 [..., H, W, 3] -> tokens [..., patches, dim] of each frame by itself."""
        return self.patch_embedding(frames)

    def bias(self) -> jax.Array:
        """The position bias [heads, patches, patches] that encoder and decoder share."""
        return self.position_bias(self.grid)

    def mix(self, tokens: jax.Array, bias: jax.Array) -> jax.Array:
        """Tokens [B, 2, patches, dim] of both frames after they have seen each other, the same shape."""
        batch = tokens.shape[0]
        x = self.spatial(einops.rearrange(tokens, "b frames patches d -> (b frames) patches d"), bias=bias)
        x = self.temporal(einops.rearrange(x, "(b frames) patches d -> (b patches) frames d", b=batch))
        return einops.rearrange(x, "(b patches) frames d -> b frames patches d", b=batch)

    def delta(self, mixed: jax.Array) -> jax.Array:
        """Mixed tokens [B, 2, patches, dim] -> f32 [B, code_seq_len, quant_dim], what the codes are made from."""
        batch = mixed.shape[0]
        x = self.downsample(self.project(mixed).reshape(batch * 2, *self.grid, -1))
        x = x.reshape(batch, 2, self.code_seq_len, self.quant_dim)
        # Equal frames have the delta 0, whatever they show: appearance cancels, change remains.
        return x[:, 1] - x[:, 0]


class FrameDecoder(nn.Module):
    """Tokens of the first frame attend to the quantised action and become pixels of the second frame.

    Attributes: as of `lapa_jax.models.tokenizers.laq.Model`; output_scale: factor on the initial weights of the pixels;
      channels: of a pixel.
    """

    grid: tuple[int, int]
    patch_size: int
    dim: int
    depth: int
    heads: int
    dim_head: int
    layout: str
    output_scale: float
    dtype: str
    remat: str
    channels: int = 3
    mlp_ratio: float = 4.0

    @nn.compact
    def __call__(self, tokens: jax.Array, action: jax.Array, bias: jax.Array) -> jax.Array:
        """tokens: [B, patches, dim], action: [B, N, Q], bias: [heads, patches, patches] -> f32 [B, H, W, channels]."""
        official, dtype = self.layout == "official", jnp.dtype(self.dtype)
        batch, count, width = action.shape
        if official:
            # The official code reads [N, Q] as [Q, N] and transposes: every token mixes features of all.
            action = einops.rearrange(action.reshape(batch, width, count), "b width count -> b count width")
        context = Linear(self.dim, dtype=dtype, name="project")(action)
        if not official:
            # All positions share one codebook and attention ignores order: without this the decoder would see a bag
            # of codes. (In the official layout the mixing above happens to tell positions apart.)
            context = context + self.param("positions", nn.initializers.normal(1.0), (count, self.dim)).astype(dtype)
        stack = Transformer(
            self.depth, self.heads, self.dim_head, view=(1, *self.grid), cross=True, raw_kv=official,
            mlp_ratio=self.mlp_ratio, dtype=dtype, remat=self.remat, name="stack",
        )  # fmt: skip
        x = stack(tokens, bias=bias, context=context)
        # Small initial weights, where the output is added to the first frame: training starts at copying it.
        x = Linear(self.channels * self.patch_size**2, scale=self.output_scale, name="to_pixels")(x)
        return from_patches(x, self.grid, self.patch_size)


class ActionHead(nn.Module):
    """Quantised deltas to the action between the two frames: one hidden layer, all positions side by side.

    Attributes: action_dim: A. hidden: width of the layer.
    """

    action_dim: int
    hidden: int = 64

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """f32 [B, N, Q] -> f32 [B, A]."""
        x = nn.silu(Linear(self.hidden, name="hidden")(vectors.reshape(vectors.shape[0], -1)))
        return Linear(self.action_dim, name="out")(x)
