"""The latent action model of UniVLA (Bu et al. 2025, arXiv:2505.06111), its second stage: what happens in a pair of
frames as two groups of codes, those of the task and those of everything else, over features of DINOv2.

[4 task queries][4 background queries][patches] of each frame pass through blocks that attend within a frame and then
over the two frames, causally. Where the second frame's queries end up is quantised, each group by a codebook of its
own. The decoder predicts the second frame's features from those of the first and all eight vectors; labels are the
codes of the task alone. `tools/import_weights.py univla_lam` makes such a model of the released checkpoint.

In the released model the background was learned first, by a stage whose decoder was told the instruction, and its
codebook stays as it is in the second. Trained from scratch, nothing tells the two groups apart.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Range
from lapa_jax.models.tokenizers.laq.frame_pair_model import FramePairModel, from_data
from lapa_jax.models.tokenizers.laq.modules import image_shape
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.feedforward import exact_gelu
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.patches import whole_patches
from lapa_jax.nn.quantizers.vq import VQ
from lapa_jax.nn.transformer import run_stack
from lapa_jax.nn.vit import VisionTower

__all__ = ["Model", "from_data"]


class Block(nn.Module):
    """Attention within a frame, over the frames (`temporal`), and a feed-forward, each of the normalised input and
    added to it. Attributes: see `Stack`."""

    heads: int
    temporal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """[B, T, N, D] -> ([B, T, N, D], None) for the scan."""
        rows, frames, tokens, dim = x.shape
        norm = lambda name, y: LayerNorm(dtype=self.dtype, name=name)(y)  # noqa: E731
        attention = lambda name: Attention(self.heads, dim // self.heads, out_bias=True, dtype=self.dtype, name=name)  # noqa: E731
        within = norm("spatial_norm", x).reshape(rows * frames, tokens, dim)
        x = x + attention("spatial")(within).reshape(x.shape)
        if self.temporal:
            over = norm("temporal_norm", x).swapaxes(1, 2).reshape(rows * tokens, frames, dim)
            causal = jnp.broadcast_to(jnp.tril(jnp.ones((frames, frames), bool)), (len(over), frames, frames))
            over = attention("temporal")(over, mask=causal).reshape(rows, tokens, frames, dim)
            x = x + over.swapaxes(1, 2)
        y = exact_gelu(Linear(4 * dim, dtype=self.dtype, name="up")(norm("feedforward_norm", x)))
        return x + Linear(dim, dtype=self.dtype, name="down")(y), None


class Stack(nn.Module):
    """Norm, linear, norm, positions and blocks; without a norm behind them.

    Attributes: dim: width. depth: blocks. heads: of the attention. temporal: whether blocks attend over frames too.
      dtype: of the computation. remat: see `REMAT_POLICIES`.
    """

    dim: int
    depth: int
    heads: int
    temporal: bool
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, N, C] -> [B, T, N, dim]."""
        x = Linear(self.dim, dtype=self.dtype, name="embed")(LayerNorm(dtype=self.dtype, name="norm_in")(x))
        x = LayerNorm(dtype=self.dtype, name="norm_embed")(x)
        x = x + jnp.asarray(waves(x.shape[2], self.dim), self.dtype)
        block = Block(self.heads, self.temporal, self.dtype, name="layers")
        return run_stack(block, self.depth, self.remat, x)[0]


def waves(count: int, dim: int) -> np.ndarray:
    """f32 [count, dim]: sine and cosine of each position in turns, of wave lengths from 2 pi to 10000 times that."""
    angle = np.arange(count)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(count, -1)[:, :dim].astype(np.float32)


