"""The contract: what a model is, and the kinds of models that the rest of the house knows.

A file (or package) under `lapa_jax/models/` that defines a class `Model` is a model; `config.model.name` is its module
path, the other keys of `config.model` are its fields. `core.config.build` calls `check`, `train.task.Task` the rest of
`Model`; what `lapa_jax.load` gives, chosen by `kind`, calls the methods of that kind. Methods without `@nn.nowrap` run
within `Model.apply`. The module may define `from_data(spec, source, seed)`, see `core.config.complete`.
"""

import abc
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import Output

Batch = Mapping[str, jax.Array]


class Part(nn.Module):
    """A network that models contain, such as a vision tower: a field of theirs, built like a model, without losses."""
    kind: ClassVar[str | None] = None

    @nn.nowrap
    def check(self) -> None:
        """Raises `UserError` for fields that do not go together; single fields are checked by their annotations."""

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A training batch of zeros, with all masks 1: names, shapes and dtypes are those that the data must have."""
        return {}


class Model(Part, abc.ABC):
    """A model that the training loop trains. `kind`: its row of `inference.kinds.KINDS`; None: it cannot be loaded.
    `without_gradient`: patterns of parameters that no loss reaches; `optim.groups` must freeze them. `absent_losses`:
    {loss that the model may not give: why not and what to do, as a part of a sentence}."""
    without_gradient: ClassVar[tuple[str, ...]] = ()
    absent_losses: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        """Named losses f32 [B], metrics and codes of a batch. With `train`, dropout acts (rng "dropout"), noise is
        drawn (rng "noise") and collections other than "params", such as EMA codebooks, are updated."""

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """What the model makes of a batch: codes, actions, reconstructions. Deterministic."""
        return {"codes": self(batch, train=False).codes}

    @abc.abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, jax.Array]:
        """Arrays [B, ...] of each held-out example, without noise and without updates; `summarize` gets all of them."""

    @nn.nowrap
    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """How much each example counts in a loss or metric, f32 [B] by its name, such as the number of its labels; in
        those that are not named all examples count alike. The loss of a batch is the sum of weight times loss over the
        sum of weights, in however many micro-batches it is computed: a loss that divides by what a batch of its own
        holds would weigh the micro-batches wrongly."""
        return {}

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of a data set from the arrays of `evaluate` over all of it; logged under "val/"."""
        return {name: float(value.mean()) for name, value in arrays.items()}

    @nn.nowrap
    def after_update(self, variables, *, step: jax.Array, rng: jax.Array) -> tuple[Mapping, dict]:
        """The variables after optimizer step `step`, i32, for example with dead codes replaced; pure, within jit. And
        {parameter name: bool mask} of entries whose optimizer moments start afresh."""
        return variables, {}


class FramePairTokenizer(Model):
    """Latent actions of "frames" [B, 2, H, W, 3]. Fields: image_size, codebook_size (K), code_seq_len (N), quant_dim
    (Q). `predicts_images`: otherwise features of their patches. `discrete`: otherwise there are no codes, and the delta
    is the latent action: `encode` gives it alone, `decode` takes it, no array or metric is made of codes. Where the
    actions of a few pairs are known, "pair_action" and "pair_action_mask" f32 [B, A], a head predicts them from the
    quantised delta: the loss "action"."""
    kind = "frame_pair_tokenizer"
    absent_losses = {"view": "no shifted copy is encoded: set config.model.view_shift and "
                             "config.model.view_deltas=True",
                     **dict.fromkeys(("consistency", "variance", "covariance"),
                                     "no features are predicted: set config.model.consistency to 'instead'"),
                     **{loss: f"the samples have no '{field}': add it to config.data.fields" for loss, field in {
                         "action": "pair_action", "flow": "flow", "flow_weighted": "flow", "reversal": "middle_frame",
                         "composition": "middle_frame", "midway": "middle_frame"}.items()}}  # fmt: skip
    predicts_images: ClassVar[bool] = True
    discrete: ClassVar[bool] = True

    @abc.abstractmethod
    def encode(self, frames: jax.Array) -> dict[str, jax.Array]:
        """Frames [B, 2, H, W, 3] -> "codes" i32 [B, N] and "delta" f32 [B, N, Q], what was quantised."""

    @abc.abstractmethod
    def decode(self, first_frame: jax.Array, codes: jax.Array) -> jax.Array:
        """Frames [B, H, W, 3] and codes i32 [B, N] -> the next frames f32, not clipped, or their features."""

    @abc.abstractmethod
    def observe(self, frames: jax.Array) -> jax.Array:
        """Frames f32 [..., H, W, 3] in [0, 1] -> what `decode` predicts of them, [..., rows, columns, C]."""


