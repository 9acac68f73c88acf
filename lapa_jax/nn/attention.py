"""The one attention: self or cross; cosine similarity, learned null keys, a bias on the logits, rotary positions, fewer
heads of keys than of queries, and a cache of keys and values are options."""

from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core import counting
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.placement import device_in_use
from lapa_jax.nn.position import rotate
from lapa_jax.nn.splash import CausalMask, splash_attention, splash_attention_runs

COSINE_SCALE = 8.0
FEW_PAIRS = 4
"""Queries times keys, up to which a CPU takes them one by one."""
UNSEEN = -0.7 * float(np.finfo(np.float32).max)
"""A logit of keys that are not seen: no infinity, of which a row without any seen key would make no numbers."""
# cuDNN's fused attention takes half precision, heads of a multiple of 8 features up to 128, GPUs from Ampere on, and no
# odd lengths. Padding to whole tiles of its kernels costs nothing: the rest of a tile is computed in any case.
FUSED_DTYPES, FUSED_FEATURES, FUSED_CAPABILITY, TILE = ("bfloat16", "float16"), 128, 8.0, 64


class Cache(NamedTuple):
    """Keys and values of tokens that came before, in slots: [N, S, kv_heads, dim_head] each, rotated already."""

    key: jax.Array
    value: jax.Array

    def put(self, key: jax.Array, value: jax.Array, at: jax.Array) -> "Cache":
        """With those of L new tokens [N, L, kv_heads, dim_head] in the slots `at`, `at` + 1, ..."""
        write = jax.lax.dynamic_update_slice_in_dim
        return Cache(write(self.key, key.astype(self.key.dtype), at, 1),
                     write(self.value, value.astype(self.value.dtype), at, 1))  # fmt: skip