class Model(FramePairModel):
    """The latent action model; what it shares with others of its kind is explained at `FramePairModel`.

    Losses: "reconstruction" of the features, "codebook" and "commitment" of the task's codes, and the same of the
    others, "background_codebook" and "background_commitment".

    Attributes:
      tower: `vision.dinov2`; no gradient reaches it. `config.init_from.tower` gives its weights, unless the whole model
        begins with another run's.
      dim, heads: of both stacks. encoder_depth, decoder_depth: their blocks.
      code_seq_len: N, codes of the task, and as many of the background. background_size: codes of its codebook.
      remat: "none", "dots" or "full": what the backward pass recomputes to save memory.
    """

    image_size: int | tuple[int, int] = 224
    quant_dim: int = 128
    codebook_size: int = 16
    quantizer: str = "vq"
    codebook_update: str = "gradient"
    codebook_init: str = "data"
    replacement: str = "none"
    tower: VisionTower | None = None
    dim: Count = 768
    heads: Count = 12
    encoder_depth: Count = 12
    decoder_depth: Count = 12
    background_size: Annotated[int, Range(2)] = 16
    remat: Literal["none", "dots", "full"] = "none"

    def setup(self):
        queries, shape = nn.initializers.uniform(2.0), (self.code_seq_len, self.tower.dim)
        centred = lambda *args: queries(*args) - 1  # noqa: E731
        self.task_queries = self.param("task_queries", centred, shape)
        self.background_queries = self.param("background_queries", centred, shape)
        dtype = jnp.dtype(self.dtype)
        self.encoder = Stack(self.dim, self.encoder_depth, self.heads, True, dtype, self.remat)
        self.to_task, self.to_background = Linear(self.quant_dim), Linear(self.quant_dim)
        self.setup_codes()
        self.background = VQ(self.background_size, update="gradient", codebook_init=self.codebook_init)
        self.from_task, self.from_background = Linear(self.dim, dtype=dtype), Linear(self.dim, dtype=dtype)
        self.from_patches = Linear(self.dim, dtype=dtype)
        self.decoder = Stack(self.dim, self.decoder_depth, self.heads, False, dtype, self.remat)
        self.to_features = Linear(self.tower.dim, dtype=dtype)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        if self.tower is None:
            raise UserError('tower is missing; give a model of features, {"name": "vision.dinov2", ...}')
        self.check_common()
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"dim {self.dim} is no even multiple of the heads, {self.heads}")
        needed = {"quantizer": "vq", "codebook_update": "gradient", "view_shift": 0, "output": "linear",
                  "normalization": "none"}  # fmt: skip
        for field, value in needed.items():
            if getattr(self, field) != value:
                raise UserError(f"{field} is {getattr(self, field)!r}; this model predicts features by one codebook "
                                f"that learns by gradient: set it to {value!r}")  # fmt: skip
        whole_patches(image_shape(self.image_size), self.tower.patch)

    @property
    def cell(self) -> int:
        return self.tower.patch

    @property
    def predicts_images(self) -> bool:
        return False

    def observe(self, frames: jax.Array) -> jax.Array:
        x = jax.lax.stop_gradient(self.tower(frames)).astype(jnp.float32)
        return x.reshape(*frames.shape[:-3], *whole_patches(frames.shape[-3:-1], self.tower.patch), -1)

    def raw_delta(self, frames: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        task, background = self.deltas(frames)
        vectors, _, losses, _ = self.background(background, train=False)
        return task, {"background": vectors, "background_losses": losses}

    def deltas(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [B, 2, rows, columns, C] -> deltas f32 [B, N, Q] of the task and of the background."""
        rows, frames = features.shape[:2]
        queries = jnp.concatenate([self.task_queries, self.background_queries]).astype(features.dtype)
        queries = jnp.broadcast_to(queries, (rows, frames, *queries.shape))
        x = jnp.concatenate([queries, features.reshape(rows, frames, -1, features.shape[-1])], axis=2)
        states, count = self.encoder(x)[:, -1].astype(jnp.float32), self.code_seq_len
        return self.to_task(states[:, :count]), self.to_background(states[:, count : 2 * count])

    def context(self, first: jax.Array) -> dict[str, jax.Array]:
        """Without a second frame the background is that of a pair of equal frames: nothing happens in it."""
        _, context = self.raw_delta(jnp.stack([first, first], axis=1))
        return context

    def pixels(self, context: dict[str, jax.Array], action: jax.Array) -> jax.Array:
        first = context["first"]
        patches = self.from_patches(first.reshape(first.shape[0], -1, first.shape[-1]))
        vectors = (self.from_task(action), self.from_background(context["background"]), patches)
        x = self.decoder(jnp.concatenate(vectors, axis=1)[:, None])[:, 0]
        return self.to_features(x[:, -patches.shape[1] :]).astype(jnp.float32).reshape(first.shape)

    @nn.nowrap
    def further_losses(self, view: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {f"background_{name}": value for name, value in view["background_losses"].items()}
