"""Embeddings of the in-context policy: one of the observation and one of the action per step."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.linear import Linear
from lapa_jax.nn.patches import to_patches
from lapa_jax.nn.transformer import Transformer

LEVELS = {"z": ("z",), "q": ("q",), "z+q": ("z", "q")}
"""The levels of the tokenizer that an action's embedding is made from."""


class StateEncoder(nn.Module):
    """Two layers over a vector of numbers. Attributes: dim: D, width of both. dtype: of the second layer; the first is
    float32, since bfloat16 would round the numbers to steps of 0.004 before anything sees them."""

    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state: jax.Array) -> jax.Array:
        """f32 [..., S] -> [..., D]."""
        x = nn.gelu(Linear(self.dim, name="hidden")(state))
        return Linear(self.dim, dtype=self.dtype, name="out")(x)


class ImageEncoder(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021): learned positions, the mean over its patches.

    Attributes: patch: side in pixels. width, depth, heads: of the transformer. dim: D of the result. dtype, remat: of
    the computation.
    """

    patch: int
    width: int
    depth: int
    heads: int
    dim: int
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """uint8 or f32 in [0, 1] [..., H, W, 3] -> [..., D]."""
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255
        *lead, height, width, channels = image.shape
        # [0, 1] to [-1, 1]: mean near 0, as the first linear layer is initialised for.
        x = to_patches((image - 0.5) * 2, self.patch).reshape(-1, height * width // self.patch**2,
                                                               self.patch**2 * channels)  # fmt: skip
        x = Linear(self.width, dtype=self.dtype, name="patches")(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:]).astype(self.dtype)
        x = Transformer(self.depth, self.heads, self.width // self.heads, None, dtype=self.dtype, remat=self.remat,
                        name="transformer")(x)  # fmt: skip
        return Linear(self.dim, dtype=self.dtype, name="out")(x.mean(1)).reshape(*lead, self.dim)


class ObservationEncoder(nn.Module):
    """State and images of a step as one embedding: each has its encoder, a linear layer joins them.

    Cameras share the image encoder, and keep their order in the joint vector, by which they are told apart.

    Attributes:
      dim: D. state_dim: S, 0 for none. cameras: V, 0 for none.
      patch, width, depth, heads: of `ImageEncoder`. dtype, remat: of the computation.
    """

    dim: int
    state_dim: int
    cameras: int
    patch: int
    width: int
    depth: int
    heads: int
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, observation) -> jax.Array:
        """{"state" f32 [B, N, S], "image" [B, N, (V,) H, W, 3]} -> [B, N, D]."""
        parts = []
        if self.state_dim:
            parts.append(StateEncoder(self.dim, self.dtype, name="state")(observation["state"]))
        if self.cameras:
            image = observation["image"]
            # One camera comes without the axis of views.
            image = image[:, :, None] if image.ndim == 5 else image
            encoder = ImageEncoder(self.patch, self.width, self.depth, self.heads, self.dim, self.dtype, self.remat,
                                   name="image")  # fmt: skip
            seen = encoder(image)
            parts += [seen[:, :, view] for view in range(self.cameras)]
        return Linear(self.dim, dtype=self.dtype, name="join")(jnp.concatenate(parts, -1))


class ActionEncoder(nn.Module):
    """Embeddings of actions: of their numbers, or of the code vectors that a tokenizer gives them.

    Attributes: dim: D. source: "raw", "z", "q" or "z+q". dtype: of the computation.
    """

    dim: int
    source: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, action: jax.Array, vectors: dict[str, jax.Array] | None) -> jax.Array:
        """Actions f32 [..., A], or the vectors f32 [..., E] of each level -> [..., D]."""
        if self.source == "raw":
            return StateEncoder(self.dim, self.dtype, name="raw")(action)
        # unit vectors: at the scale of a normalised number, as the tokenizer's own decoder reads them
        parts = [vectors[level] * vectors[level].shape[-1] ** 0.5 for level in LEVELS[self.source]]
        return Linear(self.dim, dtype=self.dtype, name="codes")(jnp.concatenate(parts, -1))


def interleave(states: jax.Array, actions: jax.Array) -> jax.Array:
    """[B, N, ...] twice -> [B, 2N, ...]: state, action, state, action, ..."""
    both = jnp.stack([states, actions], 2)
    return both.reshape(both.shape[0], -1, *both.shape[3:])
