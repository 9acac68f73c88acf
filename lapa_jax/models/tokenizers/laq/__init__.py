"""LAQ: discrete latent actions from frame pairs (LAPA, arXiv 2410.11758).

A spatial and a temporal transformer turn two frames into a delta of a few vectors; each is quantised with one shared
codebook (NSVQ), and a decoder predicts the second frame from the first one and these codes alone. The codes must
therefore say what changed: the latent action.

With `target="features"` a vision tower looks at the frames first, as in UniVLA (arXiv 2505.06111): a grid of its
features takes the place of the pixels on both sides.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Range, Remat
from lapa_jax.models.tokenizers.laq.frame_pair_model import FramePairModel, from_data
from lapa_jax.models.tokenizers.laq.modules import (
    EMBEDDINGS,
    FrameDecoder,
    PairEncoder,
    Stem,
    check_encoder,
    check_image_size,
    image_shape,
)
from lapa_jax.nn.patches import patch_grid, whole_patches
from lapa_jax.nn.vit import VisionTower

__all__ = ["Model", "from_data"]


class Model(FramePairModel):
    """The latent action tokenizer; what it shares with others of its kind is explained at `FramePairModel`.

    Attributes:
      patch_size: side of a patch; divides both sides of the image where pixels are predicted.
      dim: width of a token.
      code_seq_len: codes per pair, N; they cover the image as a grid (4 is 2x2).
      spatial_depth, temporal_depth, decoder_depth: blocks of the three stacks.
      heads: of every attention. dim_head: width of each of them.
      mlp_ratio: width of the feed-forward relative to that of a token, as if it had no gate; 4 is the published one,
        see `nn.feedforward.GEGLU`.
      layout: "fixed", or "official" as released weights need it, with three quirks of the official code: the temporal
        stack's neighbour convolution sees time and space scrambled, the quantised vectors reach the decoder with
        tokens and features interleaved, and keys and values come from un-normalised tokens.
      stem: how a frame becomes tokens: "patches", the published linear map of each patch, or "conv", convolutions that
        halve the image until a patch is a cell.
      decoder_context: what the decoder knows of the first frame: the encoder's "patch_embedding" of it, without
        gradient; its "own" embedding, by the same kind of stem, which reconstruction trains; or the "encoder" output,
        a trap kept for comparison: that has seen the second frame, so the codes are left unused. In `decode`, where
        there is no second frame, it is that of a pair of equal frames.
      pooling: how tokens become the delta: "conv", the official convolutions, by which each code sees a part of the
        image, or "maps" over the whole of it.
      remat: "none", "dots" or "full": what the backward pass recomputes to save memory.
      target: what is encoded and predicted of the frames: their "pixels", or the "features" that `tower` gives of each
        patch, standardised over each patch's features.
      tower: of "features": a model of `models/vision`, {"name": "vision.dinov2", ...}, with patches of `patch_size`
        pixels. No gradient reaches it; `config.init_from.tower` gives its weights.
    """

    patch_size: Count = 32
    dim: Count = 1024
    spatial_depth: Count = 8
    temporal_depth: Count = 8
    decoder_depth: Count = 8
    heads: Count = 16
    dim_head: Count = 64
    mlp_ratio: Annotated[float, Range(above=0)] = 4.0
    layout: Literal["fixed", "official"] = "fixed"
    stem: Stem = "patches"
    decoder_context: Literal["patch_embedding", "own", "encoder"] = "patch_embedding"
    pooling: Literal["conv", "maps"] = "conv"
    remat: Remat = "none"
    target: Literal["pixels", "features"] = "pixels"
    tower: VisionTower | None = None

    def setup(self):
        # To encoder and decoder a grid of features is an image of many channels, with patches of one pixel.
        sizes = {} if self.predicts_images else {"image_size": self.grid, "patch_size": 1}
        patch_size, channels = (self.patch_size, 5 if self.flow else 3) if self.predicts_images else (1, self.tower.dim)
        self.encoder = PairEncoder.of(self, **sizes)
        if self.decoder_context == "own":
            self.embedding = EMBEDDINGS[self.stem](patch_size, self.dim, jnp.dtype(self.dtype))
        self.setup_codes()
        self.decoder = FrameDecoder(
            self.grid, patch_size, self.dim, self.decoder_depth, self.heads, self.dim_head, self.layout,
            0.1 if self.output == "residual" else 1.0, self.dtype, self.remat, channels, self.mlp_ratio,
        )  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        check_image_size(self.image_size)
        if self.predicts_images:
            patch_grid(image_shape(self.image_size), self.patch_size)  # the decoder's patches must fill the image
        check_encoder(self)
        self.check_common()
        if self.view_shift and self.decoder_context == "encoder":
            raise UserError(f"view_shift {self.view_shift} needs decoder_context 'patch_embedding' or 'own': the "
                            "decoder's view has no encoder output")
        if self.consistency == "instead" and self.decoder_context == "encoder":
            raise UserError("consistency 'instead' needs decoder_context 'patch_embedding' or 'own': through the "
                            "encoder's output pixels would train the codes after all")
        self._check_target()

    @nn.nowrap
    def _check_target(self) -> None:
        if self.predicts_images != (self.tower is None):
            raise UserError("target 'features' and a tower go together; set both, or target 'pixels' and tower None")
        if self.predicts_images:
            return
        if self.stem != "patches":
            raise UserError(f"stem is {self.stem!r}, which is for pixels; set it to 'patches'")
        if self.patch_size != self.tower.patch:
            raise UserError(f"patch_size is {self.patch_size}, the tower's patch {self.tower.patch}; give the tower's")
        if self.normalization != "none":
            raise UserError(f"normalization is {self.normalization!r}, which is for pixels; set it to 'none'")
        if self.output == "tanh":
            raise UserError("output 'tanh' cannot reach features; use 'linear' or 'residual'")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return whole_patches(image_shape(self.image_size), self.patch_size)

    @property
    def cell(self) -> int:
        return self.patch_size

    @property
    def predicts_images(self) -> bool:
        return self.target == "pixels"

    @property
    def without_gradient(self) -> tuple[str, ...]:
        return () if self.predicts_images else ("tower/.*",)

    def observe(self, frames: jax.Array) -> jax.Array:
        if self.predicts_images:
            return frames
        x = jax.lax.stop_gradient(self.tower(frames)).astype(jnp.float32)
        # Towers' features differ in size from model to model; 1e-6 is for a patch whose features are all equal.
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        return x.reshape(*frames.shape[:-3], *self.grid, -1)

    @property
    def frame_encoder(self) -> str:
        return "patch_embedding"

    @nn.nowrap
    def frame_features(self, params: dict, frames: jax.Array) -> jax.Array:
        embedding = EMBEDDINGS[self.stem](self.patch_size, self.dim, jnp.dtype(self.dtype), parent=None)
        return embedding.apply({"params": params}, frames).reshape(len(frames), *self.grid, self.dim)

    def raw_delta(self, frames: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        tokens = self.encoder.embed(frames)
        mixed = self.encoder.mix(tokens, self.encoder.bias())
        return self.encoder.delta(mixed), {"context": self._seen(frames[:, 0], tokens[:, 0], mixed)}

    def context(self, first: jax.Array) -> dict[str, jax.Array]:
        tokens, mixed = self.encoder.embed(first[:, None]), None
        if self.decoder_context == "encoder":
            mixed = self.encoder.mix(jnp.concatenate([tokens, tokens], 1), self.encoder.bias())
        return {"context": self._seen(first, tokens[:, 0], mixed)}

    def _seen(self, first: jax.Array, tokens: jax.Array, mixed: jax.Array | None) -> jax.Array:
        """What the decoder knows of first frames, [B, patches, dim]: of their encoder's tokens, or those of both
        frames mixed, [B, 2, patches, dim]."""
        if self.decoder_context == "own":
            return self.embedding(first)
        return mixed[:, 0] if self.decoder_context == "encoder" else jax.lax.stop_gradient(tokens)

    def pixels(self, context: dict[str, jax.Array], action: jax.Array) -> jax.Array:
        bias = self.encoder.bias()
        if self.consistency == "instead":
            bias = jax.lax.stop_gradient(bias)  # it is the encoder's too
        return self.decoder(context["context"], action, bias)
