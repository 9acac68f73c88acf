"""What all codebooks share: the nearest code, and codes that start as the centres of data."""

import jax
import jax.numpy as jnp

COLLECTION = "codebook"
INITS = ("normal", "data")


def safe_norm(x: jax.Array) -> jax.Array:
    """Norm over the last axis, kept as an axis of 1; its gradient at zero is zero instead of NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def nearest_code(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Index of the nearest row of `codebook` [K, Q] for each vector of `x` [..., Q]; of equals the lowest. int32."""
    product = jnp.einsum("...q,kq->...k", x, codebook, precision="highest")
    distance = jnp.sum(x * x, -1, keepdims=True) - 2 * product + jnp.sum(codebook * codebook, -1)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def kmeans(rng: jax.Array, vectors: jax.Array, size: int, iterations: int = 20) -> jax.Array:
    """`size` centres [size, Q] of `vectors` [M, Q] by k-means with k-means++ seeding; a centre without vectors stays.

    Noise of 1 % of the vectors' spread parts centres that would coincide, where there are fewer vectors than centres.
    """
    first, rest, jitter = jax.random.split(rng, 3)
    centres = jnp.broadcast_to(vectors[jax.random.randint(first, (), 0, len(vectors))], (size, vectors.shape[1]))

    def seed(index, seeded):
        centres, distance = seeded
        distance = jnp.minimum(distance, jnp.sum(jnp.square(vectors - centres[index - 1]), -1))
        pick = jax.random.categorical(jax.random.fold_in(rest, index), jnp.log(distance + 1e-12))
        return centres.at[index].set(vectors[pick]), distance

    def improve(_, centres):
        members = jax.nn.one_hot(nearest_code(vectors, centres), size)
        count = members.sum(0)[:, None]
        return jnp.where(count > 0, members.T @ vectors / jnp.maximum(count, 1), centres)

    centres, _ = jax.lax.fori_loop(1, size, seed, (centres, jnp.full(len(vectors), jnp.inf)))
    centres = jax.lax.fori_loop(0, iterations, improve, centres)
    spread = jnp.std(vectors, axis=0).mean() + 1e-6
    return centres + 0.01 * spread * jax.random.normal(jitter, centres.shape)
