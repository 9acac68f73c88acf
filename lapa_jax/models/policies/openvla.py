"""OpenVLA (Kim et al. 2024, arXiv:2406.09246): a vision-language model whose last 256 tokens are bins of actions.

The sequence is [bos][image][prompt][action tokens], causal throughout. A dimension of the action is one token, chosen
greedily with the others before it in sight; larger actions have smaller ids. Released checkpoints become models of this
kind by `tools/import_weights.py openvla` and `prismatic`, and are finetuned with `configs/openvla.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.policies import action_measures, vision_language
from lapa_jax.models.policies.vision_language import VisionLanguageModel
from lapa_jax.nn.linear import INT8_KERNEL, Linear, fan_in_uniform
from lapa_jax.nn.losses import weighted_mean

Choose = Literal["all", "actions"]


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell: the width of actions, and sizes of the body.

    Raises:
      UserError: the samples are no single actions with an image and an instruction.
    """
    batch = source.batch([])
    shape = batch.get("action", np.zeros(0)).shape
    if len(shape) != 3 or shape[1] != 1 or "history_mask" in batch or "state" in batch:
        raise UserError(f"{spec['name']} learns single actions from an image and an instruction: set "
                        "data.samples=chunks, data.chunk_length=1, data.history=0 and "
                        "data.fields=('image','text','action')")  # fmt: skip
    filled = vision_language.body_from_data(spec, source)
    given = {"action_dim": spec.get("action_dim")}
    return {**filled, **vision_language.agree(given, {"action_dim": shape[2]})}


class TokenHead(Linear):
    """Hidden states to the logits f32 of all tokens, or of some. Products are summed in float32 and not rounded to
    `dtype`: logits in bfloat16 tie at the top, and argmax takes the lowest token of a tie."""

    def _product(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", INT8_KERNEL):
            return super()._product(x)
        kernel = self.param("kernel", fan_in_uniform, (x.shape[-1], self.features))
        return jnp.matmul(x, kernel.astype(self.dtype), preferred_element_type=jnp.float32)

    def some(self, x: jax.Array, first: int, count: int) -> jax.Array:
        """[..., D] -> [..., count], the logits of the ids from `first` on; no other column of the kernel is read."""
        if self.has_variable("params", INT8_KERNEL):
            return self(x)[..., first : first + count]
        kernel = jax.lax.slice_in_dim(self.get_variable("params", "kernel"), first, first + count, axis=1)
        return jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32)


