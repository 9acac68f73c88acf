"""Noise-substitution vector quantisation (Vali and Bäckström 2022, doi.org/10.1109/ACCESS.2022.3147670).

In training the quantisation error is replaced by noise of the same size, x + |x - c|/|v| * v with v ~ N(0, I) and c the
nearest code, through which gradients reach x and c without auxiliary losses. In evaluation the code itself is used.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.quantizers.codebook import COLLECTION, kmeans, nearest_code, safe_norm


def substitute_noise(x: jax.Array, code: jax.Array, noise: jax.Array) -> jax.Array:
    """`x` plus `noise` scaled to the length of `x - code`, over the last axis."""
    return x + safe_norm(x - code) / jnp.maximum(safe_norm(noise), 1e-12) * noise


class NSVQ(nn.Module):
    """A codebook with noise substitution. All arithmetic is float32, whatever the model computes in.

    Variables: the parameter "codebook" [K, Q], and in the mutable collection "codebook" the counts since the last
    replacement: "hits" i32 [K], the training passes in which a code was used at all; "tokens" i32 [K], how many vectors
    chose it; and "candidates" f32 [K, Q], vectors of the last training pass that had no near code. Under jit the batch
    is the global one, hence so are the counts.

    Attributes:
      codebook_size: K.
      codebook_init: "normal" draws codes from N(0, 1) as the official LAQ; "data" makes them the k-means centres of the
        batch that the model is initialised with, so that all codes are in use from the first step.
    """

    codebook_size: int
    codebook_init: str = "normal"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Quantises.

        Args:
          x: [..., Q].
          train: substitute noise (rng stream "noise") and count; else return the codes themselves.

        Returns:
          The quantised vectors f32 [..., Q], the codes i32 [...], and f32 scalars: "delta_norm", the mean length of x,
          and "residual_ratio", the length of x - code relative to that of x.
        """
        x = x.astype(jnp.float32)
        size, width = self.codebook_size, x.shape[-1]
        vectors = jax.lax.stop_gradient(x.reshape(-1, width))
        init = nn.initializers.normal(1.0)
        if self.codebook_init == "data":
            init = lambda rng, _: kmeans(rng, vectors, size)  # noqa: E731
        codebook = self.param("codebook", init, (size, width))
        codes = nearest_code(jax.lax.stop_gradient(x), codebook)
        chosen = jnp.take(codebook, codes, axis=0)
        residual = jax.lax.stop_gradient(safe_norm(x - chosen))
        length = jax.lax.stop_gradient(safe_norm(x))
        metrics = {
            "delta_norm": jnp.mean(length),
            "residual_ratio": jnp.mean(residual) / jnp.maximum(jnp.mean(length), 1e-12),
        }
        self._count(vectors, codes.reshape(-1), residual.reshape(-1), update=train)
        if not train or self.is_initializing():
            return chosen, codes, metrics
        noise = jax.random.normal(self.make_rng("noise"), x.shape, jnp.float32)
        return substitute_noise(x, chosen, noise), codes, metrics

    def nearest(self, x: jax.Array) -> jax.Array:
        """The codes i32 [...] of vectors f32 [..., Q], without counting."""
        return nearest_code(x.astype(jnp.float32), self.get_variable("params", "codebook"))

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [...] -> their vectors f32 [..., Q]."""
        return jnp.take(self.get_variable("params", "codebook"), codes, axis=0)

    def _count(self, vectors, codes, residual, *, update: bool) -> None:
        size, width = self.codebook_size, vectors.shape[-1]
        hits = self.variable(COLLECTION, "hits", jnp.zeros, (size,), jnp.int32)
        tokens = self.variable(COLLECTION, "tokens", jnp.zeros, (size,), jnp.int32)
        candidates = self.variable(COLLECTION, "candidates", jnp.zeros, (size, width), jnp.float32)
        if not update or self.is_initializing():
            return
        count = jnp.sum(jax.nn.one_hot(codes, size, dtype=jnp.int32), axis=0)
        hits.value = hits.value + (count > 0)
        tokens.value = tokens.value + count
        far = jax.lax.top_k(residual, min(size, residual.shape[0]))[1]
        candidates.value = jnp.take(vectors, jnp.resize(far, (size,)), axis=0)
