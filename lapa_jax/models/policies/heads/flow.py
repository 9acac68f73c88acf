"""Head D: action chunks by flow matching (Lipman et al. 2023), as pi0 has it (Black et al. 2024, arXiv:2410.24164).

With actions a, noise e and a noise share s in (0, 1], the noised chunk is x = s e + (1 - s) a, and the network learns
its velocity e - a. Sampling starts at noise, s = 1, and takes Euler steps of -1 / `steps` along the velocity to s = 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count
from lapa_jax.models.policies.heads.base import Context, Head
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm

BETA = (1.5, 1.0)
"""Of the noise share in training: more weight on noisy chunks, where the mean of the actions is decided (pi0)."""
LEAST_NOISE = 0.001
PERIODS = (4e-3, 4.0)
"""Of the sine waves that the noise share is embedded by, as in pi0: from finer than a step to longer than the range."""


class Model(Head):
    """A small transformer that denoises the whole chunk: steps attend to each other, to the hidden states at their
    queries and to what these could see.

    Attributes:
      width: of the decoder. heads: of its attention. depth: blocks.
      steps: Euler steps of sampling. samples: chunks that are drawn and averaged; 1 draws from the distribution, more
        give its mean. Noise comes from a fixed seed, so that the same observation has the same actions.
    """

    width: Count = 512
    heads: Count = 8
    depth: Count = 2
    steps: Count = 10
    samples: Count = 1

    iterative = True

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not go together."""
        super().check()
        if self.width % (2 * self.heads):
            raise UserError(f"head.width {self.width} is no multiple of twice head.heads, {2 * self.heads}")

    @nn.compact
    def __call__(self, hidden: jax.Array, context: Context, noised: jax.Array, share: jax.Array) -> jax.Array:
        """Noised chunks f32 [B, T, A] and their noise shares f32 [B] -> velocities f32 [B, T, A]."""
        dtype = jnp.dtype(self.dtype)
        linear = lambda width, name: Linear(width, dtype=dtype, name=name)  # noqa: E731
        norm = lambda name: LayerNorm(dtype=dtype, name=name)  # noqa: E731
        tokens = linear(self.width, "see")(norm("norm_context")(context.embeddings))
        states = linear(self.width, "read")(norm("norm_states")(hidden))
        # float32: the noised numbers are the input, and bfloat16 would round them to steps of 0.004
        x = Linear(self.width, name="noised")(noised).astype(dtype) + states
        time = nn.silu(linear(self.width, "share")(waves(share, self.width).astype(dtype)))
        mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), context.real], axis=1)
        for block in range(self.depth):
            # a scale and a shift by the noise share, as in diffusion transformers (Peebles & Xie 2023)
            scale, shift = jnp.split(linear(2 * self.width, f"modulate_{block}")(time)[:, None], 2, axis=-1)
            y = norm(f"norm_attention_{block}")(x) * (1 + scale) + shift
            attention = Attention(self.heads, self.width // self.heads, dtype=dtype, name=f"attention_{block}")
            x = x + attention(y, jnp.concatenate([y, tokens], axis=1), mask=mask)
            y = norm(f"norm_hidden_{block}")(x)
            x = x + linear(self.width, f"down_{block}")(nn.gelu(linear(4 * self.width, f"up_{block}")(y)))
        return Linear(self.action_dim, name="out")(norm("norm_out")(x))

    def loss(self, hidden, context: Context, actions, weight, rng) -> jax.Array:
        """Squared errors of the velocity, for noise and a noise share of each example."""
        keys = jax.vmap(jax.random.split)(rng)
        noise = self._noise(keys[:, 0])
        share = LEAST_NOISE + (1 - LEAST_NOISE) * jax.vmap(lambda key: jax.random.beta(key, *BETA))(keys[:, 1])
        # numbers that do not count are 0 in the input: steps behind the end must tell nothing
        clean = actions * (weight > 0)
        noised = share[:, None, None] * noise + (1 - share[:, None, None]) * clean
        return jnp.square(self(hidden, context, noised, share) - (noise - actions))

    def sample(self, hidden, context: Context, rng) -> jax.Array:
        """The mean of `samples` chunks, each integrated from noise of its own."""
        keys = jax.vmap(lambda key: jax.random.split(key, self.samples))(rng)
        draws = [self._integrate(hidden, context, self._noise(keys[:, k])) for k in range(self.samples)]
        return sum(draws) / self.samples

    def _integrate(self, hidden, context: Context, noise: jax.Array) -> jax.Array:
        def euler_step(head, noised, share):
            velocity = head(hidden, context, noised, jnp.broadcast_to(share, noised.shape[:1]))
            return noised - velocity / head.steps, None

        shares = 1 - jnp.arange(self.steps) / self.steps
        scan = nn.scan(euler_step, variable_broadcast="params", split_rngs={"params": False})
        return scan(self, noise, shares)[0]

    def _noise(self, keys: jax.Array) -> jax.Array:
        """f32 [B, T, A]: of each example by its own key, so that it does not depend on the batch that it is in."""
        return jax.vmap(lambda key: jax.random.normal(key, (self.chunk_length, self.action_dim)))(keys)


def waves(share: jax.Array, width: int) -> jax.Array:
    """Noise shares f32 [B] -> sines and cosines of geometrically growing periods, f32 [B, width]."""
    shortest, longest = PERIODS
    periods = shortest * (longest / shortest) ** jnp.linspace(0, 1, width // 2)
    angles = 2 * jnp.pi * share[:, None] / periods
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