class Model(VisionLanguageModel, base.ActionPolicy):
    """Actions as tokens, from an image and an instruction.

    Batches are those of `data.samples = "chunks"` with chunks of one action, normalised with `data.normalize =
    "openvla"`. The loss is "action", the cross-entropy of the action's tokens and of the end behind them.

    Attributes, besides those of `VisionLanguageModel`:
      action_dim: A, None is taken from the data. Of several data sets the widest one's.
      action_end: the ids of actions are those below it: the vocabulary without what was added for padding.
      edges: of the bins, evenly spaced over [-1, 1]; there is one bin less, decoded at its centre.
      choose: which ids are compared, "all", as the official code does, or "actions", which reads that part of the head
        only. An id of a text would be decoded as the action that is nearest to it in number.
      end: the id that follows the action in training, Llama's `</s>`; None leaves it out of the loss.
    """

    action_dim: FromData = None
    action_end: int = 32000
    edges: Annotated[int, Range(2)] = 256
    choose: Choose = "all"
    end: int | None = 2

    kind = "token_policy"
    chunk_length = 1
    state_dim = 0

    def setup(self):
        super().setup()
        self.lm_head = TokenHead(self.llm.vocab, use_bias=False, dtype=jnp.dtype(self.dtype))

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        super().check()
        if not self.edges <= self.action_end <= self.llm.vocab:
            raise UserError(f"action_end is {self.action_end}; with {self.edges} edges and a vocabulary of "
                            f"{self.llm.vocab} it lies between the two")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, with all masks 1."""
        return {**super().example(batch_size),
                "action": np.zeros((batch_size, 1, self.action_dim), np.float32),
                "action_mask": np.ones((batch_size, 1), np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        tokens, weight = self.tokens_of(batch["action"][:, 0]), self._weight(batch)[:, 0]
        with self.adapters():
            logits = self.teacher_forced_logits(batch, tokens)
        right = jnp.argmax(logits[:, : self.action_dim], -1) == tokens
        accuracy = weighted_mean(right, weight)
        if self.end is not None:
            tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=self.end)
        error = weighted_mean(_cross_entropy(logits, tokens), self._with_end(weight))
        return Output(losses={"action": error}, metrics={"token_accuracy": accuracy})

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How many tokens of its action each example has to learn from."""
        weight = self._weight(batch)[:, 0]
        return {"action": jnp.sum(self._with_end(weight), 1), "token_accuracy": jnp.sum(weight, 1)}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """"tokens" i32 [B, 1, A], chosen one after the other, and "action" f32 [B, 1, A], normalised, of them."""
        with self.adapters():
            tokens = self.generate(batch)[:, None]
        return {"tokens": tokens, "action": jnp.asarray(self.centres, jnp.float32)[self._bins(tokens)]}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example f32 [B, 1, A]: "action", "prediction", "loss", given the true tokens before, "weight" of what
        counts, and "near" bool [B, 1, A], whether the predicted bin is at most one away."""
        tokens, predicted = self.tokens_of(batch["action"]), self.predict(batch)
        with self.adapters():
            logits = self.teacher_forced_logits(batch, tokens[:, 0])[:, : self.action_dim]
        return {"action": batch["action"], "prediction": predicted["action"], "weight": self._weight(batch),
                "loss": _cross_entropy(logits, tokens[:, 0])[:, None],
                "near": jnp.abs(self._bins(predicted["tokens"]) - self._bins(tokens)) <= 1}  # fmt: skip

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a data set, in normalised units; see `action_measures`."""
        return action_measures.summarize(arrays, ())

    @property
    def tokens(self) -> int:
        """How many are decoded for an action."""
        return self.action_dim

    @nn.nowrap
    def first_token_only(self) -> "Model":
        """The same model that stops behind its first token; the difference in time is that of the others."""
        return self.clone(action_dim=1)

    @property
    def centres(self) -> np.ndarray:
        """f64 [edges - 1]: what the bins are decoded as."""
        edges = np.linspace(-1, 1, self.edges)
        return (edges[:-1] + edges[1:]) / 2

    @nn.nowrap
    def actions_of(self, tokens: np.ndarray) -> np.ndarray:
        """Normalised actions f64 of tokens int [...]: what `predict` gives, in the precision of the official code."""
        return self.centres[np.clip(self.action_end - np.asarray(tokens) - 1, 0, self.edges - 2)]

    @nn.nowrap
    def tokens_of(self, action: jax.Array) -> jax.Array:
        """i32: the tokens of normalised actions f32 [...], as the official code has them in training: the number of
        edges up to the action, which is that of the edges for 1.0 alone, counted down from `action_end`."""
        edges = np.linspace(-1, 1, self.edges)
        # the smallest float32 that are not below: then float32 numbers compare with them as with the edges themselves
        single = edges.astype(np.float32)
        single = np.where(single < edges, np.nextafter(single, np.float32(2)), single)
        number = jnp.searchsorted(jnp.asarray(single), jnp.clip(action, -1, 1), side="right")
        return (self.action_end - number).astype(jnp.int32)

    def generate(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The A greedy tokens i32 [B, A] behind the prompt; the images are seen once, then a cache is read."""
        prefix, last = self.before_last(batch)
        state, cache = self.prefill(prefix, self.llm.embed(last), self.action_dim - 1)
        first = self._chosen(state)

        def step(module, carry, number):
            token, cache = carry
            state, cache = module.decode_step(prefix, module.llm.embed(token), number, cache)
            token = module._chosen(state)
            return (token, cache), token

        # one loop in the compiled program: nothing comes back to the host between tokens
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, tokens = scan(self, (first, cache), jnp.arange(1, self.action_dim))
        return jnp.concatenate([first, jnp.moveaxis(tokens[..., 0], 0, 1)], axis=1)

    def teacher_forced_logits(self, batch: Mapping[str, jax.Array], tokens: jax.Array) -> jax.Array:
        """f32 [B, A + 1, vocab]: of the action's tokens i32 [B, A], and of what follows, given the true ones before."""
        prefix, last = self.before_last(batch)
        states = self.backbone(prefix, self.llm.embed(jnp.concatenate([last, tokens], axis=1)))
        return self.lm_head(states)

    def _chosen(self, state: jax.Array) -> jax.Array:
        """[B, 1, D] -> i32 [B, 1]"""
        if self.choose == "all" or self.is_initializing():
            return jnp.argmax(self.lm_head(state), -1)
        first = self.action_end - self.edges
        return first + jnp.argmax(self.lm_head.some(state, first, self.edges), -1)

    def _bins(self, tokens: jax.Array) -> jax.Array:
        return jnp.clip(self.action_end - tokens - 1, 0, self.edges - 2)

    @nn.nowrap
    def _with_end(self, weight: jax.Array) -> jax.Array:
        """[B, A] -> [B, A + 1] where a token ends the action: it counts where all of the action does."""
        return weight if self.end is None else jnp.concatenate([weight, jnp.min(weight, 1, keepdims=True)], axis=1)

    @nn.nowrap
    def _weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """f32 [B, 1, A]: 0 for steps without an action and dimensions that a robot does not have."""
        weight = jnp.broadcast_to(batch["action_mask"][..., None], batch["action"].shape)
        return weight * batch["action_dims"][:, None] if "action_dims" in batch else weight


def _cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """f32 [B, N, V] and i32 [B, N] -> f32 [B, N], in nats."""
    logits = logits[:, : tokens.shape[1]]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
