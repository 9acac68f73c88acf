"""Head A: each dimension of each step as one of K bins, as RT-2 and OpenVLA have it (Kim et al. 2024)."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.fields import Range
from lapa_jax.models.policies.heads.base import Context, Head
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


class Model(Head):
    """K bins of equal width over [-1, 1], all read off at one query; an action is the centre of a bin.

    A dimension of two values has the first and the last bin alone.

    Attributes:
      bins: K.
      decode: which bin is the action: "argmax", the most likely, as OpenVLA takes it; "median", the first up to which
        half of the probability lies: the action of the smallest expected absolute error. After few steps the
        distribution over bins is flat, so its argmax is noisy; the median is more stable.
    """

    bins: Annotated[int, Range(2)] = 256
    decode: Literal["argmax", "median"] = "argmax"

    @property
    def queries(self) -> int:
        """One."""
        return 1

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, 1, D] -> logits f32 [B, T, A, K]."""
        shape = (hidden.shape[0], self.chunk_length, self.action_dim, self.bins)
        x = LayerNorm(dtype=jnp.dtype(self.dtype), name="norm")(hidden)
        logits = Linear(shape[1] * shape[2] * shape[3], name="out")(x)
        return jnp.where(self._possible(), logits.reshape(shape), -1e9)

    def loss(self, hidden, context: Context, actions, weight, rng) -> jax.Array:
        """The cross-entropy of the actions' bins, in nats."""
        bins = self.bins_of(actions)[..., None]
        return -jnp.take_along_axis(jax.nn.log_softmax(self(hidden)), bins, axis=-1)[..., 0]

    def sample(self, hidden, context: Context, rng) -> jax.Array:
        """The centres of the bins that `decode` chooses; `rng` is not used."""
        # the centres of the outermost bins are stretched to the two values of a gripper
        stretch = jnp.where(self._two(), self.bins / (self.bins - 1), 1.0)
        return self.centres()[self.chosen(self(hidden))] * stretch

    def measure(self, hidden, context: Context, actions) -> dict[str, jax.Array]:
        """"near" bool [B, T, A]: whether the chosen bin is at most one away."""
        return {"near": jnp.abs(self.chosen(self(hidden)) - self.bins_of(actions)) <= 1}

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
