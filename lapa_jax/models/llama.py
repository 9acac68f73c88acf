"""Llama (Touvron et al. 2023), by default Llama-2 7B: tokens or embeddings to hidden states and to logits."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Dtype, Range, Remat
from lapa_jax.models import base
from lapa_jax.nn.attention import Cache
from lapa_jax.nn.decoder import Decoder
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.splash import CausalMask

# `config.mesh.rules` for a model whose decoder is "llm": kernels [layers, in, out] are split over "fsdp" and over
# "tensor" in such a way that a block adds up its devices' parts twice, behind attention and behind feed-forward
# (Shoeybi et al. 2019). The embedding is split by features: every device then looks up its part of all tokens.
MESH_RULES = (
    (".*llm/decoder/layers/attention/[qkv][a-z]+/kernel", (None, "fsdp", "tensor")),
    (".*llm/decoder/layers/attention/out/kernel", (None, "tensor", "fsdp")),
    (".*llm/decoder/layers/feedforward/[gu][a-z]+/kernel", (None, "fsdp", "tensor")),
    (".*llm/decoder/layers/feedforward/down/kernel", (None, "tensor", "fsdp")),
    (".*llm/embedding", (None, ("fsdp", "tensor"))),
)


class Model(base.Part):
    """A text decoder.

    Attributes:
      vocab: number of tokens. dim: width of a token. depth: blocks. heads: of the attention. hidden: width of the
        feed-forward. eps: of the norms.
      kv_heads: heads of keys and values, a divisor of `heads`; None for as many. dim_head: width of a head;
        None for dim / heads.
      rotary: base of the rotary positions ("rope theta").
      head: where logits come from: a matrix of their own ("own"), the embedding's ("tied"), or there are none ("none").
      flash: fused attention where it runs: with dtype "bfloat16" cuDNN's on NVIDIA GPUs, JAX's on TPUs.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32. remat: see `REMAT_POLICIES`.
    """

    vocab: Count = 32000
    dim: Count = 4096
    depth: Count = 32
    heads: Count = 32
    hidden: Count = 11008
    kv_heads: Annotated[int | None, Range(1)] = None
    dim_head: Annotated[int | None, Range(1)] = None
    rotary: float = 10000.0
    eps: float = 1e-5
    head: Literal["own", "tied", "none"] = "own"
    flash: bool = True
    dtype: Dtype = "float32"
    remat: Remat = "none"

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (self.vocab, self.dim))
        self.decoder = Decoder(**self._sizes())
        if self.head == "own":
            # float32: logits rounded to bfloat16 tie at the top, and argmax takes the lowest token of a tie.
            self.to_logits = Linear(self.vocab, use_bias=False)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        if self.dim_head is None and self.dim % self.heads:
            raise UserError(f"dim {self.dim} is not a multiple of the heads, {self.heads}; change one or give dim_head")
        if self._sizes()["dim_head"] % 2:
            raise UserError(f"heads of {self._sizes()['dim_head']} features; rotary positions turn pairs of them")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise UserError(f"kv_heads {self.kv_heads} does not divide the heads, {self.heads}")

    def __call__(
        self, tokens: jax.Array | None = None, *, embeddings: jax.Array | None = None,
        mask: jax.Array | CausalMask | None = None, positions: jax.Array | None = None, cache: Cache | None = None,
        at: jax.Array | int = 0,
    ) -> jax.Array | tuple[jax.Array, Cache]:  # fmt: skip
        """Hidden states behind the final norm; `logits` goes on from them.

        Args:
          tokens: i32 [N, L]; or instead
          embeddings: [N, L, dim], such as `embed` gives, pictures and text put together.
          mask: bool [N, S], False for padding, which no token sees; attention is causal besides. Or [N, L, S], which of
            the S tokens each token sees, and nothing besides. S is L, or with a cache its slots. Or without a cache the
            rule itself.
          positions: i32 [N, L]; None: the number of tokens before that are no padding, or with a mask [N, L, S] the
            slots.
          cache, at: as of `Decoder`: `new_cache`, and the slot of the first token.

        Returns:
          [N, L, dim] in `dtype`; with a cache also the new cache.
        """
        x = self.embed(tokens) if embeddings is None else embeddings
        slots = x.shape[1] if cache is None else cache.key.shape[2]
        mask, default_positions = _causal(mask, at, x.shape[:2], slots)
        positions = default_positions if positions is None else positions
        out = self.decoder(x, positions=positions, mask=mask, cache=cache, at=at)
        if self.is_initializing() and self.head == "own":
            self.logits(out if cache is None else out[0])  # makes its parameters
        return out

    def embed(self, tokens: jax.Array) -> jax.Array:
        """i32 [N, L] -> [N, L, dim] in `dtype`."""
        return self.embedding[tokens].astype(jnp.dtype(self.dtype))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[N, L, dim] hidden states -> f32 [N, L, vocab]; not with head="none"."""
        if self.head == "own":
            return self.to_logits(hidden)
        if self.head == "none":
            raise ValueError('head="none" gives no logits')
        return hidden.astype(jnp.float32) @ self.embedding.T.astype(jnp.float32)

    @nn.nowrap
    def new_cache(self, batch: int, slots: int) -> Cache:
        """An empty cache: zeros [depth, batch, slots, kv_heads, dim_head] in `dtype`."""
        return Decoder(**self._sizes(), parent=None).new_cache(batch, slots)

    @nn.nowrap
    def _sizes(self) -> dict:
        return {"depth": self.depth, "heads": self.heads, "dim_head": self.dim_head or self.dim // self.heads,
                "hidden": self.hidden, "kv_heads": self.kv_heads, "rotary": self.rotary, "eps": self.eps,
                "flash": self.flash, "dtype": jnp.dtype(self.dtype), "remat": self.remat}  # fmt: skip


def _causal(mask, at, shape: tuple[int, int], slots: int) -> tuple[jax.Array, jax.Array]:
    """The mask [N, L, S] and the positions [N, L] of tokens in the slots `at`, `at` + 1, ..."""
    batch, length = shape
    own = at + jnp.arange(length)
    if isinstance(mask, CausalMask) or (mask is not None and mask.ndim == 3):
        return mask, jnp.broadcast_to(own, shape)
    seen = jnp.arange(slots)[None] <= own[:, None]
    if mask is None:
        return jnp.broadcast_to(seen, (batch, length, slots)), jnp.broadcast_to(own, shape)
    before = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return mask[:, None] & seen, before[:, own]
