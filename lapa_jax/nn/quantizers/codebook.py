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


def squared_distances(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Squared Euclidean distances f32 [..., K] of vectors `x` [..., Q] to the rows of `codebook` [K, Q].

    The differences are squared and added up. The usual |x|² - 2xc + |c|² is a matrix product, but cancels: of vectors
    around 1e6 it leaves nothing of distances below 1e3 in float32. The compiler fuses the sum, so that no array of
    [..., K, Q] exists.
    """
    return jnp.sum(jnp.square(x[..., None, :] - codebook), axis=-1)


def nearest_code(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Index of the nearest row of `codebook` [K, Q] for each vector of `x` [..., Q]; of equals the lowest. int32."""
    return jnp.argmin(squared_distances(x, codebook), axis=-1).astype(jnp.int32)


def kmeans(rng: jax.Array, vectors: jax.Array, size: int, iterations: int = 20) -> jax.Array:
    """`size` centres [size, Q] of `vectors` [M, Q] by k-means (Lloyd 1982) with k-means++ seeding (Arthur and
    Vassilvitskii 2007); a centre without vectors stays where it is.

    Centres that coincide, where there are fewer different vectors than centres, are parted by noise of 1 % of the
    vectors' standard deviation; the others lie where k-means puts them.
    """
    first, rest, jitter = jax.random.split(rng, 3)
    centres = jnp.broadcast_to(vectors[jax.random.randint(first, (), 0, len(vectors))], (size, vectors.shape[1]))

    def seed(index, seeded):
        centres, distance = seeded
        distance = jnp.minimum(distance, jnp.sum(jnp.square(vectors - centres[index - 1]), -1))
        # Distances are in the vectors' own unit, so no constant is added: log(0) is the probability 0.
        pick = jax.random.categorical(jax.random.fold_in(rest, index), jnp.log(distance))
        return centres.at[index].set(vectors[pick]), distance

    def improve(_, centres):
        codes = nearest_code(vectors, centres)
        members = jax.nn.one_hot(codes, size)
        count = members.sum(0)[:, None]
        # The mean of the differences to the centre: sums of the vectors themselves would lose the digits that tell
        # vectors of one cluster apart when the cluster is far from 0.
        away = jnp.einsum("mk,mq->kq", members, vectors - centres[codes], precision="highest")
        return centres + away / jnp.maximum(count, 1)

    centres, _ = jax.lax.fori_loop(1, size, seed, (centres, jnp.full(len(vectors), jnp.inf)))
    centres = jax.lax.fori_loop(0, iterations, improve, centres)
    same = squared_distances(centres, centres) == 0
    repeated = jnp.any(jnp.tril(same, k=-1), axis=1, keepdims=True)
    spread = jnp.std(vectors, axis=0).mean()
    # Vectors that are all equal have no spread: then the noise follows their size, so that float32 can hold it.
    spread = jnp.where(spread > 0, spread, 1e-3 * jnp.maximum(jnp.max(jnp.abs(vectors)), 1.0))
    return jnp.where(repeated, centres + 0.01 * spread * jax.random.normal(jitter, centres.shape), centres)
