"""The one attention: self or cross, with optional cosine similarity, learned null keys and a bias on the logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.linear import Linear

COSINE_SCALE = 8.0


class Attention(nn.Module):
    """Multi-head attention without biases; normalising the inputs is the caller's part.

    Attributes:
      heads: number of heads.
      dim_head: features per head.
      cosine: l2-normalise queries and keys, scale each feature by a learned factor (`query_scale`, `key_scale`) and
        multiply the logits by 8, as the official LAQ does; otherwise the logits are divided by sqrt(dim_head).
      null_kv: number of learned keys and values per head that every query may attend to besides the given ones: a place
        to look when nothing in the context matters.
      dtype: dtype of the computation; the softmax and the norms are float32. Parameters are float32.
    """

    heads: int
    dim_head: int
    cosine: bool = False
    null_kv: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, bias: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Attends from `x` to `context` (to `x` itself where None).

        Args:
          x: [N, L, D] queries.
          context: [N, S, C] what keys and values are made from.
          bias: [heads, L, S] f32, added to the logits of the given keys (never to those of the null keys).
          mask: [N, S] bool, False where a key is padding: no query attends to it. Null keys are never masked.

        Returns:
          [N, L, D] in `dtype`.
        """
        context = x if context is None else context
        q, k, v = self._split("query", x), self._split("key", context), self._split("value", context)
        if self.null_kv:
            k, v, bias = self._with_null(k, v, bias)
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (self.null_kv, 0)), constant_values=True)
        scale = self.dim_head**-0.5
        if self.cosine:
            q, k, scale = self._unit("query_scale", q), self._unit("key_scale", k), COSINE_SCALE
        bias = None if bias is None else bias[None]
        mask = None if mask is None else mask[:, None, None]
        out = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale)
        out = out.reshape(*out.shape[:-2], self.heads * self.dim_head)
        return Linear(x.shape[-1], use_bias=False, dtype=self.dtype, name="out")(out)

    def _split(self, name: str, x: jax.Array) -> jax.Array:
        y = Linear(self.heads * self.dim_head, use_bias=False, dtype=self.dtype, name=name)(x)
        return y.reshape(*y.shape[:-1], self.heads, self.dim_head)

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
