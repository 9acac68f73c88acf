"""The feed-forward part of a transformer block."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.linear import Linear


class GEGLU(nn.Module):
    """Linear to 2 x hidden, value times gelu(gate), linear back; no biases. Normalising the input is the caller's part.

    Attributes:
      mlp_ratio: the hidden width is `int(mlp_ratio * 2/3 * dim)`, which keeps the parameter count of a plain
        feed-forward of `mlp_ratio * dim`. 4 is the official value: 2730 for dim 1024.
      dtype: dtype of the computation; parameters are float32.
    """

    mlp_ratio: float = 4.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] -> [..., D] in `dtype`."""
        dim = x.shape[-1]
        hidden = int(self.mlp_ratio * 2 / 3 * dim)
        up = Linear(2 * hidden, use_bias=False, dtype=self.dtype, name="up")
        down = Linear(dim, use_bias=False, dtype=self.dtype, name="down")
        value, gate = jnp.split(up(x), 2, axis=-1)
        return down(value * exact_gelu(gate))


class SwiGLU(nn.Module):
    """Linear back of silu(gate) times value, without biases, as in Llama (Shazeer 2020). Norms are the caller's part.

    Attributes: hidden: width inside. dtype: of the computation; parameters are float32.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] -> [..., D] in `dtype`."""
        linear = lambda width, name: Linear(width, use_bias=False, dtype=self.dtype, name=name)  # noqa: E731
        gated = nn.silu(linear(self.hidden, "gate")(x)) * linear(self.hidden, "up")(x)
        return linear(x.shape[-1], "down")(gated)


def exact_gelu(x: jax.Array) -> jax.Array:
    """x * P(standard normal < x), exactly. By erf, since jax.nn.gelu takes the slower erfc for the last bit of the far
    tail; the tanh approximation differs by up to 5e-4, too much for parity with official weights."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))
