"""Cosine coefficients of a chunk, each as one of K whole numbers: the output of FAST (Pertsch et al. 2025,
arXiv:2501.09747) without its byte-pair encoding.

FAST joins coefficients to fewer tokens because its decoder writes them one after the other. Here all are read off at
one query at once, so there is no sequence to shorten, and every prediction is a chunk. `evaluate.codecs.fast` has the
byte-pair encoding too, to measure it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count
from lapa_jax.models.policies.heads.base import Context, Head
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


class Model(Head):
    """The T coefficients of each dimension, orthonormal DCT-II over time, times `scale` and rounded.

    A chunk whose last steps are not known is taken to stay where it is, and as many of its coefficients are learned
    from, the lowest frequencies, as it has known steps.

    Attributes:
      scale: what coefficients are multiplied by before they are rounded; FAST uses 10.
      limit: the largest coefficient, after that; K = 2 limit + 1. Those beyond it, of actions far outside of the usual
        range, become the limit.
    """

    scale: float = 10.0
    limit: Count = 40

    @nn.nowrap
    def check(self) -> None:
        """Raises `UserError` for a scale that leaves nothing, and as `Head.check`."""
        super().check()
        if not self.scale > 0:
            raise UserError(f"model.head.scale is {self.scale}; a number above 0 is needed, FAST uses 10")

    @property
    def queries(self) -> int:
        """One."""
        return 1

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, 1, D] -> logits f32 [B, T, A, K] of the coefficients, lowest frequency first."""
        shape = (hidden.shape[0], self.chunk_length, self.action_dim, 2 * self.limit + 1)
        x = LayerNorm(dtype=jnp.dtype(self.dtype), name="norm")(hidden)
        return Linear(shape[1] * shape[2] * shape[3], name="out")(x).reshape(shape)

    def loss(self, hidden, context: Context, actions, weight, rng) -> jax.Array:
        """The cross-entropy of the coefficients, in nats: at step k that of the k-th frequency."""
        target = self.tokens_of(_held(actions, weight > 0))[..., None]
        return -jnp.take_along_axis(jax.nn.log_softmax(self(hidden)), target, axis=-1)[..., 0]

    def sample(self, hidden, context: Context, rng) -> jax.Array:
        """The chunk of the most likely coefficients; `rng` is not used."""
        return self.actions_of(jnp.argmax(self(hidden), -1))

    @nn.nowrap
    def tokens_of(self, actions: jax.Array) -> jax.Array:
        """i32 [B, T, A] in 0..K-1, the rounded coefficients plus `limit`, of actions f32 [B, T, A]."""
        coefficients = jnp.einsum("kt,bta->bka", _cosines(self.chunk_length), actions, precision="highest")
        whole = jnp.clip(jnp.round(self.scale * coefficients), -self.limit, self.limit)
        return whole.astype(jnp.int32) + self.limit

    @nn.nowrap
    def actions_of(self, tokens: jax.Array) -> jax.Array:
        """Actions f32 [B, T, A] of tokens i32 [B, T, A]."""
        coefficients = (tokens - self.limit).astype(jnp.float32) / self.scale
        return jnp.einsum("kt,bka->bta", _cosines(self.chunk_length), coefficients, precision="highest")


def _cosines(length: int) -> np.ndarray:
    """f32 [T, T]: the orthonormal DCT-II, a row for each frequency; its transpose is its inverse."""
    frequency, step = np.arange(length)[:, None], np.arange(length)
    rows = np.cos(np.pi * (step + 0.5) * frequency / length) * np.sqrt(2 / length)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _held(actions: jax.Array, known: jax.Array) -> jax.Array:
    """Actions [B, T, A] with what is not known, bool [B, T, A], replaced by the last known one before it."""
    step = jnp.where(known, jnp.arange(actions.shape[1])[:, None], 0)
    return jnp.take_along_axis(actions, jax.lax.cummax(step, axis=1), axis=1)
