"""Head C: a query for each step of the chunk, and L1 regression (OpenVLA-OFT, Kim et al. 2025)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.fields import Count
from lapa_jax.models.policies.heads.base import Context, Head
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


class Model(Head):
    """Linear, residual blocks of norm, linear and ReLU, linear. Attributes: width: of the blocks."""

    width: Count = 1024

    BLOCKS = 2

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] -> actions f32 [B, T, A]."""
        dtype = jnp.dtype(self.dtype)
        x = LayerNorm(dtype=dtype, name="norm")(hidden)
        x = nn.relu(Linear(self.width, dtype=dtype, name="in")(x))
        for block in range(self.BLOCKS):
            y = LayerNorm(dtype=dtype, name=f"norm_{block}")(x)
            x = x + nn.relu(Linear(self.width, dtype=dtype, name=f"block_{block}")(y))
        x = LayerNorm(dtype=dtype, name="norm_out")(x)
        return Linear(self.action_dim, name="out")(x)

    def loss(self, hidden, context: Context, actions, weight, rng) -> jax.Array:
        """Absolute errors."""
        return jnp.abs(self(hidden) - actions)

    def sample(self, hidden, context: Context, rng) -> jax.Array:
        """The regressed actions; `rng` is not used."""
        return self(hidden)
