"""Normalisation by running statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RunningNorm(nn.Module):
    """Subtracts a mean per feature and divides by one common scale, so that the result has a root mean square of 1.

    In training the statistics are the batch's (the global one under jit) and move the running ones, which evaluation
    uses; they are kept in the mutable collection "codebook" and start as those of the batch of the initialisation.

    Attributes:
      momentum: share of the running statistics that one training pass keeps.
    """

    momentum: float = 0.98

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: f32 [B, ...] -> the same shape; the mean is over the batch, the scale over everything."""
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=0)
        scale = jnp.sqrt(jnp.mean(jnp.square(x - mean)) + 1e-8)
        running_mean = self.variable("codebook", "mean", lambda: mean)
        running_scale = self.variable("codebook", "scale", lambda: scale)
        if not train:
            return (x - running_mean.value) / running_scale.value
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_scale, scale)):
                moved = self.momentum * running.value + (1 - self.momentum) * value
                running.value = jax.lax.stop_gradient(moved)
        return (x - mean) / scale