class Attention(nn.Module):
    """Multi-head attention; normalising the inputs is the caller's part.

    Attributes:
      heads: number of heads.
      dim_head: features per head.
      cosine: l2-normalise queries and keys, scale each feature by a learned factor (`query_scale`, `key_scale`) and
        multiply the logits by 8, as the official LAQ does; otherwise the logits are divided by sqrt(dim_head).
      null_kv: number of learned keys and values per head that every query may attend to besides the given ones: a place
        to look when nothing in the context matters.
      kv_heads: heads of keys and values, a divisor of `heads` that share one each (grouped queries, Ainslie et al.
        2023); None for as many as `heads`.
      rotary: base of the rotary positions (see `position.rotate`) of queries and keys, such as 10000; None for none.
      use_bias: whether the four projections have biases. out_bias: the same of the last one alone; None for `use_bias`.
      flash: use fused attention (Dao et al. 2022) for sequences without a `bias` on the logits: cuDNN's where it runs,
        see `fused_attention_runs`, and on TPUs JAX's for a `CausalMask`, see `nn/splash.py`; elsewhere the compiler's
        own takes its place.
      dtype: dtype of the computation; the softmax and the norms are float32. Parameters are float32.
    """

    heads: int
    dim_head: int
    cosine: bool = False
    null_kv: int = 0
    kv_heads: int | None = None
    rotary: float | None = None
    use_bias: bool = False
    out_bias: bool | None = None
    flash: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, bias: jax.Array | None = None,
        mask: jax.Array | CausalMask | None = None, positions: jax.Array | None = None, cache: Cache | None = None,
        at: jax.Array | int = 0,
    ) -> jax.Array | tuple[jax.Array, Cache]:  # fmt: skip
        """Attends from `x` to `context` (to `x` itself where None).

        Args:
          x: [N, L, D] queries.
          context: [N, S, C] what keys and values are made from.
          bias: [heads, L, S] f32, added to the logits of the given keys (never to those of the null keys).
          mask: [N, S] bool, False where a key is padding: no query attends to it; or [N, L, S], for each query; or a
            rule for that among the tokens of `x` (without a cache or null keys). Null keys are never masked.
          positions: i32 [N, L], of the tokens of `x`, for rotary positions (self-attention only).
          cache: keys and values of earlier tokens; then S counts its slots, and those of `x` are put in.
          at: the slot of the first token of `x`.

        Returns:
          [N, L, D] in `dtype`; with a cache also the cache that holds `x`.
        """
        context = x if context is None else context
        kv_heads = self.kv_heads or self.heads
        q = self._split("query", x, self.heads)
        k, v = self._split("key", context, kv_heads), self._split("value", context, kv_heads)
        if self.rotary:
            q, k = rotate(q, positions, self.rotary), rotate(k, positions, self.rotary)
        if cache is not None:
            cache = cache.put(k, v, at)
            k, v = cache.key.astype(self.dtype), cache.value.astype(self.dtype)
        if self.null_kv:
            k, v, bias = self._with_null(k, v, bias)
            sides = ((0, 0),) * (0 if mask is None else mask.ndim - 1) + ((self.null_kv, 0),)
            mask = None if mask is None else jnp.pad(mask, sides, constant_values=True)
        scale = self.dim_head**-0.5
        if self.cosine:
            q, k, scale = self._unit("query_scale", q), self._unit("key_scale", k), COSINE_SCALE
        bias = None if bias is None else bias[None]
        if isinstance(mask, CausalMask):
            if self.flash and splash_attention_runs(q, kv_heads) and not counting.counted():
                return self._out(x, splash_attention(q, k, v, mask, scale))
            mask = mask.whole()
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None]
        # A single query, as in decoding step by step, would fill a sixty-fourth of a tile.
        fused = self.flash and bias is None and q.shape[1] > 1 and fused_attention_runs(self.dtype, self.dim_head)
        if fused and not counting.counted():
            out = in_whole_tiles(q, k, v, mask, scale, implementation="cudnn")
        elif device_in_use().platform == "cpu" and q.dtype == jnp.float32 and kv_heads == self.heads:
            out = attention_on_cpu(q, k, v, bias, mask, scale)
        else:
            out = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale, implementation="xla")
        out = self._out(x, out)
        return out if cache is None else (out, cache)

    def _out(self, x: jax.Array, values: jax.Array) -> jax.Array:
        """[N, L, heads, D] -> as wide as `x`."""
        use_bias = self.use_bias if self.out_bias is None else self.out_bias
        values = einops.rearrange(values, "... heads d -> ... (heads d)")
        return Linear(x.shape[-1], use_bias=use_bias, dtype=self.dtype, name="out")(values)

    def _split(self, name: str, x: jax.Array, heads: int) -> jax.Array:
        y = Linear(heads * self.dim_head, use_bias=self.use_bias, dtype=self.dtype, name=name)(x)
        return einops.rearrange(y, "... (heads d) -> ... heads d", heads=heads)

    def _with_null(self, k, v, bias):
        shape = (self.null_kv, self.heads, self.dim_head)
        spread = lambda p: jnp.broadcast_to(p.astype(self.dtype), (k.shape[0], *shape))  # noqa: E731
        null_key = self.param("null_key", nn.initializers.normal(1.0), shape)
        null_value = self.param("null_value", nn.initializers.normal(1.0), shape)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (self.null_kv, 0)))
        return jnp.concatenate([spread(null_key), k], 1), jnp.concatenate([spread(null_value), v], 1), bias

    def _unit(self, name: str, x: jax.Array) -> jax.Array:
        scale = self.param(name, nn.initializers.ones, (self.dim_head,))
        y = x.astype(jnp.float32)
        # max() under the root and not beside it: the gradient of a zero vector stays finite.
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y * y, -1, keepdims=True), 1e-24))
        return (y * scale).astype(self.dtype)