class ImageEncoder(Model):
    """Features of images, learned from images alone. Batches hold "frames" [B, 2, H, W, 3], of which both count as an
    image. Fields: image_size, and `tower`, what is learned: other models take it by `config.init_from.tower`."""
    kind = "image_encoder"

    @abc.abstractmethod
    def encode(self, images: jax.Array) -> jax.Array:
        """Images uint8, or f32 in [0, 1], [B, H, W, 3] -> features of their patches f32 [B, rows, columns, D]."""


class ColumnTokenizer(Model):
    """Codes of rows of numbers; `code_names` and `codebook_sizes` are those of the code positions."""
    code_names: ClassVar[tuple[str, ...]] = ()
    codebook_sizes: ClassVar[tuple[int, ...]] = ()

    @abc.abstractmethod
    def encode(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch as of `example` -> "codes" i32, of chunks or rows [B, N], of sequences of steps [B, T, N]."""


class ActionTokenizer(ColumnTokenizer):
    """Codes of normalised actions. Batches hold "action" f32 [B, T, A] and "action_mask" f32 [B, T], perhaps "state".
    One of chunks has a `chunk_length`. One of steps has the fields `context`, the longest sequence it trained on, and
    `causal`; `reach`: how many steps before and after a step decide its codes. With `two_level` steps have subclusters
    and clusters: `vectors`, `hierarchy`, `soft_clusters`, `cluster_distances`."""
    kind = "action_tokenizer"
    two_level: ClassVar[bool] = False
    chunk_length: ClassVar[int | None] = None
    reach: ClassVar[tuple[int, int] | None] = None


class FeatureTokenizer(ColumnTokenizer):
    """Codes of feature vectors. Batches hold "feature" f32 [B, F]."""
    kind = "feature_tokenizer"

    @nn.nowrap
    def layout(self):
        """Which feature belongs to which category, a `feature_vq.layout.Layout`; None without categories."""


class ImagePolicy(Model):
    """Policies that see images."""

    def seen(self, images: jax.Array) -> jax.Array:
        """Images uint8 [B, (V,) H, W, 3] -> what is left of them for the model, f32 in [0, 1]; by default all."""
        return images.astype("float32") / 255

    @nn.nowrap
    def history_template(self, codes: np.ndarray) -> tuple[str, list[int]]:
        """The template of a prompt that holds the codes int [N] of the step before, and the ids of these."""
        raise UserError("this policy sees no codes of the step before; leave history out")


class LatentPolicy(ImagePolicy):
    """Stage 2: latent actions from "image" uint8 [B, (V,) H, W, 3], "text" i32 [B, L] and "text_mask" f32 [B, L].
    Training adds "latent" i32 [B, N]. `predict` gives "codes" i32 [B, N] and "logits" f32 [B, N, K]."""
    kind = "latent_policy"


class DeltaPolicy(ImagePolicy):
    """Stage 2 without codes: from the same the delta of the latent action. Training adds "delta" f32 [B, N, Q],
    normalised, and "latent_mask" f32 [B]. `predict` gives "delta" f32 [B, N, Q], normalised."""
    kind = "delta_policy"


class ActionPolicy(ImagePolicy):
    """Stage 3: "action" f32 [B, T, A], normalised, from the same and perhaps "state" f32 [B, S]."""
    kind = "action_policy"


class InContextPolicy(Model):
    """Imitation of demonstrations that are shown as a prompt; steps are then added one by one to a cache."""
    kind = "in_context_policy"

    @abc.abstractmethod
    def start(self, batch: Batch):
        """Prompts -> a cache, and which of its slots are valid."""

    @abc.abstractmethod
    def extend(self, cache, valid: jax.Array, observation, action: jax.Array, first, *, begin: bool):
        """One more step -> the cache, its valid slots, and the action to take."""
