"""Codebooks of different sizes and widths, side by side: padded to one array, so that a hundred compile like one."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.nn.quantizers import vq
from lapa_jax.nn.quantizers.codebook import COLLECTION, safe_norm, squared_distances

KMEANS_ITERATIONS = 20


class Codebooks(nn.Module):
    """P codebooks of moving averages; what they do is `nn.quantizers.vq.VQ` with l2 distance for each of them.

    Variables, in the mutable collection "codebook", with the largest size K and width D: "codes" f32 [P, K, D],
    "counts" f32 [P, K], "sums" f32 [P, K, D], "age" i32 [P, K]. Padding is 0 and stays so.

    Attributes:
      sizes: codes of each. dims: width of each.
      decay, dead_share, dead_age: as of `VQ`.
    """

    sizes: Sequence[int]
    dims: Sequence[int]
    decay: float
    dead_share: float
    dead_age: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool):
        """Quantises.

        Args:
          x: f32 [B, P, D], 0 beyond the width of each codebook.
          train: update the moving averages and replace dead codes (rng stream "noise").

        Returns:
          The codes' vectors [B, P, D] with their gradient going to x, codes i32 [B, P], the commitment loss f32 [B, P],
          each the mean over the codebook's own width, and f32 scalars "perplexity", "codebook_utilization" and
          "residual_ratio", means over codebooks, and "codes_replaced".
        """
        vectors = jax.lax.stop_gradient(x).swapaxes(0, 1)
        start = lambda: masked_kmeans(self.make_rng("params"), vectors, self._real(), self._inside())  # noqa: E731
        book = self.variable(COLLECTION, "codes", start).value
        # The averages start as if every code had taken its share of the first batch.
        mean = len(x) / np.asarray(self.sizes)[:, None]
        counts = self.variable(COLLECTION, "counts", lambda: jnp.asarray(mean * self._real(), jnp.float32)).value
        self.variable(COLLECTION, "sums", lambda: book * counts[..., None])
        self.variable(COLLECTION, "age", jnp.zeros, counts.shape, jnp.int32)
        codes = nearest(vectors, book, self._real())
        chosen = jax.lax.stop_gradient(take(book, codes))
        metrics = self._metrics(vectors, codes, chosen)
        metrics["codes_replaced"] = jnp.zeros(())
        if train and not self.is_initializing():
            metrics["codes_replaced"] = self._update(vectors, codes)
        chosen = chosen.swapaxes(0, 1)
        commitment = jnp.sum(jnp.square(x - chosen), axis=2) / np.asarray(self.dims)
        return vq.straight_through(x, chosen), codes.T, commitment, metrics

    def nearest(self, x: jax.Array) -> jax.Array:
        """The codes i32 [B, P] of vectors f32 [B, P, D]; nothing is counted."""
        return nearest(x.swapaxes(0, 1), self.get_variable(COLLECTION, "codes"), self._real()).T

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [B, P] -> their vectors f32 [B, P, D]; a code that does not exist gives zeros."""
        return take(self.get_variable(COLLECTION, "codes"), codes.T).swapaxes(0, 1)

    @nn.nowrap
    def _real(self) -> np.ndarray:
        """bool [P, K]: which codes exist."""
        return np.arange(max(self.sizes)) < np.asarray(self.sizes)[:, None]

    @nn.nowrap
    def _inside(self) -> np.ndarray:
        """bool [P, 1, D]: which numbers of a vector exist."""
        return (np.arange(max(self.dims)) < np.asarray(self.dims)[:, None])[:, None]

    def _update(self, vectors: jax.Array, codes: jax.Array) -> jax.Array:
        """Moves the averages by one batch and replaces dead codes; returns how many."""
        state = {name: self.get_variable(COLLECTION, name) for name in ("codes", "counts", "sums", "age")}
        used, replaced = jnp.ones(codes.shape, bool), jnp.zeros(())
        state = vq.move_averages(state, vectors, codes, used, self.decay, lambda v: v)
        if self.dead_share:
            # Both take the mean count over the padded size; that over the codes that exist is so many times larger.
            factor = max(self.sizes) / np.asarray(self.sizes)[:, None]
            dead = vq.dead_codes(state, self.dead_share * factor, self.dead_age) & self._real()
            state = vq.replace_dead(state, dead, vectors, used, self.make_rng("noise"), lambda v: v * self._inside())
            scale = jnp.where(dead, factor, 1.0)
            state = {**state, "counts": state["counts"] * scale, "sums": state["sums"] * scale[..., None]}
            replaced = jnp.sum(dead, dtype=jnp.float32)
        for name, value in state.items():
            self.put_variable(COLLECTION, name, value)
        return replaced

    def _metrics(self, vectors: jax.Array, codes: jax.Array, chosen: jax.Array) -> dict[str, jax.Array]:
        share = vq.count(codes, jnp.ones(codes.shape, bool), max(self.sizes)) / codes.shape[1]
        entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=1)
        length = jnp.sum(safe_norm(vectors))
        return {
            "perplexity": jnp.mean(jnp.exp(entropy)),
            "codebook_utilization": jnp.sum(share > 0) / sum(self.sizes),
            "residual_ratio": jnp.sum(safe_norm(vectors - chosen)) / jnp.maximum(length, 1e-12),
        }


def nearest(vectors: jax.Array, book: jax.Array, real: np.ndarray) -> jax.Array:
    """Index i32 [P, B] of the nearest existing code: vectors f32 [P, B, D], book f32 [P, K, D], real bool [P, K]."""
    distance = jax.vmap(squared_distances)(vectors, book)
    # Padded codes are zero vectors and would be the nearest to any short vector.
    return jnp.argmin(jnp.where(real[:, None], distance, jnp.inf), axis=2).astype(jnp.int32)


def take(book: jax.Array, codes: jax.Array) -> jax.Array:
    """The vectors f32 [P, B, D] of codes i32 [P, B] in codebooks f32 [P, K, D]."""
    return jnp.take_along_axis(book, codes[..., None], axis=1)


def masked_kmeans(rng: jax.Array, vectors: jax.Array, real: np.ndarray, inside: np.ndarray) -> jax.Array:
    """Centres f32 [P, K, D] of vectors f32 [P, B, D] by k-means from random rows; padding (see `Codebooks`) is 0.

    Noise of 1 % of the vectors' spread parts centres that would coincide, where there are fewer vectors than centres.
    """
    pick, jitter = jax.random.split(rng)
    parts, rows, _ = vectors.shape
    order = jnp.argsort(jax.random.uniform(pick, (parts, rows)), axis=1)
    # Rows are taken again from the start where a codebook has more codes than the batch has rows.
    book = take(vectors, order[:, np.arange(real.shape[1]) % rows])
    spread = jnp.mean(jnp.std(vectors, axis=1), axis=1)[:, None, None] + 1e-6
    book = book + 0.01 * spread * jax.random.normal(jitter, book.shape)

    def improve(_, book):
        members = jax.nn.one_hot(nearest(vectors, book, real), real.shape[1])
        count = jnp.sum(members, axis=1)[..., None]
        sums = jnp.einsum("pbk,pbd->pkd", members, vectors, precision="highest")
        # A centre without members stays where it is.
        return jnp.where(count > 0, sums / jnp.maximum(count, 1), book)

    return jax.lax.fori_loop(0, KMEANS_ITERATIONS, improve, book) * real[..., None] * inside
