"""A codebook updated by moving averages in the forward pass, in the fewest lines."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Ema(nn.Module):
    size: int
    decay: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, train: bool = False):
        """x f32[B, N, D] -> codes i32[B, N]; with `train` the codebook moves towards the mean of what it won."""
        flat = x.reshape(-1, x.shape[-1])
        shape = (self.size, x.shape[-1])
        codes = self.variable("codebook", "codes", lambda: jax.random.normal(self.make_rng("params"), shape))
        counts = self.variable("codebook", "counts", lambda: jnp.ones(self.size))
        sums = self.variable("codebook", "sums", lambda: codes.value)
        nearest = jnp.argmin(((flat[:, None] - codes.value) ** 2).sum(-1), axis=-1)
        if train and not self.is_initializing():
            hot = jax.nn.one_hot(nearest, self.size)
            hot = hot if mask is None else hot * mask.reshape(-1, 1)
            counts.value = self.decay * counts.value + (1 - self.decay) * hot.sum(0)
            sums.value = self.decay * sums.value + (1 - self.decay) * hot.T @ jax.lax.stop_gradient(flat)
            codes.value = sums.value / counts.value[:, None]
        return nearest.reshape(x.shape[:-1]).astype(jnp.int32)

    def lookup(self, codes: jax.Array) -> jax.Array:
        return self.get_variable("codebook", "codes")[codes]
