"""What latent action models of frame pairs share: quantisation, losses, the second view, evaluation, refusals.

Such a model turns two frames into a delta of a few vectors, quantises each, and predicts the second frame from the
first one and these codes alone. How frames become a delta and codes a frame is each model's own (`laq`, `laq_conv`).
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Dtype, Range, Share
from lapa_jax.core.output import Output
from lapa_jax.data.flow import CELL as FLOW_CELL
from lapa_jax.models.base import FramePairTokenizer
from lapa_jax.models.tokenizers.laq import consistency, horizons, metrics, quantizers
from lapa_jax.models.tokenizers.laq.consistency import ConsistencyHead
from lapa_jax.models.tokenizers.laq.horizons import HorizonHeads
from lapa_jax.models.tokenizers.laq.modules import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ActionHead,
    check_image_size,
    image_shape,
    to_unit_range,
)
from lapa_jax.nn import losses
from lapa_jax.nn.norm import RunningNorm, RunningWhitening
from lapa_jax.nn.quantizers import replacement as rules
from lapa_jax.nn.quantizers.usage import batch_usage
from lapa_jax.nn.quantizers.vq import straight_through
from lapa_jax.nn.views import in_turns, one_of, shift_clips

MOST_WHITENED = 32
"""Features of a delta that "whitened" decorrelates: their covariance comes from one batch."""


def from_data(spec: dict, source, seed: int) -> dict:
    """What the model has for the sake of fields of the samples: the width of the actions that few of the pairs have,
    the heads of pairs' middle frames, the decoder's flow."""
    few = {"action_dim": source.batch([])["pair_action"].shape[-1]} if "pair_action" in source.fields else {}
    given = {"horizons": "middle_frame", "flow": "flow"}
    return few | {name: True for name, field in given.items() if field in source.fields}


class FramePairModel(FramePairTokenizer):
    """The common part of latent action tokenizers.

    Batches hold "frames": uint8 or f32 in [0, 1], [B, 2, H, W, 3]. Losses of the predicted second frame, in [0, 1]:
    "reconstruction", the mean squared error; "motion", the same where pixels change; "coarse", of averages over blocks
    of a quarter and half a cell, relative to how much these change (see `nn.losses`). Losses of the quantiser, zero
    where it has none: "codebook" and "commitment" (see `nn.quantizers.vq`), whose weights are in the config alone.
    Where few pairs have an action "pair_action" f32 [B, A], in standard deviations, "pair_action_mask" says which: the
    loss "action" is the squared error of predicting it from the quantised delta, 0 of other pairs (the supervision of
    LAOM, Nikulin et al. 2025, arXiv 2502.00379). Where pairs have a "middle_frame": the losses "reversal",
    "composition" and "midway", see `horizons`. Where they have a "flow" f32 [B, H / 4, W / 4, 2], in pixels: the loss
    "flow", the squared error of the displacements that the decoder predicts beside the pixels, and "flow_weighted", the
    squared error of pixels in proportion to how far they move. With `view_shift` and `view_deltas`: the loss "view",
    the squared difference of the deltas of the pair and of its shifted copy: how something moves does not depend on
    where it is. With `consistency`: the losses "consistency", "variance" and "covariance" of the encoder's features of
    each frame, see `consistency`.

    A model of this kind calls `setup_codes` in its `setup` and defines `cell`, `raw_delta`, `context` and `pixels`, and
    where it may have `consistency` also `frame_encoder` and `frame_features`. One that predicts features of a frozen
    network instead of pixels defines `predicts_images` and `observe` too; its losses are "reconstruction" and those of
    the quantiser, and "frames" below are features.

    Attributes:
      image_size: side of the frames in pixels, or (height, width).
      quant_dim: width of a code, Q.
      codebook_size: number of codes, K.
      code_seq_len: codes per pair, N.
      quantizer: "nsvq" or "vq", a codebook with noise substitution or with a straight-through gradient, "fsq", each
        feature of a code rounded to few levels, or "none": the decoder gets the delta itself, and there are no codes.
      codebook_update: "vq": codes follow the data as moving averages, "ema", or by the "gradient" of their loss.
      codebook_decay: "vq" with "ema": share of the averages that one update keeps.
      codebook_per_position: "vq": a codebook for each of the N positions instead of one that they share.
      levels: "fsq": levels of the Q features, at least 3 each; their product is K.
      codebook_init: "normal", or "data": codes start as k-means centres of the batch at initialisation. Not of "fsq".
      delta_norm: "none", or "running": deltas are centred per position and scaled to unit size by running statistics;
        "running_per_position" scales each position by itself, so that a quiet one uses as many codes as the others;
        "whitened" decorrelates the N * Q features too, so that codes cannot all be about the one direction that varies
        most; give batches of several times as many pairs as there are features. See `nn.norm`.
      delta_noise: "none": standard deviation of the noise that training adds to the delta, whose features have about
        1; at most log2(1 + 1 / delta_noise^2) / 2 bits a feature then, see `nn.quantizers.unrounded`. 1/8 are the 3
        bits of one of 8 codes; 0 is no noise.
      replacement: rule for dead codes, "official", "share", "residual" or "none"; see `nn.quantizers.replacement`. With
        moving averages "share" or "none": dead codes become vectors of the batch, without a schedule.
      replacement_schedule: `((until, every), ...)` in updates: when dead codes are looked for.
      replacement_min_hits: "official": a code in fewer training passes since the last look is dead.
      replacement_min_share: "share" and "residual": a code chosen by a smaller share of the vectors is dead.
      view_shift: in training the decoder applies the codes twice: to the pair that the encoder saw, and to a copy of it
        shifted by up to this many pixels, drawn for each example. A code that says where something ends up serves the
        first alone; one that says how it moves serves both. 0 is off.
      view_share: share of the shifted copy in the loss, in (0, 1).
      view_deltas: whether the shifted copy is encoded too. The loss "view" needs it; without that loss it costs time
        for nothing.
      output: "linear" pixels, "residual" to the first frame, or "tanh", which maps (-1, 1) to the pixel range.
      normalization: "none", or "imagenet": the network works on pixels standardised with ImageNet's mean and standard
        deviation.
      motion_threshold: change of a pixel, in [0, 1], that "motion" does not count.
      consistency: whether codes are to predict features of the second frame: "none", "beside" its pixels, or "instead"
        of them; then the decoder learns what pixels the codes mean, and no gradient of its pixels and flow reaches the
        codes and the encoder.
      consistency_views: what changes in the views of the pair that these features come from, any of "shift", "colour"
        and "background".
      consistency_decay: share of the averaged parameters that predicted features come from that one update keeps.
      action_dim: numbers of the actions that few pairs have, A; 0: none has one. The data tell it.
      horizons: whether pairs have a middle frame. flow: whether they have optical flow. The data tell both.
      dtype: "float32" or "bfloat16" computation; parameters, norms, softmax and quantisation are float32.
    """

    image_size: int | tuple[int, int] = 256
    quant_dim: Count = 32
    codebook_size: Annotated[int, Range(2)] = 8
    code_seq_len: Count = 4
    quantizer: quantizers.Quantizer = "nsvq"
    codebook_update: Literal["ema", "gradient"] = "ema"
    codebook_decay: float = 0.99
    codebook_per_position: bool = False
    levels: tuple[int, ...] = ()
    codebook_init: quantizers.CodebookInit = "normal"
    delta_norm: Literal["none", "running", "running_per_position", "whitened"] = "none"
    delta_noise: Annotated[float, Range(0)] = 0.125
    replacement: quantizers.Replacement = "official"
    replacement_schedule: tuple[tuple[int, int], ...] = rules.OFFICIAL_SCHEDULE
    replacement_min_hits: int = rules.OFFICIAL_MIN_HITS
    replacement_min_share: float = 0.01
    view_shift: int = 0
    view_share: Annotated[float, Range(above=0, below=1)] = 0.5
    view_deltas: bool = True
    output: Literal["linear", "residual", "tanh"] = "linear"
    normalization: Literal["none", "imagenet"] = "none"
    motion_threshold: Annotated[float, Range(0, 1)] = 0.04
    consistency: Literal["none", "beside", "instead"] = "none"
    consistency_views: tuple[Literal["shift", "colour", "background"], ...] = ("shift", "colour", "background")
    consistency_decay: Share = 0.99
    action_dim: Annotated[int, Range(0)] = 0
    horizons: bool = False
    flow: bool = False
    dtype: Dtype = "float32"

    @nn.nowrap
    def setup_codes(self) -> None:
        """What the delta goes through: normalisation, quantiser, and the head of few actions; for `setup`."""
        self.quantization = quantizers.build(self, name="quantizer")
        if self.action_dim:
            self.action_head = ActionHead(self.action_dim)
        if self.horizons:
            self.horizon_heads = HorizonHeads()
        if self.consistency != "none":
            self.consistency_head = ConsistencyHead(jnp.dtype(self.dtype))
        if self.delta_norm == "whitened":
            self.normalizer = RunningWhitening()
        elif self.delta_norm != "none":
            self.normalizer = RunningNorm(per_position=self.delta_norm == "running_per_position")

    @property
    def discrete(self) -> bool:
        return self.quantizer != "none"

    def observe(self, frames: jax.Array) -> jax.Array:
        """Frames f32 [..., H, W, 3] in [0, 1] -> what is predicted of them, [..., rows, columns, C]."""
        return frames

    @property
    def cell(self) -> int:
        """Pixels that the side of one cell of the model's smallest grid covers."""
        raise NotImplementedError

    def raw_delta(self, frames: jax.Array) -> tuple[jax.Array, dict]:
        """Pairs f32 [B, 2, H, W, 3], standardised -> deltas f32 [B, N, Q], and what `context` would say of them: arrays
        with a row for each pair."""
        raise NotImplementedError

    def context(self, first: jax.Array) -> dict[str, jax.Array]:
        """What the decoder may know of first frames f32 [B, H, W, 3], standardised."""
        raise NotImplementedError

    def pixels(self, context: dict[str, jax.Array], action: jax.Array) -> jax.Array:
        """A context and action vectors [B, N, Q] -> the decoder's output f32 [B, H, W, 3]; with `flow` two channels
        more, displacements."""
        raise NotImplementedError

    @property
    def frame_encoder(self) -> str:
        """The part of `encoder` that sees each frame by itself."""
        raise NotImplementedError

    @nn.nowrap
    def frame_features(self, params: dict, frames: jax.Array) -> jax.Array:
        """Frames f32 [B, H, W, 3], standardised -> what that part makes of them with these parameters, a grid
        [B, rows, columns, C]."""
        raise NotImplementedError

    @nn.nowrap
    def check_common(self) -> None:
        """Raises UserError for fields of this class that do not fit together, with what to change."""
        check_image_size(self.image_size)
        quantizers.check(self)
        limit = min(image_shape(self.image_size)) // 2
        if not isinstance(self.view_shift, int) or not 0 <= self.view_shift <= limit:
            raise UserError(f"view_shift is {self.view_shift!r}; give whole pixels from 0 to half the image, {limit}")
        width = self.code_seq_len * self.quant_dim
        if self.delta_norm == "whitened" and width > MOST_WHITENED:
            raise UserError(f"delta_norm 'whitened' takes at most {MOST_WHITENED} features, and code_seq_len "
                            f"{self.code_seq_len} times quant_dim {self.quant_dim} is {width}; give a smaller "
                            "quant_dim or delta_norm 'running_per_position'")  # fmt: skip
        if self.flow and not self.predicts_images:
            raise UserError("flow is predicted beside pixels, and this model predicts features: leave 'flow' out of "
                            "data.fields, or set target 'pixels'")  # fmt: skip
        if self.consistency != "none" and not self.predicts_images:
            raise UserError(f"consistency '{self.consistency}' is for models of pixels, and this model predicts "
                            "features already: set it to 'none', or target 'pixels'")  # fmt: skip
        if self.output == "tanh" and self.normalization == "imagenet":
            raise UserError("output 'tanh' cannot reach targets of normalization 'imagenet': they span -2.1 to 2.6 and "
                            "tanh ends at 1; use output 'linear' or normalization 'none'")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        batch = {"frames": np.zeros((batch_size, 2, *image_shape(self.image_size), 3), np.uint8)}
        if self.action_dim:
            batch |= {"pair_action": np.zeros((batch_size, self.action_dim), np.float32)}
            batch |= {"pair_action_mask": np.ones((batch_size, self.action_dim), np.float32)}
        height, width = image_shape(self.image_size)
        if self.horizons:
            batch["middle_frame"] = np.zeros((batch_size, height, width, 3), np.uint8)
        if self.flow:
            batch["flow"] = np.zeros((batch_size, height // FLOW_CELL, width // FLOW_CELL, 2), np.float32)
        return batch

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses and metrics of a batch; with `train` the quantiser's state moves, and NSVQ puts noise in for codes."""
        pixels = to_unit_range(batch["frames"], (2, *image_shape(self.image_size), 3))
        clips = [pixels]
        if train and self.view_shift:
            clips.append(shift_clips(pixels, self.make_rng("noise"), self.view_shift))
        clips = [self.observe(clip) for clip in clips]
        frames = clips[0]
        view, views = self._see(clips, train=train)
        quantized = quantizers.apply(self.quantization, view["delta"], train=train)
        action, codes, quantizer_losses, measured = quantized
        decoded = jax.lax.stop_gradient(action) if self.consistency == "instead" else action
        named = self._losses(views, decoded, clips, batch.get("flow") if self.flow else None)
        if self.consistency != "none":
            named |= self._consistency_losses(action, frames, train=train)
        if self.horizons and "middle_frame" in batch:
            named |= self._horizon_losses(view, decoded, frames, batch["middle_frame"])
        if codes is not None:
            measured = measured | batch_usage(codes, self.codebook_size)
        if self._has_actions(batch):
            squared = jnp.square(self.action_head(action) - batch["pair_action"])
            error = losses.weighted_mean(squared, batch["pair_action_mask"])
            named["action"] = error
            # Numbers that count vary by 1 over all such pairs, so that the mean of this is their mean R².
            measured["action_r2"] = 1 - error
        return Output(losses=named | quantizer_losses | self.further_losses(view), metrics=measured, codes=codes)

    @nn.nowrap
    def _has_actions(self, batch) -> bool:
        return self.action_dim > 0 and "pair_action" in batch

    @nn.nowrap
    def weights(self, batch) -> dict[str, jax.Array]:
        """A pair counts in what concerns actions by how many numbers of its action count."""
        if not self._has_actions(batch):
            return {}
        return dict.fromkeys(("action", "action_r2"), batch["pair_action_mask"].sum(-1))

    @nn.nowrap
    def further_losses(self, view: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Named losses f32 [B] of what a model put into its view besides."""
        return {}

    def _losses(
        self, views: dict[str, jax.Array], action: jax.Array, clips: list[jax.Array], flow: jax.Array | None
    ) -> dict[str, jax.Array]:
        """The named losses f32 [B] of predicting the second frames of the pairs, and their flow if it is given, from
        their views and actions; with shifted copies also of predicting theirs with the same actions.

        The pairs themselves are what evaluation asks for: losses of both are mixed by `view_share`. Flow is given for
        the pairs alone.
        """
        count, frames = len(clips), in_turns(clips)
        prediction, displacement = self._decode_both(views, jnp.repeat(action, count, axis=0))
        first, second = frames[:, 0], frames[:, 1]
        named = {"reconstruction": losses.mean_squared_error(prediction, second)}
        if self.predicts_images:
            cells = tuple(max(1, self.cell // parts) for parts in (4, 2))
            named["motion"] = losses.motion_weighted_error(prediction, first, second, self.motion_threshold)
            named["coarse"] = losses.coarse_relative_error(prediction, first, second, cells)
        if count > 1:
            share = self.view_share
            named = {name: (1 - share) * value[::2] + share * value[1::2] for name, value in named.items()}
            if self.view_deltas:
                named["view"] = losses.mean_squared_error(views["delta"][::2], views["delta"][1::2])
        if flow is not None:
            named |= _flow_losses(*one_of((prediction, second, displacement), 0, count), flow)
        return named

    def _horizon_losses(self, view, action: jax.Array, frames: jax.Array, middle_frame: jax.Array):
        """Losses f32 [B] of the pairs' middle frames [B, H, W, 3], see `horizons`. The three further pairs are encoded
        as in evaluation: what codes there are, and how deltas are scaled, is for the pairs themselves to say. What is
        compared with them is scaled alike: a batch has other statistics than the run."""
        first, second = frames[:, 0], frames[:, 1]
        middle = self.observe(to_unit_range(middle_frame, (*image_shape(self.image_size), 3)))
        pairs = jnp.concatenate([jnp.stack(pair, 1) for pair in ((second, first), (first, middle), (middle, second))])
        whole = self._scaled(view["raw_delta"], train=False)
        backward, early, late = jnp.split(self._encode(pairs, train=False)["delta"], 3)
        whole, backward, early, late = (self._rounded(delta) for delta in (whole, backward, early, late))
        changes = jnp.abs(second - first).max((1, 2, 3)) > (self.motion_threshold if self.predicts_images else 0)
        composed, half = self.horizon_heads(early, late, action)
        halfway = self._decode(view, half)
        if self.predicts_images:
            error = losses.motion_weighted_error(halfway, first, middle, self.motion_threshold)
        else:
            error = losses.mean_squared_error(halfway, middle)
        return {"reversal": jnp.where(changes, horizons.similarity(whole, backward), 0), "midway": error,
                "composition": losses.mean_squared_error(composed, jax.lax.stop_gradient(whole))}  # fmt: skip

    def _consistency_losses(self, action: jax.Array, frames: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Losses f32 [B] of predicting features of the second frames from those of the first ones and the action."""
        seen, predicted = frames, frames
        if train:
            seen, predicted = consistency.draw_views(frames, self.make_rng("noise"), self.consistency_views,
                                                     self.motion_threshold)  # fmt: skip
        first, second = self._standardize(seen[:, 0]), self._standardize(predicted[:, 1])
        params = self.variables["params"]["encoder"][self.frame_encoder]
        return self.consistency_head(self.frame_features, params, first, second, action)

    def _rounded(self, delta: jax.Array) -> jax.Array:
        """The vectors of the codes that are nearest to deltas [B, N, Q]; the gradient goes straight to the deltas."""
        return straight_through(delta, self.quantization.lookup(self.quantization.nearest(delta)))

    def encode(self, frames: jax.Array) -> dict[str, jax.Array]:
        """Frame pairs [B, 2, H, W, 3] -> "codes" i32 [B, N] and "delta" f32 [B, N, Q], what was quantised."""
        delta = self._encode(self._frames(frames), train=False)["delta"]
        return {"delta": delta, **({"codes": self.quantization.nearest(delta)} if self.discrete else {})}

    def unscaled(self, frames: jax.Array) -> jax.Array:
        """Frame pairs [B, 2, H, W, 3] -> deltas f32 [B, N, Q] as the encoder gives them, not normalised."""
        return self.raw_delta(self._standardize(self._frames(frames)))[0]

    def decode(self, first_frame: jax.Array, codes: jax.Array) -> jax.Array:
        """Applies codes i32 [B, N], or deltas where there are none, to frames [B, H, W, 3] -> the predicted next
        frames, f32, not clipped."""
        first = self.observe(to_unit_range(first_frame, (*image_shape(self.image_size), 3)))
        return self._decode(self._context(first), self.quantization.lookup(codes))

    def predict(self, batch) -> dict[str, jax.Array]:
        """The "codes" i32 [B, N] of "frames", or where there are none the "delta", and the "reconstruction" of the
        second frame from them, f32 [B, H, W, 3]."""
        view = self._encode(self._frames(batch["frames"]), train=False)
        latent = self.quantization.nearest(view["delta"])
        reconstruction = self._decode(view, self.quantization.lookup(latent))
        return {"codes" if self.discrete else "delta": latent, "reconstruction": reconstruction}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Measures with hard codes, or with deltas where there are none; `summarize` explains what becomes of them.

        Returns:
          "mse" of the prediction, "mse_copy" of the first frame, "mse_swapped" of the prediction with the codes of the
          next example, "ssim" of images, "identical_mse" for the pair (first frame, first frame), "delta";
          "codes", "identical_codes", and "cycle": share of codes found again in (first frame, prediction); where there
          are no codes "delta_again", what is found there; "net_action", "episode_id" and "step" where the batch has
          them; where few actions were learned from, "action_prediction" beside "pair_action" and its mask.
        """
        frames = self._frames(batch["frames"])
        first, second = frames[:, 0], frames[:, 1]
        nearest, lookup = self.quantization.nearest, self.quantization.lookup
        # A pair in which nothing happens: its code should be the one for standing still.
        pairs = self._encode_views([frames, jnp.stack([first, first], 1)], train=False)
        view, still = (one_of(pairs, which, 2) for which in range(2))
        codes, still_codes = nearest(view["delta"]), nearest(still["delta"])
        # Another example's codes: a decoder that predicts as well with these does not use them.
        asked = in_turns([codes, jnp.roll(codes, 1, axis=0), still_codes])
        # All in one, since a second decoder would take as long to compile again.
        decoded = self._decode(in_turns([view, view, still]), lookup(asked))
        prediction, swapped, still_frame = (one_of(decoded, which, 3) for which in range(3))
        # Images are shown and encoded within [0, 1]; features have no such range.
        clipped = jnp.clip(prediction, 0, 1) if self.predicts_images else prediction
        # Codes of (first frame, prediction): they come back where the decoder did what they say.
        again = nearest(self._encode(jnp.stack([first, clipped], 1), train=False)["delta"])
        by_codes = {"delta_again": again}
        if self.discrete:
            by_codes = {"codes": codes, "cycle": jnp.mean(again == codes, axis=-1, dtype=jnp.float32),
                        "identical_codes": still_codes}  # fmt: skip
        few = {}
        if self._has_actions(batch):
            few = {"action_prediction": self.action_head(lookup(codes)), "pair_action": batch["pair_action"],
                   "pair_action_mask": batch["pair_action_mask"]}  # fmt: skip
        return {
            "mse": losses.mean_squared_error(prediction, second),
            "mse_copy": losses.mean_squared_error(first, second),
            "mse_swapped": losses.mean_squared_error(swapped, second),
            **({"ssim": losses.ssim(clipped, second)} if self.predicts_images else {}),
            "identical_mse": losses.mean_squared_error(still_frame, first),
            "delta": view["delta"],
            **by_codes,
            **{name: batch[name] for name in ("net_action", "episode_id", "step") if name in batch},
            **few,
        }

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `metrics.summarize`."""
        return metrics.summarize(arrays, self.codebook_size) | quantizers.capacity_bits(self)

    @nn.nowrap
    def after_update(self, variables, *, step: jax.Array, rng: jax.Array):
        """Replaces dead codes of NSVQ when the schedule says so, and with `consistency` moves the averaged parameters;
        pure, for use within jit.

        Args:
          variables: {"params", "codebook", ...} after an optimizer step.
          step: i32, optimizer steps done.
          rng: key for the choice and the noise.

        Returns:
          The variables, and {parameter name: bool mask} of rows whose optimizer moments must start afresh.
        """
        variables, reset = quantizers.replace_dead(self, variables, step=step, rng=rng)
        if self.consistency == "none":
            return variables, reset
        params = variables["params"]["encoder"][self.frame_encoder]
        averages = variables[consistency.COLLECTION]["consistency_head"]["encoder"]
        averages = consistency.follow(averages, params, self.consistency_decay, step)
        return {**variables, consistency.COLLECTION: {"consistency_head": {"encoder": averages}}}, reset

    def _frames(self, frames: jax.Array) -> jax.Array:
        return self.observe(to_unit_range(frames, (2, *image_shape(self.image_size), 3)))

    def _see(self, clips: list[jax.Array], *, train: bool) -> tuple[dict, dict]:
        """The view of the pairs, the first of the clips, and in turns those of all clips; without `view_deltas` the
        latter have no delta."""
        if self.view_deltas:
            views = self._encode_views(clips, train=train)
            return one_of(views, 0, len(clips)), views
        view = self._encode(clips[0], train=train)
        seen = {name: value for name, value in view.items() if name not in ("delta", "raw_delta")}
        return view, in_turns([seen, *(self._context(clip[:, 0]) for clip in clips[1:])])

    def _encode(self, frames: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """What the decoder may know, the "delta" of pairs f32 [B, 2, H, W, 3] in [0, 1], and "raw_delta", the same not
        scaled."""
        return self._encode_views([frames], train=train)

    def _encode_views(self, clips: list[jax.Array], *, train: bool) -> dict[str, jax.Array]:
        """The same of several clips [B, 2, H, W, 3], [clips * B, ...] in turns; in training the statistics that all
        deltas are scaled by are those of the first clips alone."""
        count, frames = len(clips), in_turns(clips)
        raw, context = self.raw_delta(self._standardize(frames))
        apart = jnp.concatenate([one_of(raw, which, count) for which in range(count)])
        scaled = self._scaled(apart, train=train, count=len(clips[0]))
        return {**context, "delta": in_turns(jnp.split(scaled, count)), "raw_delta": raw, "first": frames[:, 0]}

    def _scaled(self, raw: jax.Array, *, train: bool, count: int | None = None) -> jax.Array:
        """Deltas [B, N, Q] by `delta_norm`; in training by the statistics of the first `count` of them."""
        return raw if self.delta_norm == "none" else self.normalizer(raw, train=train, count=count)

    def _context(self, first: jax.Array) -> dict[str, jax.Array]:
        """The same without the delta, of first frames [B, H, W, 3]."""
        return {**self.context(self._standardize(first)), "first": first}

    def _decode(self, view: dict[str, jax.Array], action: jax.Array) -> jax.Array:
        """The second frame, f32 [B, H, W, 3] in [0, 1] space, from a view and action vectors [B, N, Q]."""
        return self._decode_both(view, action)[0]

    def _decode_both(self, view: dict[str, jax.Array], action: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The second frame, and with `flow` the displacements f32 [B, H / 4, W / 4, 2] that lead to it."""
        pixels = self.pixels(view, action)
        if not self.flow:
            return self._to_frame(pixels, view), None
        batch, height, width, _ = pixels.shape
        cells = pixels[..., 3:].reshape(batch, height // FLOW_CELL, FLOW_CELL, width // FLOW_CELL, FLOW_CELL, 2)
        return self._to_frame(pixels[..., :3], view), cells.mean((2, 4))

    def _to_frame(self, pixels: jax.Array, view: dict[str, jax.Array]) -> jax.Array:
        """The decoder's output as a frame in [0, 1] space, by `output` and `normalization`."""
        if self.output == "tanh":
            return (jnp.tanh(pixels) + 1) / 2
        if self.normalization == "imagenet":
            pixels = pixels * jnp.asarray(IMAGENET_STD)
            # A residual is a difference of two standardised images, whose means cancel.
            pixels = pixels + jnp.asarray(IMAGENET_MEAN) if self.output == "linear" else pixels
        return pixels + view["first"] if self.output == "residual" else pixels

    def _standardize(self, frames: jax.Array) -> jax.Array:
        if self.normalization == "none":
            return frames
        return (frames - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


def _flow_losses(prediction, second, displacement, flow) -> dict[str, jax.Array]:
    """Losses f32 [B] of predicted frames and displacements, given the true ones."""
    # How far each pixel moves, at most the one whole image: a search that went astray must not outweigh all others.
    far = jnp.minimum(jnp.linalg.norm(flow, axis=-1, keepdims=True), second.shape[1])
    weight = jnp.repeat(jnp.repeat(far, FLOW_CELL, axis=1), FLOW_CELL, axis=2)
    squared = jnp.square(prediction - second)
    return {"flow": losses.mean_squared_error(displacement, flow),
            "flow_weighted": losses.weighted_mean(squared, jnp.broadcast_to(weight, squared.shape))}  # fmt: skip
