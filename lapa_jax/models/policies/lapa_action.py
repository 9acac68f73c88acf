"""LAPA-7B finetuned to the actions of a robot (Ye et al. 2024): each dimension a token, by an embedding and a head of
their own, which all dimensions share.

A dimension's bins lie between the edges that pandas' qcut laid over the finetuning data, as many actions in each; they
are no part of the official weights but a table beside them.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.data.action_bins import ActionBins
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.models import base
from lapa_jax.models.policies import action_measures, lapa, vla
from lapa_jax.models.policies.lapa import Lapa, body_from_data
from lapa_jax.models.policies.openvla import TokenHead
from lapa_jax.nn.losses import weighted_mean

ACTION_PROMPT = (1533, 4924, 29958, 529, 2467, 29958)
"""`</vision> <action>` in the tokenizer of Llama 1 and 2."""
OUTSIDE = 1.0
"""What the official code takes for a token that is none of a dimension's bins."""


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell: `text_length`, and the `edges` of bins of equally many actions.

    Raises:
      UserError: the samples are no chunks of one data set's actions as they are stored, or have other dimensions.
    """
    batch, name = source.batch([]), spec["name"]
    if len(batch.get("action", np.zeros(0)).shape) != 3 or "state" in batch or "history_mask" in batch:
        raise UserError(f"{name} learns chunks of actions from an image and an instruction: set data.samples=chunks, "
                        "data.history=0 and data.fields=('image','text','action')")  # fmt: skip
    statistics = statistics_of(source.meta())
    if len(statistics) > 1 or getattr(getattr(source, "options", None), "normalize", "none") != "none":
        raise UserError(f"{name} has one table of bins, for actions as they are stored: give one data set, and "
                        "data.normalize=none")  # fmt: skip
    chunk, width = batch["action"].shape[1:]
    edges = spec.get("edges")
    if edges is None:
        bins = ActionBins(next(iter(statistics.values()))["action"], "equal_frequency", spec.get("bins") or 256)
        edges = [[float(edge) for edge in row] for row in bins.edges]
    given = spec.get("chunk_length")
    if len(edges) != width or given not in (None, chunk):
        raise UserError(f"{name} gives {given or chunk} actions of {len(edges)} dimensions, the data have {chunk} of "
                        f"{width}; change data.chunk_length or model.edges")  # fmt: skip
    return {**body_from_data(spec, source), "edges": edges, "chunk_length": chunk}


class Model(Lapa, base.ActionPolicy):
    """Actions as tokens, from an image and an instruction.

    Batches are those of `data.samples = "chunks"` with the fields "image", "text" and "action", as they are stored. The
    loss is "action", the cross-entropy of the tokens given the true ones before.

    Attributes: those of `Lapa`, and
      edges: for each dimension of the actions the edges of its bins, increasing. None is taken from the data.
      chunk_length: T, actions that are predicted one after the other; 1 in the official code.
      bins: tokens of actions, at least as many as a dimension has bins.
      choose: which tokens are compared, "all", as the official code does, or "existing", those that are bins of the
        dimension. Of "all" one that is none is decoded as the action 1.
      action_prompt: the ids between the image and the action's tokens.
    """

    edges: tuple[tuple[float, ...], ...] | None = None
    chunk_length: FromData = 1
    bins: Annotated[int, Range(2)] = 256
    choose: Literal["all", "existing"] = "existing"
    action_prompt: tuple[int, ...] = ACTION_PROMPT

    kind = "token_policy"
    state_dim = 0

    def setup(self):
        super().setup()
        self.action_embedding = self.param("action_embedding", nn.initializers.normal(0.02), (self.bins, self.llm.dim))
        self.to_action = TokenHead(self.bins, use_bias=False, dtype=jnp.dtype(self.llm.dtype))

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        super().check()
        self.check_ids("action_prompt")
        check_edges(self.edges, self.bins)

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.edges)

    @property
    def tokens(self) -> int:
        """How many are decoded for a chunk."""
        return self.chunk_length * self.action_dim

    @nn.nowrap
    def first_token_only(self) -> "Model":
        """The same model that stops behind its first token; the difference in time is that of the others."""
        return self.clone(edges=self.edges[:1], chunk_length=1)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, with all masks 1."""
        return {**self.observation(batch_size),
                "action": np.zeros((batch_size, self.chunk_length, self.action_dim), np.float32),
                "action_mask": np.ones((batch_size, self.chunk_length), np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        tokens, weight = self.tokens_of(batch["action"]), self._weight(batch)
        with self.adapters():
            sequence = self.sequence(batch, self.action_prompt)
            logits = self.action_logits(sequence, tokens)
        if self.is_initializing():
            self.make_other_parameters(sequence)
        return Output(losses={"action": weighted_mean(vla.cross_entropy(logits, tokens), weight)},
                      metrics={"token_accuracy": weighted_mean(jnp.argmax(logits, -1) == tokens, weight)})  # fmt: skip

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How many tokens of its actions each example has to learn from."""
        count = jnp.sum(self._weight(batch), (1, 2))
        return {"action": count, "token_accuracy": count}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Greedy "tokens" i32 [B, T, A], their "logits" f32 [B, T, A, K], and "action" f32 [B, T, A] that they mean."""
        with self.adapters():
            tokens, logits = self.action_tokens(self.sequence(batch, self.action_prompt))
        return {"tokens": tokens, "logits": logits, "action": self._values(tokens)}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example f32 [B, T, A]: "action", "prediction", "loss", given the true tokens before, "weight" of what
        counts, and "near" bool [B, T, A], whether the predicted bin is at most one away."""
        tokens = self.tokens_of(batch["action"])
        with self.adapters():
            sequence = self.sequence(batch, self.action_prompt)
            predicted, _ = self.action_tokens(sequence)
            logits = self.action_logits(sequence, tokens)
        return {"action": batch["action"], "prediction": self._values(predicted), "weight": self._weight(batch),
                "loss": vla.cross_entropy(logits, tokens), "near": jnp.abs(predicted - tokens) <= 1}  # fmt: skip

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a data set, in the units of the data; see `action_measures`."""
        return action_measures.summarize(arrays, ())

    def action_tokens(self, sequence: lapa.Sequence) -> tuple[jax.Array, jax.Array]:
        """The greedy tokens i32 [B, T, A] behind a sequence, and their logits f32 [B, T, A, K]."""
        count = self.chunk_length * self.action_dim
        tokens, logits = self.generate(sequence, count, _action_logits, _embed_action)
        shape = (tokens.shape[0], self.chunk_length, self.action_dim)
        return tokens.reshape(shape), logits.reshape(*shape, self.bins)

    def action_logits(self, sequence: lapa.Sequence, tokens: jax.Array) -> jax.Array:
        """f32 [B, T, A, K]: logits of tokens i32 [B, T, A], given the true ones before."""
        flat = tokens.reshape(tokens.shape[0], -1)
        states = self.hidden(sequence, _embed_action(self, flat[:, :-1]))
        logits = self.to_action(states).astype(jnp.float32).reshape(*tokens.shape, self.bins)
        return jnp.where(self._allowed(), logits, -1e9)

    @nn.nowrap
    def tokens_of(self, action: jax.Array) -> jax.Array:
        """The bins i32 [..., A] of actions f32 [..., A]: [a, b), what lies outside in the nearest."""
        inner = _table([row[1:-1] for row in self.edges], np.inf)
        return jnp.sum(action[..., None] >= jnp.asarray(inner, jnp.float32), -1).astype(jnp.int32)

    @nn.nowrap
    def actions_of(self, tokens: np.ndarray) -> np.ndarray:
        """Actions f64 [..., A] of tokens int [..., A]: the middles of their bins, in the precision of the table."""
        tokens = np.asarray(tokens)
        middles = self._middles()
        return middles[np.arange(self.action_dim), np.clip(tokens, 0, middles.shape[1] - 1)]

    def _values(self, tokens: jax.Array) -> jax.Array:
        """The same as f32 on the device."""
        return jnp.asarray(self._middles(), jnp.float32)[jnp.arange(self.action_dim), tokens]

    @nn.nowrap
    def _middles(self) -> np.ndarray:
        """f64 [A, K]."""
        middles = np.full((self.action_dim, self.bins), OUTSIDE)
        for number, row in enumerate(self.edges):
            middles[number, : len(row) - 1] = (np.array(row[:-1]) + np.array(row[1:])) / 2
        return middles

    @nn.nowrap
    def _allowed(self) -> jax.Array:
        """bool [A, K]."""
        count = jnp.array([len(row) - 1 for row in self.edges])
        return (jnp.arange(self.bins) < count[:, None]) | (self.choose == "all")

    @nn.nowrap
    def _weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """f32 [B, T, A]: 0 for steps without an action and dimensions that never change."""
        moving = jnp.array([row[0] < row[-1] for row in self.edges], jnp.float32)
        return batch["action_mask"][..., None] * moving


def _action_logits(model: Model, states: jax.Array, number) -> jax.Array:
    logits = model.to_action(states).astype(jnp.float32)
    return jnp.where(model._allowed()[number % model.action_dim], logits, -1e9)


def _embed_action(model: Model, tokens: jax.Array) -> jax.Array:
    return model.action_embedding[tokens].astype(jnp.dtype(model.llm.dtype))


def _table(rows: Sequence[Sequence[float]], filling: float) -> np.ndarray:
    """f64 [A, K]: rows of different lengths, filled up."""
    table = np.full((len(rows), max(map(len, rows))), filling)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def check_edges(edges, bins: int) -> None:
    """Raises UserError for edges that make no bins, or more of them than there are tokens."""
    if not edges:
        raise UserError("edges are missing: the bins of the actions, which training takes from its data, and "
                        "tools/import_weights.py from a table")  # fmt: skip
    for number, row in enumerate(edges):
        values = np.asarray(row, np.float64)
        if len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise UserError(f"the edges of dimension {number} are no increasing numbers, at least two")
        if len(values) - 1 > bins:
            raise UserError(f"dimension {number} has {len(values) - 1} bins, more than the {bins} tokens of actions")