def fused_attention_runs(dtype: jnp.dtype, dim_head: int) -> bool:
    """Whether cuDNN's fused attention computes this on the devices in use."""
    if jnp.dtype(dtype).name not in FUSED_DTYPES or dim_head % 8 or dim_head > FUSED_FEATURES:
        return False
    device = device_in_use()
    if device.platform not in ("gpu", "cuda") or "NVIDIA" not in device.device_kind:
        return False
    real = (one for one in jax.devices() if one.device_kind == device.device_kind)
    return all(float(getattr(one, "compute_capability", FUSED_CAPABILITY)) >= FUSED_CAPABILITY for one in real)


def in_whole_tiles(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, scale: float, implementation: str
) -> jax.Array:
    """Attention of sequences that are padded to a multiple of 64 for it, and cut again.

    Args:
      q: [N, L, heads, D]. k, v: [N, S, kv_heads, D].
      mask: bool [N or 1, heads or 1, L or 1, S], False for keys that a query does not see; None for all.
      scale: factor on the logits. implementation: of `jax.nn.dot_product_attention`.

    Returns:
      [N, L, heads, D].
    """
    (rows, length, *_), keys = q.shape, k.shape[1]
    missing = [-size % TILE for size in (length, keys)]
    if mask is not None or any(missing):
        # Whole, since cuDNN adds it to the logits and broadcasts over examples and heads alone.
        shape = (rows, 1 if mask is None else mask.shape[1], length, keys)
        mask = jnp.broadcast_to(True if mask is None else mask, shape)
    if any(missing):
        # Padding sees the true keys: a query that sees none would be no number, and so would its gradient of 0.
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, missing[0]), (0, 0)), constant_values=True)
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, missing[1])), constant_values=False)
        q, k, v = (jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0)))
                   for x, n in zip((q, k, v), (missing[0], missing[1], missing[1])))  # fmt: skip
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation=implementation)
    return out[:, :length]


def attention_on_cpu(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array | None, scale: float
) -> jax.Array:
    """The same attention in the order of axes, and for a few tokens in the form, that XLA's CPU compiler has fast code
    for: a training step of a small LAQ takes two thirds of the time.

    Args:
      q: f32 [N, L, heads, D]. k, v: [N, S, heads, D].
      bias: f32 [1, heads, L, S], added to the logits. mask: bool [N, 1, L or 1, S], False for keys that are not seen.
      scale: factor on the logits.

    Returns:
      [N, L, heads, D].
    """
    if q.shape[1] * k.shape[1] <= FEW_PAIRS and mask is None:
        return _attention_of_few(q, k, v, bias, scale)
    # Heads before tokens: products over the last axes, of matrices that lie in one piece.
    q, k, v = (einops.rearrange(x, "n tokens heads d -> n heads tokens d") for x in (q, k, v))
    logits = jnp.einsum("nhld,nhsd->nhls", q * scale, k)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, UNSEEN)
    out = jnp.einsum("nhls,nhsd->nhld", jax.nn.softmax(logits), v)
    return einops.rearrange(out, "n heads tokens d -> n tokens heads d")


def _attention_of_few(q, k, v, bias, scale):
    """Pairs of tokens one by one: thousands of products of 2x2 matrices become a few of tall ones."""
    heads, features = q.shape[2:]
    # [heads * D, heads]: a product with it sums over the features of each head, one with its transpose spreads.
    of_head = jnp.asarray(np.kron(np.eye(heads), np.ones((features, 1))), jnp.float32)
    q, k, v = (einops.rearrange(x, "n tokens heads d -> tokens n (heads d)") for x in (q, k, v))
    out = []
    for i, query in enumerate(q):
        logits = jnp.stack([(query * key) @ (of_head * scale) for key in k])
        if bias is not None:
            logits = logits + einops.rearrange(bias[:, :, i], "1 heads keys -> keys 1 heads")
        weights = jax.nn.softmax(logits, axis=0)
        out.append(sum((weight @ of_head.T) * value for weight, value in zip(weights, v)))
    return einops.rearrange(jnp.stack(out), "tokens n (heads d) -> n tokens heads d", heads=heads)
