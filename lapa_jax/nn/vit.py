"""Vision transformers as SigLIP and DINOv2 have them: patches, pre-norm blocks with biases, learned positions on a grid
that are interpolated to other image sizes."""

import functools
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Dtype, Range, Remat
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.feedforward import exact_gelu
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.patches import to_patches, whole_patches
from lapa_jax.nn.transformer import run_stack

GELU = {"exact": exact_gelu, "tanh": functools.partial(jax.nn.gelu, approximate=True)}


class VitBlock(nn.Module):
    """Self-attention and a feed-forward of two layers, each of the normalised input and added to it.

    Attributes:
      heads: of the attention. hidden: width of the feed-forward. gelu: "exact" or "tanh". eps: of the norms.
      layer_scale: whether each branch is multiplied by a learned factor per feature (Touvron et al. 2021).
      dtype: of the computation; parameters, norms' statistics and softmax are float32.
    """

    heads: int
    hidden: int
    gelu: str
    layer_scale: bool
    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """[N, L, D] -> ([N, L, D], None) for the scan."""
        norm = lambda name, y: LayerNorm(dtype=self.dtype, eps=self.eps, name=name)(y)  # noqa: E731
        dim = x.shape[-1]
        attention = Attention(self.heads, dim // self.heads, use_bias=True, dtype=self.dtype, name="attention")
        x = x + self._scaled("attention_scale", attention(norm("attention_norm", x)))
        y = Linear(self.hidden, dtype=self.dtype, name="up")(norm("feedforward_norm", x))
        y = Linear(dim, dtype=self.dtype, name="down")(GELU[self.gelu](y))
        return x + self._scaled("feedforward_scale", y), None

    def _scaled(self, name: str, y: jax.Array) -> jax.Array:
        if not self.layer_scale:
            return y
        return y * self.param(name, nn.initializers.constant(1e-5), y.shape[-1:]).astype(self.dtype)


class VisionTower(nn.Module):
    """Images to features of patches; `models/vision` holds the models, which differ in defaults and constants.

    Attributes:
      image_size: side of the square images that the learned positions belong to; others may be given.
      patch: side of the patches in pixels. It need not divide the image: see `whole_patches`.
      dim, depth, heads, hidden, eps: sizes and the norms' eps.
      registers: learned tokens without a place in the image (Darcet et al. 2023), dropped in the output.
      layer: -1 for the last block's features behind the final norm, -2 for those of the block before, without a norm.
        Parameters that this leaves without use are left out.
      gelu: "exact" or "tanh"; None for the one that the model was trained with. Some released models run another: timm
        0.9, which Prismatic and OpenVLA pin, builds SigLIP with the exact one.
      mean, std: per channel, of images in [0, 1], taken out before anything else; None for the model's.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32. remat: see `REMAT_POLICIES`.

    Constants of the model:
      MEAN, STD, GELU_KIND: what `mean`, `std` and `gelu` are where they are None.
      LAYER_SCALE, CLASS_TOKEN: the block's scales; whether a class token goes first.
    """

    image_size: Count
    patch: Count
    dim: Count
    depth: Count
    heads: Count
    hidden: Count
    eps: float = 1e-6
    registers: Annotated[int, Range(0)] = 0
    layer: int = -1
    gelu: Literal[None, "exact", "tanh"] = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dtype: Dtype = "float32"
    remat: Remat = "none"

    MEAN: ClassVar[tuple[float, float, float]]
    STD: ClassVar[tuple[float, float, float]]
    GELU_KIND: ClassVar[str]
    LAYER_SCALE: ClassVar[bool]
    CLASS_TOKEN: ClassVar[bool]

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        whole_patches((self.image_size, self.image_size), self.patch)
        if self.dim % self.heads:
            raise UserError(f"dim {self.dim} is not a multiple of the heads, {self.heads}")
        if self.layer not in (-1, -2) or self.depth + self.layer < 0:
            raise UserError(f"layer is {self.layer} with {self.depth} blocks; give -1 (last) or -2 (second to last)")
        if self.registers and not self.CLASS_TOKEN:
            raise UserError(f"registers is {self.registers}; this model has none")
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None and (len(value) != 3 or (name == "std" and min(value) <= 0)):
                raise UserError(f"{name} is {value!r}; three numbers are needed, one a channel, above 0 for std")

    @nn.compact
    def __call__(self, images: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """Features of every patch.

        Args:
          images: [..., H, W, 3] uint8, or float in [0, 1].
          seen: i32 [..., V], numbers of the patches that the tower sees, as a masked autoencoder wants it; None: all.

        Returns:
          [..., H//patch * W//patch, dim] in `dtype`, patches in row-major order, or [..., V, dim] in that of `seen`.

        Raises:
          UserError: an image smaller than a patch.
        """
        *batch, height, width, channels = images.shape
        grid, dtype = whole_patches((height, width), self.patch), jnp.dtype(self.dtype)
        x = self._normalized(images).reshape(-1, height, width, channels)
        x = Linear(self.dim, dtype=dtype, name="embed")(to_patches(x, self.patch))
        x, first = self._with_positions_and_tokens(x, grid), int(self.CLASS_TOKEN) + self.registers
        if seen is not None:
            patches = jnp.take_along_axis(x[:, first:], seen.reshape(len(x), -1, 1), axis=1)
            x = jnp.concatenate([x[:, :first], patches], axis=1)
        gelu = self.gelu or self.GELU_KIND
        block = VitBlock(self.heads, self.hidden, gelu, self.LAYER_SCALE, self.eps, dtype, name="layers")
        x, _ = run_stack(block, self.depth + 1 + self.layer, self.remat, x)
        x = x[:, first:]
        if self.layer == -1:
            x = LayerNorm(dtype=dtype, eps=self.eps, name="norm_out")(x)
        return x.reshape(*batch, *x.shape[1:])

    def _normalized(self, images: jax.Array) -> jax.Array:
        scale = 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
        mean, std = jnp.asarray(self.mean or self.MEAN), jnp.asarray(self.std or self.STD)
        return (images.astype(jnp.float32) / scale - mean) / std

    def _with_positions_and_tokens(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """[N, L, D] with positions, behind the class token, which has one too, and the registers, which have none."""
        count, side = int(self.CLASS_TOKEN), self.image_size // self.patch
        new = nn.initializers.normal(0.02)
        table = self.param("positions", starting_positions, count, side, self.dim)
        patches = resize_positions(table[count:], grid, antialias=self.registers > 0)
        tokens = []
        if self.CLASS_TOKEN:
            tokens.append(self.param("class_token", new, (1, self.dim)) + table[:1])
        if self.registers:
            tokens.append(self.param("registers", new, (self.registers, self.dim)))
        tokens = [jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape)) for token in tokens]
        return jnp.concatenate([*tokens, x + patches.astype(x.dtype)], axis=1)


def starting_positions(key: jax.Array, tokens: int, side: int, dim: int) -> jax.Array:
    """Learned positions begin as sines and cosines of rows and columns (Beyer et al. 2022), f32 [tokens + side^2, dim].

    Random ones of the usual size, 0.02, are lost beside features of patches: a tower that is trained from scratch would
    first have to find out where things are. The `tokens` before the patches, which lie nowhere, begin at random.
    """
    quarter = -(-dim // 4)
    turns = np.arange(side)[:, None] / 10000 ** (np.arange(quarter) / quarter)
    waves = np.concatenate([np.sin(turns), np.cos(turns)], axis=1)  # [side, dim / 2]
    rows, columns = np.repeat(waves, side, axis=0), np.tile(waves, (side, 1))
    grid = np.concatenate([rows, columns], axis=1)[:, :dim].astype(np.float32)
    return jnp.concatenate([0.02 * jax.random.normal(key, (tokens, dim)), jnp.asarray(grid)])


def resize_positions(table: jax.Array, grid: tuple[int, int], *, antialias: bool) -> jax.Array:
    """Positions of a square grid, f32 [S * S, D], interpolated bicubically to those of another, [rows * columns, D].

    Two conventions exist and both are kept, so that features equal those of the originals at any size: without
    antialiasing the cubic's parameter is -0.75 and cells beyond the border repeat those at the border (SigLIP, DINOv2);
    with it the parameter is -0.5, the kernel widens when the grid shrinks, and what lies beyond the border does not
    count (DINOv2 with registers). Half-pixel centres in both.
    """
    side = int(len(table) ** 0.5)
    if grid == (side, side):
        return table
    rows, columns = (jnp.asarray(_bicubic(side, size, antialias)) for size in grid)
    cells = table.reshape(side, side, -1)
    return jnp.einsum("rg,ch,ghd->rcd", rows, columns, cells, precision="highest").reshape(grid[0] * grid[1], -1)


def _bicubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """f32 [new, old], the share of each old cell in each new one."""
    stretch = max(old / new, 1.0) if antialias else 1.0
    shares = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        reach = int(np.ceil(2 * stretch)) + 1
        for j in range(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 1):
            if 0 <= j < old or not antialias:
                shares[i, min(max(j, 0), old - 1)] += _cubic((j - centre) / stretch, -0.5 if antialias else -0.75)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def _cubic(x: float, a: float) -> float:
    """The cubic convolution kernel (Keys 1981) with parameter a; 0 beyond 2."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
