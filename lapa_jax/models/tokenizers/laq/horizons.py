"""Several horizons: what the codes of a pair have to do with those of its reverse and of its two halves.

With the frame in the middle of a pair (t, t + g) there are three losses, each of which rules out codes that reconstruct
well and are no actions:
  reversal     codes that say how much changes, and not which way: the pair and its reverse must have other codes;
  composition  codes that mean something else at another distance: those of (t, t + g / 2) and (t + g / 2, t + g)
               together must tell that of (t, t + g);
  midway       codes that say what the second frame looks like: the frame in the middle must follow from them too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn.linear import Linear


class HorizonHeads(nn.Module):
    """From vectors of codes to those of another horizon.

    Attributes: hidden: width of the layer that composes.
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, early: jax.Array, late: jax.Array, whole: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Vectors [B, N, Q] of the two halves and of a whole pair -> those of the whole, f32 [B, N, Q], composed by one
        hidden layer, and those of the first half, by a linear map."""
        x = jnp.concatenate([early, late], 1).reshape(len(early), -1)
        composed = Linear(early[0].size, name="composed")(nn.silu(Linear(self.hidden, name="hidden")(x)))
        half = Linear(whole[0].size, name="half")(whole.reshape(len(whole), -1))
        return composed.reshape(early.shape), half.reshape(whole.shape)


def similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """How alike two sets of vectors [B, N, Q] are, f32 [B]: 2 a.b / (a.a + b.b) where that is positive, else 0.

    1 for equal vectors; 0 from a right angle on, and so for opposite ones: apart is apart, however far.
    """
    product, squares = jnp.sum(a * b, (1, 2)), jnp.sum(a * a + b * b, (1, 2))
    return nn.relu(2 * product / jnp.maximum(squares, 1e-12))
