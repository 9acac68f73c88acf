"""LAQ: discrete latent actions from frame pairs (LAPA, arXiv 2410.11758).

A spatial and a temporal transformer turn two frames into a delta of a few vectors; each is quantised with one shared
codebook (NSVQ), and a decoder predicts the second frame from the first one and these codes alone. What the codes must
say is hence what changed: the latent action.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import Output
from lapa_jax.models.tokenizers import laq_summary
from lapa_jax.models.tokenizers.laq_modules import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameDecoder,
    PairEncoder,
    check_choice,
    check_encoder,
    image_shape,
    to_unit_range,
)
from lapa_jax.nn import losses
from lapa_jax.nn.norm import RunningNorm
from lapa_jax.nn.patches import patch_grid
from lapa_jax.nn.quantizers import codebook, nsvq
from lapa_jax.nn.quantizers import replacement as rules
from lapa_jax.nn.quantizers.usage import batch_usage
from lapa_jax.nn.views import shift_clips

CONTEXTS = ("patch_embedding", "encoder")
OUTPUTS = ("linear", "residual", "tanh")
NORMALIZATIONS = ("none", "imagenet")
DELTA_NORMS = ("none", "running", "running_per_position")
CODEBOOK = "quantizer/codebook"


class Model(nn.Module):
    """The latent action tokenizer.

    Batches hold "frames": uint8 or f32 in [0, 1], [B, 2, H, W, 3]. Losses of the predicted second frame, in [0, 1]:
    "reconstruction", the mean squared error; "motion", the same where pixels change; "coarse", of averages over blocks
    of a quarter and half a patch, relative to how much these change (see `nn.losses`).

    Attributes:
      image_size: side of the frames in pixels, or (height, width).
      patch_size: side of a patch; divides both sides of the image.
      dim: width of a token.
      quant_dim: width of a code, Q.
      codebook_size: number of codes, K, shared by all positions.
      code_seq_len: codes per pair, N; they cover the image as a grid (4 is 2x2).
      spatial_depth, temporal_depth, decoder_depth: blocks of the three stacks.
      heads, dim_head: of every attention.
      layout: "fixed", or "official" as released weights need it, with three quirks of the official code: the temporal
        stack's neighbour convolution sees time and place scrambled, the quantised vectors reach the decoder with
        tokens and features interleaved, and keys and values come from un-normalised tokens.
      decoder_context: what the decoder knows of the first frame: its "patch_embedding", without gradient; or the
        "encoder" output, a trap kept for comparison: that has seen the second frame, so the codes are left unused.
      view_shift: in training the decoder applies the codes twice: to the pair that the encoder saw, and to a copy of it
        shifted by up to this many pixels, drawn for each example. A code that says where something ends up serves the
        first alone; one that says how it moves serves both. 0 is off.
      view_share: share of the shifted copy in the loss, in (0, 1).
      pooling: how tokens become the delta: "conv", the official convolutions, by which each code sees a part of the
        image, or "maps" over the whole of it.
      codebook_init: "normal", or "data": codes start as k-means centres of the batch at initialisation.
      delta_norm: "none", or "running": deltas are centred per position and scaled to unit size by running statistics;
        "running_per_position" scales each position by itself, so that a quiet one uses as many codes as the others.
      replacement: rule for dead codes, "official", "share", "residual" or "none"; see `nn.quantizers.replacement`.
      replacement_schedule: `((until, every), ...)` in updates: when dead codes are looked for.
      replacement_min_hits: "official": a code in fewer training passes since the last look is dead.
      replacement_min_share: "share" and "residual": a code chosen by a smaller share of the vectors is dead.
      output: "linear" pixels, "residual" to the first frame, or "tanh", which maps (-1, 1) to the pixel range.
      normalization: "none", or "imagenet": the network works on pixels standardised with ImageNet's mean and deviation.
      motion_threshold: change of a pixel, in [0, 1], that "motion" does not count.
      dtype: "float32" or "bfloat16" computation; parameters, norms, softmax and quantisation are float32.
      remat: "none", "dots" or "full": what the backward pass recomputes to save memory.
    """

    image_size: int | tuple[int, int] = 256
    patch_size: int = 32
    dim: int = 1024
    quant_dim: int = 32
    codebook_size: int = 8
    code_seq_len: int = 4
    spatial_depth: int = 8
    temporal_depth: int = 8
    decoder_depth: int = 8
    heads: int = 16
    dim_head: int = 64
    layout: str = "fixed"
    decoder_context: str = "patch_embedding"
    view_shift: int = 0
    view_share: float = 0.5
    pooling: str = "conv"
    codebook_init: str = "normal"
    delta_norm: str = "none"
    replacement: str = "official"
    replacement_schedule: tuple[tuple[int, int], ...] = rules.OFFICIAL_SCHEDULE
    replacement_min_hits: int = rules.OFFICIAL_MIN_HITS
    replacement_min_share: float = 0.01
    output: str = "linear"
    normalization: str = "none"
    motion_threshold: float = 0.04
    dtype: str = "float32"
    remat: str = "none"

    def setup(self):
        self.encoder = PairEncoder.of(self)
        self.quantizer = nsvq.NSVQ(self.codebook_size, self.codebook_init)
        if self.delta_norm != "none":
            self.normalizer = RunningNorm(per_position=self.delta_norm == "running_per_position")
        self.decoder = FrameDecoder(
            patch_grid(image_shape(self.image_size), self.patch_size), self.patch_size, self.dim, self.decoder_depth,
            self.heads, self.dim_head, self.layout, 0.1 if self.output == "residual" else 1.0, self.dtype, self.remat,
        )  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        check_encoder(self)
        check_choice("decoder_context", self.decoder_context, CONTEXTS)
        check_choice("codebook_init", self.codebook_init, codebook.INITS)
        check_choice("delta_norm", self.delta_norm, DELTA_NORMS)
        check_choice("replacement", self.replacement, rules.REPLACEMENTS)
        check_choice("output", self.output, OUTPUTS)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        if self.codebook_size < 2 or self.decoder_depth < 1:
            raise UserError(f"codebook_size is {self.codebook_size} and decoder_depth {self.decoder_depth}; "
                            "at least 2 codes and 1 block are needed")
        rules.check_schedule(self.replacement_schedule)
        self._check_view_shift()
        if self.output == "tanh" and self.normalization == "imagenet":
            raise UserError("output 'tanh' cannot reach targets of normalization 'imagenet': they span -2.1 to 2.6 and "
                            "tanh ends at 1; use output 'linear' or normalization 'none'")

    @nn.nowrap
    def _check_view_shift(self) -> None:
        limit = min(image_shape(self.image_size)) // 2
        if not isinstance(self.view_shift, int) or not 0 <= self.view_shift <= limit:
            raise UserError(f"view_shift is {self.view_shift!r}; give whole pixels from 0 to half the image, {limit}")
        if not 0 < self.view_share < 1:
            raise UserError(f"view_share is {self.view_share}; give a share between 0 and 1, both excluded")
        if self.view_shift and self.decoder_context != "patch_embedding":
            raise UserError(f"view_shift {self.view_shift} needs decoder_context 'patch_embedding': the decoder's view "
                            f"has no encoder output")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {"frames": np.zeros((batch_size, 2, *image_shape(self.image_size), 3), np.uint8)}

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses and metrics of a batch; with `train` codes are replaced by noise (see `NSVQ`) and usage is counted."""
        frames = self._frames(batch["frames"])
        view = self._encode(frames, train=train)
        action, codes, metrics = self.quantizer(view["delta"], train=train)
        if train and self.view_shift:
            named = self._two_view_losses(view, action, frames)
        else:
            named = self._losses(view, action, frames)
        return Output(losses=named, metrics=metrics | batch_usage(codes, self.codebook_size), codes=codes)

    def _losses(self, view: dict[str, jax.Array], action: jax.Array, frames: jax.Array) -> dict[str, jax.Array]:
        """The named losses f32 [B] of predicting `frames[:, 1]` from a view of `frames[:, 0]` and actions."""
        prediction, first, second = self._decode(view, action), frames[:, 0], frames[:, 1]
        cells = tuple(max(1, self.patch_size // parts) for parts in (4, 2))
        return {
            "reconstruction": losses.mean_squared_error(prediction, second),
            "motion": losses.motion_weighted_error(prediction, first, second, self.motion_threshold),
            "coarse": losses.coarse_relative_error(prediction, first, second, cells),
        }

    def _two_view_losses(self, view: dict[str, jax.Array], action: jax.Array, frames: jax.Array):
        """Losses of decoding the pair itself, which is what evaluation asks for, and a shifted copy of it."""
        shifted = shift_clips(frames, self.make_rng("noise"), self.view_shift)
        own = self._losses(view, action, frames)
        other = self._losses(self._context(shifted[:, :1]), action, shifted)
        share = self.view_share
        return {name: (1 - share) * value + share * other[name] for name, value in own.items()}

    def encode(self, frames: jax.Array) -> dict[str, jax.Array]:
        """Frame pairs [B, 2, H, W, 3] -> "codes" i32 [B, N] and "delta" f32 [B, N, Q], what was quantised."""
        view = self._encode(self._frames(frames), train=False)
        return {"codes": self.quantizer.nearest(view["delta"]), "delta": view["delta"]}

    def decode(self, first_frame: jax.Array, codes: jax.Array) -> jax.Array:
        """Applies codes i32 [B, N] to frames [B, H, W, 3] -> the predicted next frames, f32, not clipped.

        With decoder_context "encoder" the context is that of a pair of equal frames: there is no second one.
        """
        shape = (*image_shape(self.image_size), 3)
        first = to_unit_range(first_frame, shape)[:, None]
        frames = jnp.concatenate([first, first], 1) if self.decoder_context == "encoder" else first
        view = self._context(frames)
        return self._decode(view, self.quantizer.lookup(codes))

    def predict(self, batch) -> dict[str, jax.Array]:
        """Codes i32 [B, N] of "frames" and the "reconstruction" f32 [B, H, W, 3] of the second frame from them."""
        view = self._encode(self._frames(batch["frames"]), train=False)
        codes = self.quantizer.nearest(view["delta"])
        return {"codes": codes, "reconstruction": self._decode(view, self.quantizer.lookup(codes))}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Measures with hard codes, per example; `summarize` explains what becomes of them.

        Returns:
          "mse" of the prediction, "mse_copy" of the first frame, "mse_swapped" of the prediction with the codes of the
          next example, "ssim", "cycle": share of codes found again in (first frame, prediction), "identical_mse" and
          "identical_codes" for the pair (first frame, first frame), "codes", "delta"; "net_action" and "episode_id"
          where the batch has them.
        """
        frames = self._frames(batch["frames"])
        first, second = frames[:, 0], frames[:, 1]
        view = self._encode(frames, train=False)
        codes = self.quantizer.nearest(view["delta"])
        prediction = self._decode(view, self.quantizer.lookup(codes))
        swapped = self._decode(view, self.quantizer.lookup(jnp.roll(codes, 1, axis=0)))
        clipped = jnp.clip(prediction, 0, 1)
        again = self.quantizer.nearest(self._encode(jnp.stack([first, clipped], 1), train=False)["delta"])
        still = self._encode(jnp.stack([first, first], 1), train=False)
        still_codes = self.quantizer.nearest(still["delta"])
        still_frame = self._decode(still, self.quantizer.lookup(still_codes))
        return {
            "mse": losses.mean_squared_error(prediction, second),
            "mse_copy": losses.mean_squared_error(first, second),
            "mse_swapped": losses.mean_squared_error(swapped, second),
            "ssim": losses.ssim(clipped, second),
            "cycle": jnp.mean(again == codes, axis=-1, dtype=jnp.float32),
            "identical_mse": losses.mean_squared_error(still_frame, first),
            "identical_codes": still_codes,
            "codes": codes,
            "delta": view["delta"],
            **{name: batch[name] for name in ("net_action", "episode_id") if name in batch},
        }

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `laq_summary.summarize`."""
        return laq_summary.summarize(arrays, self.codebook_size)

    @nn.nowrap
    def after_update(self, variables, *, step: jax.Array, rng: jax.Array):
        """Replaces dead codes when the schedule says so; pure, for use within jit.

        Args:
          variables: {"params", "codebook"} after an optimizer step.
          step: i32, optimizer steps done.
          rng: key for the choice and the noise.

        Returns:
          The variables, and {parameter name: bool mask} of rows whose optimizer moments must start afresh.
        """
        if self.replacement == "none":
            return variables, {}
        quantizer, counts = variables["params"]["quantizer"], variables["codebook"]["quantizer"]
        codebook, counts, replaced = rules.maybe_replace(
            self.replacement, quantizer["codebook"], counts, step=step, rng=rng, schedule=self.replacement_schedule,
            min_hits=self.replacement_min_hits, min_share=self.replacement_min_share,
        )  # fmt: skip
        params = {**variables["params"], "quantizer": {**quantizer, "codebook": codebook}}
        state = {**variables["codebook"], "quantizer": counts}
        return {**variables, "params": params, "codebook": state}, {CODEBOOK: replaced[:, None]}

    def _frames(self, frames: jax.Array) -> jax.Array:
        return to_unit_range(frames, (2, *image_shape(self.image_size), 3))

    def _encode(self, frames: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """What the decoder may know ("context", "bias", "first") and the delta of pairs, f32 in [0, 1]."""
        tokens, bias = self.encoder.embed(self._standardize(frames)), self.encoder.bias()
        mixed = self.encoder.mix(tokens, bias)
        delta = self.encoder.delta(mixed)
        if self.delta_norm != "none":
            delta = self.normalizer(delta, train=train)
        leak = self.decoder_context == "encoder"
        context = mixed[:, 0] if leak else jax.lax.stop_gradient(tokens[:, 0])
        return {"delta": delta, "context": context, "bias": bias, "first": frames[:, 0]}

    def _context(self, frames: jax.Array) -> dict[str, jax.Array]:
        """The same without the delta, from first frames [B, 1, H, W, 3] or pairs of equal frames."""
        tokens, bias = self.encoder.embed(self._standardize(frames)), self.encoder.bias()
        if self.decoder_context == "encoder":
            tokens = self.encoder.mix(tokens, bias)
        else:
            tokens = jax.lax.stop_gradient(tokens)
        return {"context": tokens[:, 0], "bias": bias, "first": frames[:, 0]}

    def _decode(self, view: dict[str, jax.Array], action: jax.Array) -> jax.Array:
        """The second frame, f32 [B, H, W, 3] in [0, 1] space, from a view and action vectors [B, N, Q]."""
        pixels = self.decoder(view["context"], action, view["bias"])
        if self.output == "tanh":
            return (jnp.tanh(pixels) + 1) / 2
        if self.normalization == "imagenet":
            pixels = pixels * jnp.asarray(IMAGENET_STD)
            pixels = pixels + jnp.asarray(IMAGENET_MEAN) if self.output == "linear" else pixels
        return pixels + view["first"] if self.output == "residual" else pixels

    def _standardize(self, frames: jax.Array) -> jax.Array:
        if self.normalization == "none":
            return frames
        return (frames - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
