"""No quantiser: vectors as they are, through a channel that in training adds Gaussian noise to them.

Something must bound what the vectors can say, or the decoder is handed the second frame through them. Two bounds are
usual: a KL divergence to a unit Gaussian with sampled noise, whose weight has to be found anew for each data set and
which may let the encoder say nothing at all, and noise of a fixed size on vectors of a bounded one. This is the second.
Deltas have unit variance here already (`nn.norm.RunningWhitening`), with which the mean part of that KL is constant: it
could do nothing but set the size of the noise. And this size has a meaning: by Shannon's theorem for the Gaussian
channel (Cover and Thomas 2006, theorem 9.1.1) a feature of variance 1 under noise of standard deviation s can say at
most log2(1 + 1 / s^2) / 2 bits, so that continuous latents and codes can be compared at equal bits.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class Unrounded(nn.Module):
    """The calls of a quantiser with the vectors themselves in place of codes.

    Attributes: noise: standard deviation of what is added in training; 0 is none.
    """

    noise: float = 0.0

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[..., Q] -> f32 of the same shape; with `train` under noise (rng stream "noise")."""
        x = x.astype(jnp.float32)
        if not train or not self.noise or self.is_initializing():
            return x
        return x + self.noise * jax.random.normal(self.make_rng("noise"), x.shape, jnp.float32)

    def nearest(self, x: jax.Array) -> jax.Array:
        """The vectors f32 [..., Q] themselves."""
        return x.astype(jnp.float32)

    def lookup(self, x: jax.Array) -> jax.Array:
        """The vectors f32 [..., Q] themselves."""
        return x.astype(jnp.float32)


def capacity(noise: float) -> float:
    """The most that a feature of variance 1 can say under noise of this standard deviation, over 0, in bits."""
    return 0.5 * math.log2(1 + 1 / noise**2)
