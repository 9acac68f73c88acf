"""Heads that turn a vision-language model's states into robot actions, each in its own way.

All are called with states at their queries and give `Predicted`; all take actions normalised so that their usual range
is [-1, 1] (`data.normalize = "q01_q99"`), and dimensions of two values, a gripper's, as -1 and 1.

The last projection of each is float32 whatever the others compute in: bfloat16 has 8 bits, so that actions would lie on
a grid of 0.004, and the logits of neighbouring bins would be equal.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.attention import Attention
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


class Predicted(NamedTuple):
    """action: f32 [B, T, A], normalised. logits: f32 [B, T, A, K] of the bins, or None."""

    action: jax.Array
    logits: jax.Array | None = None


class BinHead(nn.Module):
    """Each dimension of each step as one of K bins of equal width over [-1, 1], from one query (the plan's head A).

    A dimension of two values has the first and the last bin alone. Bins are decoded at their centres.

    Attributes: chunk_length: T. action_dim: A. bins: K. binary: dimensions of two values. dtype: of the computation.
      decode: which bin is the action: "argmax", the most likely, as OpenVLA takes it; "median", the first up to which
        half of the probability lies: the action of the smallest expected absolute error. A head that has learned
        little spreads over neighbouring bins, of which the most likely one is any.
    """

    chunk_length: int
    action_dim: int
    bins: int
    binary: tuple[int, ...]
    dtype: jnp.dtype
    decode: str = "argmax"

    QUERIES = 1

    @nn.compact
    def __call__(self, hidden: jax.Array, context: jax.Array, real: jax.Array) -> Predicted:
        """hidden [B, 1, D]; context and real are not needed."""
        shape = (hidden.shape[0], self.chunk_length, self.action_dim, self.bins)
        x = LayerNorm(dtype=self.dtype, name="norm")(hidden)
        logits = Linear(shape[1] * shape[2] * shape[3], name="out")(x)
        logits = jnp.where(self._possible(), logits.reshape(shape), -1e9)
        return Predicted(self.centres()[self.chosen(logits)] * self._stretch(), logits)

    @nn.nowrap
    def loss(self, predicted: Predicted, action: jax.Array) -> jax.Array:
        """f32 [B, T, A]: the cross-entropy of the bins of actions f32 [B, T, A]."""
        bins = self.bins_of(action)[..., None]
        return -jnp.take_along_axis(jax.nn.log_softmax(predicted.logits), bins, axis=-1)[..., 0]

    @nn.nowrap
    def bins_of(self, action: jax.Array) -> jax.Array:
        """i32 [B, T, A]; what lies outside goes to the nearest bin, of two values to the nearer end."""
        bins = jnp.clip(jnp.floor((action + 1) / 2 * self.bins), 0, self.bins - 1).astype(jnp.int32)
        return jnp.where(self._two(), jnp.where(action > 0, self.bins - 1, 0), bins)

    @nn.nowrap
    def chosen(self, logits: jax.Array) -> jax.Array:
        """The bins i32 [...] of logits f32 [..., K]."""
        if self.decode == "argmax":
            return jnp.argmax(logits, -1)
        below = jnp.cumsum(jax.nn.softmax(logits), -1) < 0.5
        return jnp.minimum(jnp.sum(below, -1), self.bins - 1)

    @nn.nowrap
    def centres(self) -> jax.Array:
        """f32 [K]."""
        return (jnp.arange(self.bins) + 0.5) / self.bins * 2 - 1

    def _two(self) -> jax.Array:
        return jnp.array([i in self.binary for i in range(self.action_dim)])

    def _possible(self) -> jax.Array:
        ends = jnp.isin(jnp.arange(self.bins), jnp.array([0, self.bins - 1]))
        return ends[None] | ~self._two()[:, None]

    def _stretch(self) -> jax.Array:
        """Brings the centres of the outermost bins to the two values."""
        return jnp.where(self._two(), self.bins / (self.bins - 1), 1.0)


class ChunkHead(nn.Module):
    """A query for each step of the chunk, and L1 regression (OpenVLA-OFT, Kim et al. 2025): residual blocks of norm,
    linear, ReLU behind a linear layer.

    Attributes: chunk_length: T. action_dim: A. width: of the blocks. dtype: of the computation.
    """

    chunk_length: int
    action_dim: int
    width: int
    dtype: jnp.dtype

    BLOCKS = 2

    @nn.compact
    def __call__(self, hidden: jax.Array, context: jax.Array, real: jax.Array) -> Predicted:
        """hidden [B, T, D]; context and real are not needed."""
        x = LayerNorm(dtype=self.dtype, name="norm")(hidden)
        x = nn.relu(Linear(self.width, dtype=self.dtype, name="in")(x))
        for block in range(self.BLOCKS):
            y = LayerNorm(dtype=self.dtype, name=f"norm_{block}")(x)
            x = x + nn.relu(Linear(self.width, dtype=self.dtype, name=f"block_{block}")(y))
        x = LayerNorm(dtype=self.dtype, name="norm_out")(x)
        return Predicted(Linear(self.action_dim, name="out")(x))

    @nn.nowrap
    def loss(self, predicted: Predicted, action: jax.Array) -> jax.Array:
        """f32 [B, T, A]: absolute errors."""
        return jnp.abs(predicted.action - action)


class LatentHead(nn.Module):
    """Actions from a latent action and what is seen (the plan's head B): codes alone, 12 bits, cannot fix an action.

    The probabilities of the N codes weigh their embeddings; queries for the T steps attend to these and to the tokens
    before them, pictures, instruction and proprioception, as UniVLA's decoder does (Bu et al. 2025).

    Attributes:
      chunk_length: T. action_dim: A. width: of the decoder. heads: of its attention.
      context: False leaves out all but the codes: a plain network on their embeddings, as in the plan.
      dtype: of the computation.
    """

    chunk_length: int
    action_dim: int
    width: int
    heads: int
    context: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, probabilities: jax.Array, context: jax.Array, real: jax.Array) -> Predicted:
        """probabilities f32 [B, N, K], context [B, S, D] with real bool [B, S] -> actions."""
        rows, places, size = probabilities.shape
        linear = lambda width, name: Linear(width, dtype=self.dtype, name=name)  # noqa: E731
        table = self.param("codes", nn.initializers.normal(1.0), (places, size, self.width))
        codes = jnp.einsum("bnk,nkd->bnd", probabilities, table).astype(self.dtype)
        if not self.context:
            x = nn.relu(linear(self.width, "hidden")(codes.reshape(rows, -1)))
            x = nn.relu(linear(self.width // 2, "hidden_2")(x))
            x = Linear(self.chunk_length * self.action_dim, name="out")(x)
            return Predicted(x.reshape(rows, self.chunk_length, self.action_dim))
        seen = linear(self.width, "see")(LayerNorm(dtype=self.dtype, name="norm_context")(context))
        seen = jnp.concatenate([codes, seen], axis=1)
        mask = jnp.concatenate([jnp.ones((rows, places), bool), real], axis=1)
        x = self.param("queries", nn.initializers.normal(0.02), (self.chunk_length, self.width)).astype(self.dtype)
        x = jnp.broadcast_to(x, (rows, *x.shape)) + linear(self.width, "start")(codes.reshape(rows, 1, -1))
        attention = Attention(self.heads, self.width // self.heads, dtype=self.dtype, name="attention")
        x = x + attention(LayerNorm(dtype=self.dtype, name="norm_attention")(x), seen, mask=mask)
        y = LayerNorm(dtype=self.dtype, name="norm_hidden")(x)
        x = x + linear(self.width, "down")(nn.gelu(linear(4 * self.width, "up")(y)))
        x = LayerNorm(dtype=self.dtype, name="norm_out")(x)
        return Predicted(Linear(self.action_dim, name="out")(x))

    @nn.nowrap
    def loss(self, predicted: Predicted, action: jax.Array) -> jax.Array:
        """f32 [B, T, A]: absolute errors."""
        return jnp.abs(predicted.action - action)
