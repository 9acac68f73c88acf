"""The transformer of policies: pre-norm blocks with RMS norm, rotary positions, grouped queries and SwiGLU, as in Llama
(Touvron et al. 2023), over given embeddings, with a cache of keys and values for step-by-step use."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.attention import Attention, Cache
from lapa_jax.nn.feedforward import SwiGLU
from lapa_jax.nn.norm import RMSNorm
from lapa_jax.nn.splash import CausalMask
from lapa_jax.nn.transformer import run_stack


class DecoderBlock(nn.Module):
    """Self-attention and feed-forward, each of the normalised input and added to it. Attributes: see `Decoder`."""

    heads: int
    kv_heads: int
    dim_head: int
    hidden: int
    rotary: float
    eps: float
    flash: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache, positions, mask, at):
        """Arguments as of `Decoder.__call__`, the cache of this block -> ([N, L, D], the cache or None)."""
        norm = lambda name, y: RMSNorm(self.eps, self.dtype, name=name)(y)  # noqa: E731
        attention = Attention(self.heads, self.dim_head, kv_heads=self.kv_heads, rotary=self.rotary, flash=self.flash,
                              dtype=self.dtype, name="attention")  # fmt: skip
        y = attention(norm("attention_norm", x), mask=mask, positions=positions, cache=cache, at=at)
        y, cache = (y, None) if cache is None else y
        x = x + y
        return x + SwiGLU(self.hidden, self.dtype, name="feedforward")(norm("feedforward_norm", x)), cache


class Decoder(nn.Module):
    """`depth` blocks and a final norm. Which token sees which is the mask's matter: causal, or not over a prefix.

    Attributes:
      depth: number of blocks; their parameters lie stacked on axis 0 under "layers".
      heads, dim_head: of the queries. kv_heads: heads of keys and values, a divisor of `heads`; None for as many.
      hidden: width of the feed-forward.
      rotary: base of the rotary positions.
      eps: of the norms.
      flash: see `Attention`.
      dtype: of the computation; parameters, norms' statistics and softmax are float32.
      remat: "none", "dots" or "full", see `transformer.REMAT_POLICIES`.
    """

    depth: int
    heads: int
    dim_head: int
    hidden: int
    kv_heads: int | None = None
    rotary: float = 10000.0
    eps: float = 1e-5
    flash: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, positions: jax.Array, mask: jax.Array | CausalMask | None = None,
        cache: Cache | None = None, at: jax.Array | int = 0,
    ) -> jax.Array | tuple[jax.Array, Cache]:  # fmt: skip
        """Applies the stack.

        Args:
          x: [N, L, D] embeddings.
          positions: i32 [N, L].
          mask: bool [N, L, S], which of the S tokens each token sees; S is L, or with a cache its slots. Every token
            must see one at least. Or without a cache a rule for it. None: each sees all.
          cache: of all blocks, `new_cache`; the tokens are put into the slots `at`, `at` + 1, ...

        Returns:
          [N, L, D] in `dtype`; with a cache also the new cache.
        """
        block = DecoderBlock(self.heads, self.kv_heads or self.heads, self.dim_head, self.hidden, self.rotary, self.eps,
                             self.flash, self.dtype, name="layers")  # fmt: skip
        x = x.astype(self.dtype)
        x, after = run_stack(block, self.depth, self.remat, x, cache, positions, mask, at, in_axes=(0,))
        x = RMSNorm(self.eps, self.dtype, name="norm_out")(x)
        return x if cache is None else (x, after)

    @nn.nowrap
    def new_cache(self, batch: int, slots: int) -> Cache:
        """An empty cache: zeros [depth, batch, slots, kv_heads, dim_head] in `dtype`."""
        shape = (self.depth, batch, slots, self.kv_heads or self.heads, self.dim_head)
        return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
