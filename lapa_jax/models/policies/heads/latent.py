"""Head B: actions from a latent action and what is seen, as UniVLA's decoder has it (Bu et al. 2025)."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Range
from lapa_jax.models.policies.heads.base import Context, Head
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


class Model(Head):
    """A small decoder of latent actions. Codes alone, 12 bits, cannot fix an action.

    The probabilities of the N codes weigh their embeddings; queries for the T steps attend to these and to the tokens
    before them: image, instruction and state.

    Attributes:
      code_length, codebook_size: N and K of the stage-2 run, whose queries and code head it goes on with.
      width: of the decoder. heads: of its attention.
      context: False leaves out all but the codes: a plain network on their embeddings.
    """

    code_length: Count = 4
    codebook_size: Annotated[int, Range(2)] = 8
    width: Count = 1024
    heads: Count = 8
    context: bool = True

    latent = True

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not go together."""
        super().check()
        if self.width % self.heads:
            raise UserError(f"head.width {self.width} is no multiple of head.heads, {self.heads}")

    @nn.compact
    def __call__(self, probabilities: jax.Array, seen: Context) -> jax.Array:
        """Probabilities of codes f32 [B, N, K] -> actions f32 [B, T, A]."""
        dtype = jnp.dtype(self.dtype)
        rows, positions, size = probabilities.shape
        linear = lambda width, name: Linear(width, dtype=dtype, name=name)  # noqa: E731
        table = self.param("codes", nn.initializers.normal(1.0), (positions, size, self.width))
        codes = jnp.einsum("bnk,nkd->bnd", probabilities, table).astype(dtype)
        if not self.context:
            x = nn.relu(linear(self.width, "hidden")(codes.reshape(rows, -1)))
            x = nn.relu(linear(self.width // 2, "hidden_2")(x))
            x = Linear(self.chunk_length * self.action_dim, name="out")(x)
            return x.reshape(rows, self.chunk_length, self.action_dim)
        tokens = linear(self.width, "see")(LayerNorm(dtype=dtype, name="norm_context")(seen.embeddings))
        tokens = jnp.concatenate([codes, tokens], axis=1)
        mask = jnp.concatenate([jnp.ones((rows, positions), bool), seen.real], axis=1)
        x = self.param("queries", nn.initializers.normal(0.02), (self.chunk_length, self.width)).astype(dtype)
        x = jnp.broadcast_to(x, (rows, *x.shape)) + linear(self.width, "start")(codes.reshape(rows, 1, -1))
        attention = Attention(self.heads, self.width // self.heads, dtype=dtype, name="attention")
        x = x + attention(LayerNorm(dtype=dtype, name="norm_attention")(x), tokens, mask=mask)
        y = LayerNorm(dtype=dtype, name="norm_hidden")(x)
        x = x + linear(self.width, "down")(nn.gelu(linear(4 * self.width, "up")(y)))
        x = LayerNorm(dtype=dtype, name="norm_out")(x)
        return Linear(self.action_dim, name="out")(x)

    def loss(self, hidden, context: Context, actions, weight, rng) -> jax.Array:
        """Absolute errors."""
        return jnp.abs(self(hidden, context) - actions)

    def sample(self, hidden, context: Context, rng) -> jax.Array:
        """The decoded actions; `rng` is not used."""
        return self(hidden, context)
