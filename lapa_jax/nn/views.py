"""A second view of a clip: the same motion somewhere else in the image."""

import jax
import jax.numpy as jnp


def shift_clips(frames: jax.Array, rng: jax.Array, amount: int) -> jax.Array:
    """Shifts each clip by whole pixels, drawn uniformly from [-amount, amount] along rows and along columns.

    Args:
      frames: [B, T, H, W, C]; all frames of a clip shift together, edges are repeated.
      rng: the key of the draw.
      amount: the largest shift in pixels.

    Returns:
      An array of the same shape and dtype.
    """
    _, time, height, width, channels = frames.shape
    starts = jax.random.randint(rng, (frames.shape[0], 2), 0, 2 * amount + 1)
    padded = jnp.pad(frames, ((0, 0), (0, 0), (amount, amount), (amount, amount), (0, 0)), mode="edge")

    def cut(clip, start):
        return jax.lax.dynamic_slice(clip, (0, start[0], start[1], 0), (time, height, width, channels))

    return jax.vmap(cut)(padded, starts)
