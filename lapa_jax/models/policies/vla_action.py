"""Stage 3 of LAPA (Ye et al. 2024): the vision-language model of stage 2, taught the actions of a robot."""

from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.data.statistics import kinds
from lapa_jax.models import base
from lapa_jax.models.policies import action_measures, vision_language
from lapa_jax.models.policies.heads.base import Context
from lapa_jax.models.policies.vision_language import Prefix, VisionLanguageModel
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.losses import weighted_mean
from lapa_jax.nn.norm import LayerNorm

EVALUATION_KEY = 0
"""Seed of the noise of heads that draw some, where no training asks: evaluation, serving, exported programs."""


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell: sizes, and which dimensions of actions are constant or binary.

    With several data sets a dimension counts as constant or binary if it is so in each that has it.
    """
    batch = source.batch([])
    if "history_mask" in batch:
        raise UserError(f"{spec['name']} sees the present alone; set data.history=0")
    if len(batch.get("action", np.zeros(0)).shape) != 3:
        raise UserError(f"{spec['name']} learns chunks of actions, the samples hold {sorted(batch)}: set "
                        "data.samples=chunks and name 'action' in data.fields")
    sizes = {"chunk_length": batch["action"].shape[1], "action_dim": batch["action"].shape[2],
             "state_dim": batch["state"].shape[-1] if "state" in batch else 0}  # fmt: skip
    # A part of a mixture may have no actions.
    words = [kinds(columns["action"]) for columns in statistics_of(source.meta()).values() if "action" in columns]
    for kind in ("constant", "binary"):
        sizes[kind] = [i for i in range(sizes["action_dim"]) if {w[i] for w in words if i < len(w)} == {kind}]
    filled = vision_language.body_from_data(spec, source)
    given = {name: None if spec.get(name) is None else spec[name] for name in sizes}
    return {**filled, **vision_language.agree(given, sizes)}


class Model(VisionLanguageModel, base.ActionPolicy):
    """Chunks of actions from pictures, an instruction and proprioception.

    Batches are those of `data.samples = "chunks"` with the fields "image", "text", "action" and perhaps "state",
    normalised. The loss is "action", a mean over the steps and dimensions that count: the cross-entropy of bins, or the
    absolute error.

    Attributes, besides those of `VisionLanguageModel`:
      action_dim: A, numbers of an action. chunk_length: T, actions of a chunk. state_dim: S, numbers of a state, 0 for
        none. constant: dimensions of actions that never change, which nothing is learned from. binary: those of two
        values. None is taken from the data.
      head: what turns hidden states into actions, a module of `policies.heads`.
    """

    action_dim: FromData = None
    chunk_length: FromData = None
    state_dim: Annotated[int | None, Range(0), FILLED] = None
    constant: Annotated[tuple[int, ...] | None, FILLED] = None
    binary: Annotated[tuple[int, ...] | None, FILLED] = None
    head: nn.Module | None = None

    def setup(self):
        super().setup()
        dtype, new = jnp.dtype(self.dtype), nn.initializers.normal(0.02)
        # float32: bfloat16 would round the state to steps of 0.004 before anything sees it.
        self.see_state = Linear(self.llm.dim) if self.state_dim else None
        self.act = self.head.clone(action_dim=self.action_dim, chunk_length=self.chunk_length,
                                   binary=tuple(self.binary), dtype=self.dtype)  # fmt: skip
        if self.head.latent:
            # named as in stage 2, whose values they begin with
            self.queries = self.param("queries", new, (self.head.code_length, self.llm.dim))
            self.codes_norm, self.to_codes = LayerNorm(dtype=dtype), Linear(self.head.codebook_size)
        else:
            self.action_queries = self.param("action_queries", new, (self.act.queries, self.llm.dim))

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        super().check()
        if self.head is None:
            raise UserError('head is None; name one, such as model.head = {"name": "policies.heads.bins"}')
        if len(self.constant or ()) == self.action_dim:
            raise UserError("every dimension of the actions is constant; there is nothing to learn from these data")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, with all masks 1."""
        shape = (batch_size, self.chunk_length, self.action_dim)
        state = {"state": np.zeros((batch_size, self.state_dim), np.float32)} if self.state_dim else {}
        return {**super().example(batch_size), **state, "action": np.zeros(shape, np.float32),
                "action_mask": np.ones(shape[:2], np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        with self.adapters():
            context, hidden = self.backbone_states(batch, self.encode_images(batch))
        return self._action_output(batch, context, hidden, train=train)

    def _action_output(self, batch, context: Context, hidden: jax.Array, *, train: bool) -> Output:
        """The loss of the head, from what `backbone_states` gives."""
        weight = self._weight(batch)
        keys = self._keys(batch, self.make_rng("noise") if train else EVALUATION_KEY)
        error = self.act.loss(hidden, context, batch["action"], weight, keys)
        metrics = {}
        if not self.head.iterative:
            squared = jnp.square(self.act.sample(hidden, context, keys) - batch["action"])
            metrics = {"action_mse": weighted_mean(squared, weight)}
        return Output(losses={"action": weighted_mean(error, weight)}, metrics=metrics)

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How many numbers of its actions each example has to learn from."""
        count = jnp.sum(self._weight(batch), (1, 2))
        return {"action": count} if self.head.iterative else {"action": count, "action_mse": count}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{"action": f32 [B, T, A]}, normalised."""
        with self.adapters():
            return {"action": self.apply_head(*self.backbone_states(batch, self.encode_images(batch)))}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example f32 [B, T, A]: "action", "prediction", "loss" and "weight" of what counts; and what the head
        measures, of bins "near"."""
        with self.adapters():
            context, hidden = self.backbone_states(batch, self.encode_images(batch))
        actions, weight, keys = batch["action"], self._weight(batch), self._keys(batch, EVALUATION_KEY)
        return {"action": actions, "weight": weight, "prediction": self.act.sample(hidden, context, keys),
                "loss": self.act.loss(hidden, context, actions, weight, keys),
                **self.act.measure(hidden, context, actions)}  # fmt: skip

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a data set, in normalised units; see `action_measures`."""
        return action_measures.summarize(arrays, self.binary)

    def backbone_states(self, batch: Mapping[str, jax.Array], visual: jax.Array) -> tuple[Context, jax.Array]:
        """What the head may see, and the hidden states [B, Q, dim] at its queries, of the tokens of `encode_images`."""
        prefix, queries = self._prefix(batch, visual), self.queries if self.head.latent else self.action_queries
        hidden = self.backbone(prefix, jnp.broadcast_to(queries, (batch["text"].shape[0], *queries.shape)))
        if self.head.latent:
            hidden = jax.nn.softmax(self.to_codes(self.codes_norm(hidden)))
        return Context(*prefix), hidden

    def apply_head(self, context: Context, hidden: jax.Array) -> jax.Array:
        """Actions f32 [B, T, A], from what `backbone_states` gave."""
        return self.act.sample(hidden, context, self._keys({"text": hidden}, EVALUATION_KEY))

    def _keys(self, batch, seed) -> jax.Array:
        """One key for each example: in training its own; in evaluation the same, so that a prediction depends on
        nothing but its example."""
        rows = batch["text"].shape[0]
        if isinstance(seed, int):
            return jnp.broadcast_to(jax.random.key(seed), (rows,))
        return jax.random.split(seed, rows)

    def _prefix(self, batch, visual) -> Prefix:
        """What is read, and proprioception as a token behind it."""
        prefix = self.build_prefix(batch, visual)
        if not self.state_dim:
            return prefix
        state = self.see_state(batch["state"])[:, None].astype(prefix.embeddings.dtype)
        return Prefix(jnp.concatenate([prefix.embeddings, state], axis=1),
                      jnp.concatenate([prefix.real, jnp.ones((state.shape[0], 1), bool)], axis=1))  # fmt: skip

    @nn.nowrap
    def _weight(self, batch) -> jax.Array:
        """f32 [B, T, A]: 0 for steps without an action, constant dimensions and those that a robot does not have."""
        moving = jnp.array([i not in self.constant for i in range(self.action_dim)], jnp.float32)
        weight = batch["action_mask"][..., None] * moving
        return weight * batch["action_dims"][:, None] if "action_dims" in batch else weight
