"""Losses between examples of a batch: how far categories repeat each other, and whether distances survive the codes."""

import jax
import jax.numpy as jnp
import numpy as np

TOPO_WEIGHTS = (0.3, 0.7)
"""Of the two parts of the topographic loss: from features to latents, and from latents to codes."""


def cross_correlation(latents: jax.Array, owner: np.ndarray) -> jax.Array:
    """Mean squared correlation between latents of different categories, a scalar f32; 0 for a single category.

    Every entry has a gradient: a category is pushed to say what the others do not. (A penalty on codebooks that are
    moving averages, or on numbers taken out of the computation, would push nothing.)

    Args:
      latents: f32 [B, D] of all categories.
      owner: int [D], the category of each.
    """
    centered = latents - jnp.mean(latents, axis=0)
    # A latent that stands still correlates with nothing, and must not divide by zero.
    standard = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=0) + 1e-6)
    correlation = jnp.matmul(standard.T, standard, precision="highest") / len(latents)
    apart = owner[:, None] != owner[None, :]
    return jnp.sum(jnp.square(correlation) * apart) / max(int(apart.sum()), 1)


def pairwise_distances(x: jax.Array) -> jax.Array:
    """Euclidean distances f32 [P, n, n] between the rows of each of f32 [P, n, D]; the gradient at 0 is 0."""
    squares = jnp.sum(jnp.square(x), axis=2)
    lengths = squares[:, :, None] + squares[:, None, :]
    squared = lengths - 2 * jnp.einsum("pid,pjd->pij", x, x, precision="highest")
    apart = squared > 1e-6 * lengths  # below that it is rounding of the difference above
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def distance_correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation f32 [P] of two tables of distances [P, n, n], the diagonal left out; 0 if constant."""
    others = 1.0 - jnp.eye(a.shape[1])

    def centered(x):
        return (x - jnp.sum(x * others, (1, 2), keepdims=True) / jnp.sum(others)) * others

    a, b = centered(a), centered(b)
    energy = jnp.sum(jnp.square(a), (1, 2)) * jnp.sum(jnp.square(b), (1, 2))
    return jnp.sum(a * b, (1, 2)) * jax.lax.rsqrt(energy + 1e-12)


def topographic(features: jax.Array, latents: jax.Array, quantized: jax.Array) -> jax.Array:
    """1 - correlation of distances before and after, a scalar f32 in [0, 2].

    For every latent: 0.3 (1 - r(features, latent)) + 0.7 (1 - r(latent, code)), averaged, where r is Pearson's
    correlation over all pairs of different rows. Cost and memory grow with the square of the rows.

    Args:
      features: f32 [P, n, F], for each latent the features of its category (zeros are padding).
      latents: f32 [P, n, D].
      quantized: the codes' vectors for `latents`, with their straight-through gradient.
    """
    near, middle, far = map(pairwise_distances, (features, latents, quantized))
    before, after = TOPO_WEIGHTS
    loss = before * (1 - distance_correlation(near, middle)) + after * (1 - distance_correlation(middle, far))
    return jnp.mean(loss)
