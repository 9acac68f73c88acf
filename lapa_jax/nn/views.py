"""Other views of a clip: the same motion somewhere else in the image, in other colours, or before other things."""

import flax.linen as nn
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


def change_colours(frames: jax.Array, rng: jax.Array, amount: float = 0.2) -> jax.Array:
    """Changes brightness, contrast and the strength of each channel, alike in all frames of a clip.

    Args:
      frames: f32 [B, T, H, W, C] in [0, 1].
      rng: the key of the draws, one of each for each clip, and for each channel one of its strength.
      amount: numbers are drawn uniformly from [-amount, amount]: brightness is added, and contrast and channels are
        multiplied by 1 more than theirs.

    Returns:
      f32 [B, T, H, W, C], cut to [0, 1].
    """

    def draw(key: jax.Array, channels: int) -> jax.Array:
        return jax.random.uniform(key, (len(frames), 1, 1, 1, channels), minval=-amount, maxval=amount)

    brightness, contrast, strength = jax.random.split(rng, 3)
    mean = frames.mean((1, 2, 3, 4), keepdims=True)
    changed = (mean + (frames - mean) * (1 + draw(contrast, 1))) * (1 + draw(strength, frames.shape[-1]))
    return jnp.clip(changed + draw(brightness, 1), 0, 1)


def swap_backgrounds(frames: jax.Array, others: jax.Array, threshold: float, margin: int = 2) -> jax.Array:
    """Puts what moves in clips before the first frames of others.

    Args:
      frames, others: [B, T, H, W, C]. The other clip's first frame stands for all of its frames: nothing moves in a
        background.
      threshold: a pixel whose value changes by more than this in some channel moves.
      margin: pixels around those that move, which stay with them.

    Returns:
      The clips, whose other pixels are those of `others`.
    """
    change = (frames.max(1) - frames.min(1)).max(-1, keepdims=True)
    window = (2 * margin + 1, 2 * margin + 1)
    moves = nn.max_pool(change, window, padding="SAME") > threshold
    return jnp.where(moves[:, None], frames, others[:, :1])


def in_turns(batches: list):
    """Several batches, arrays or trees of them with the same leading axis, as one: the first row of each, then the
    second of each. Not one batch behind the other, so that on several devices each row stays where it is."""
    return jax.tree.map(lambda *rows: jnp.stack(rows, 1).reshape(-1, *rows[0].shape[1:]), *batches)


def one_of(rows, which: int, count: int):
    """Batch number `which` of the `count` that `in_turns` joined."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:])[:, which], rows)
