"""The two codebooks of the MS-TCN tokenizer: subclusters Z, and clusters Q of subclusters (HVQ, Spurio et al. 2025)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers.vq import VQ, straight_through, unit

INPUTS = ("z", "q", "z+q")
PASSED_ON = ("perplexity", "codebook_utilization", "codes_replaced")
"""Metrics of each codebook that are logged, with its letter behind."""


class TwoLevels(nn.Module):
    """Embedding -> nearest subcluster -> nearest cluster of that subcluster. Cosine distance, codes of length 1.

    Both codebooks are moving averages (collection "codebook"), Z of the embeddings, Q of the subclusters' vectors, so
    neither has a gradient. The cluster follows from the subcluster: a code pair says no more than its first number.

    Attributes:
      subclusters, clusters: sizes of the codebooks.
      decoder_input: which vectors go on, "z", "q", or their sum "z+q".
      decay, dead_share, dead_age, codebook_init: of both codebooks, see `nn.quantizers.vq.VQ`.
    """

    subclusters: int
    clusters: int
    decoder_input: str = "z"
    decay: float = 0.8
    dead_share: float = 0.1
    dead_age: int = 20
    codebook_init: str = "data"

    def setup(self):
        self.z, self.q = (self._codebook(size) for size in (self.subclusters, self.clusters))

    @nn.nowrap
    def _codebook(self, size: int) -> VQ:
        return VQ(size, "cosine", "ema", self.decay, codebook_init=self.codebook_init,
                  dead_share=self.dead_share, dead_age=self.dead_age)  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        for size in (self.subclusters, self.clusters):
            self._codebook(size).check()
        if self.clusters > self.subclusters:
            raise UserError(f"clusters {self.clusters} is more than subclusters {self.subclusters}: every subcluster "
                            "belongs to one cluster, so some would stay empty; set clusters to that or less")

    def __call__(self, embedding: jax.Array, mask: jax.Array, *, train: bool) -> dict:
        """Quantises, and with `train` moves the averages.

        The gradient of the decoder reaches the embedding once, past all of the quantisation. The commitment losses pull
        the embedding towards its subcluster and towards its cluster, as if each were all there is: the codes have no
        gradient, and the second codebook sees the subclusters without one.

        Args:
          embedding: f32 [B, T, D]; only its direction counts.
          mask: f32 [B, T], 1 for steps that exist.

        Returns:
          "vectors" f32 [B, T, D], the decoder's input, of size about 1 per feature; "codes" i32 [B, T, 2]; "losses"
          f32 [B], "commitment_z" and "commitment_q", mean squared distances (0 to 4) on the unit sphere; "metrics".
        """
        z, z_codes, losses, z_metrics = self.z(embedding, mask, train=train)
        hard = jax.lax.stop_gradient(z)
        q, q_codes, _, q_metrics = self.q(hard, mask, train=train)
        direction = unit(embedding)
        distance = jnp.sum(jnp.square(direction - jax.lax.stop_gradient(q)), -1)
        real = jnp.maximum(jnp.sum(mask, 1), 1)
        named = {"commitment_z": losses["commitment"] * embedding.shape[-1],
                 "commitment_q": jnp.sum(distance * mask, 1) / real}  # fmt: skip
        metrics = {f"{name}_{level}": found[name]
                   for level, found in (("z", z_metrics), ("q", q_metrics)) for name in PASSED_ON}  # fmt: skip
        vectors = straight_through(direction, self._combined(hard, q))
        codes = jnp.stack([z_codes, q_codes], -1)
        return {"vectors": vectors * self._scale(embedding), "codes": codes, "losses": named, "metrics": metrics}

    def nearest(self, embedding: jax.Array) -> jax.Array:
        """f32 [B, T, D] -> codes i32 [B, T, 2], (subcluster, cluster); nothing is counted."""
        z = self.z.nearest(embedding)
        return jnp.stack([z, self.hierarchy()[z]], -1)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [B, T, 2] -> the decoder's input f32 [B, T, D]; of a pair it reads what `decoder_input` names."""
        z, q = self.z.lookup(codes[..., 0]), self.q.lookup(codes[..., 1])
        return self._combined(z, q) * self._scale(z)

    def hierarchy(self) -> jax.Array:
        """The cluster of each subcluster, i32 [|Z|]."""
        return self.q.nearest(self.z.vectors())[0]

    def codebooks(self) -> tuple[jax.Array, jax.Array]:
        """The unit vectors of Z f32 [|Z|, D] and Q f32 [|Q|, D]."""
        return self.z.vectors()[0], self.q.vectors()[0]

    def _combined(self, z: jax.Array, q: jax.Array) -> jax.Array:
        return {"z": z, "q": q, "z+q": z + q}[self.decoder_input]

    @nn.nowrap
    def _scale(self, vectors: jax.Array) -> float:
        """Unit vectors of D features have entries of D^-0.5; a convolution starts best from entries of about 1."""
        return vectors.shape[-1] ** 0.5
