"""Normalisation: of each token, and by running statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp

WHITENING_FLOOR = 1e-4
"""Least variance of a direction, relative to the mean variance of the features."""

MOMENTUM = 0.9
"""Of running statistics. What a network gives changes while it learns, and a longer memory than some ten passes has
evaluation divide by what was true before."""


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
    momentum: float = MOMENTUM

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, count: int | None = None) -> jax.Array:
        """x: f32 [B, N, Q] -> the same shape; the mean is over the batch, or over the first `count` of it."""
        x = x.astype(jnp.float32)
        mean = jnp.mean(x[:count], axis=0)
        pooled = (0, 2) if self.per_position else None
        scale = jnp.sqrt(jnp.mean(jnp.square(x[:count] - mean), axis=pooled) + 1e-8)
        scale = scale[:, None] if self.per_position else scale
        mean, scale = running_statistics(self, {"mean": mean, "scale": scale}, self.momentum, train=train)
        return (x - mean) / scale


class RunningWhitening(nn.Module):
    """Subtracts a mean per feature and decorrelates the features of all positions: each has the variance 1.

    The factor of Cholesky is what is divided by (Kessy et al. 2018, arXiv 1512.00809): feature by feature, in order,
    what those before it do not say yet. Directions whose standard deviation is under about a hundredth of the features'
    mean one are taken for noise and stay small. Statistics are kept and used as those of `RunningNorm`; the batch
    should have several times as many examples as there are features.

    Attributes: momentum: share of the running statistics that one training pass keeps.
    """

    momentum: float = MOMENTUM

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, count: int | None = None) -> jax.Array:
        """x: f32 [B, N, Q] -> the same shape; the statistics are over the batch, or over the first `count` of it."""
        flat = x.astype(jnp.float32).reshape(len(x), -1)
        mean = jnp.mean(flat[:count], axis=0)
        away = flat[:count] - mean
        covariance = jnp.matmul(away.T, away, precision="highest") / len(away)
        statistics = {"mean": mean, "covariance": covariance}
        mean, covariance = running_statistics(self, statistics, self.momentum, train=train)
        width = flat.shape[1]
        floor = WHITENING_FLOOR * jnp.trace(covariance) / width + 1e-8
        factor = jnp.linalg.cholesky(covariance + floor * jnp.eye(width))
        white = jax.scipy.linalg.solve_triangular(factor, (flat - mean).T, lower=True).T
        return white.reshape(x.shape)


def running_statistics(module: nn.Module, batch: dict[str, jax.Array], momentum: float, *, train: bool) -> list:
    """The statistics to normalise by: in training those of the `batch`, which move the running ones, else these."""
    running = {name: module.variable("codebook", name, lambda value=value: value) for name, value in batch.items()}
    if not train:
        return [variable.value for variable in running.values()]
    if not module.is_initializing():
        for name, value in batch.items():
            moved = momentum * running[name].value + (1 - momentum) * value
            running[name].value = jax.lax.stop_gradient(moved)
    return list(batch.values())
