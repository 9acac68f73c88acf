"""Normalisation: of each token, and by running statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class LayerNorm(nn.Module):
    """Layer norm over the last axis; statistics in float32, the variance in two passes.

    Attributes:
      use_bias: whether a learned bias is added besides the learned scale.
      dtype: dtype of the result.
      eps: added to the variance; 1e-6 in the vision transformers of `nn/vit.py`.
    """

    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D] in `dtype`."""
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        x = x * self.param("scale", nn.initializers.ones, x.shape[-1:])
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x.astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a learned scale, over the last axis (Zhang and Sennrich 2019); float32 inside.

    Attributes: eps: 1e-5 or 1e-6 in Llama's models. dtype: of the result.
    """

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D] in `dtype`."""
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * self.param("scale", nn.initializers.ones, x.shape[-1:])).astype(self.dtype)


class RunningNorm(nn.Module):
    """Subtracts a mean per feature and divides by a scale, so that the result has a root mean square of 1.

    In training the statistics are the batch's (the global one under jit) and move the running ones, which evaluation
    uses; they are kept in the mutable collection "codebook" and start as those of the batch of the initialisation.

    Attributes:
      per_position: one scale for each position of axis 1 instead of one for everything.
      momentum: share of the running statistics that one training pass keeps.
    """

    per_position: bool = False
    momentum: float = 0.98

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: f32 [B, N, Q] -> the same shape; the mean is over the batch."""
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=0)
        pooled = (0, 2) if self.per_position else None
        scale = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=pooled) + 1e-8)
        scale = scale[:, None] if self.per_position else scale
        running_mean = self.variable("codebook", "mean", lambda: mean)
        running_scale = self.variable("codebook", "scale", lambda: scale)
        if not train:
            return (x - running_mean.value) / running_scale.value
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_scale, scale)):
                moved = self.momentum * running.value + (1 - self.momentum) * value
                running.value = jax.lax.stop_gradient(moved)
        return (x - mean) / scale
