"""Finite scalar quantisation (Mentzer et al. 2024, arXiv 2309.15505): each feature is rounded to one of few levels.

There is no codebook to learn and none to collapse. The bound is that of the paper with its `tan` read as `atanh`, as
its authors have confirmed it was meant, and with (1 + eps), so that the outermost levels are reached.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers.vq import straight_through

EPSILON = 1e-3
FEWEST, MOST = 3, 1000


@dataclasses.dataclass(frozen=True)
class FSQ:
    """Rounds vectors of len(levels) features. It has no parameters; all arithmetic is float32.

    Attributes: levels: levels of each feature, 3 to 1000; their product is the number of codes.
    """

    levels: tuple[int, ...]

    def check(self) -> None:
        """Raises UserError for levels that cannot work, with what to change."""
        if not self.levels or any(not isinstance(level, int) for level in self.levels):
            raise UserError(f"levels is {self.levels!r}; give whole numbers, such as (8, 5, 5, 5)")
        if min(self.levels) < FEWEST:
            raise UserError(f"levels {self.levels} has a feature of {min(self.levels)} levels; give at least {FEWEST}: "
                            "to reach both of 2 the bound would be shifted by nearly 4, where its slope has vanished")
        if max(self.levels) > MOST:
            raise UserError(f"levels {self.levels} has a feature of {max(self.levels)} levels; give at most {MOST}: "
                            "beyond that the margin of the bound is as wide as a level")
        if self.size >= 2**31:
            raise UserError(f"levels {self.levels} make {self.size} codes; int32 holds fewer than {2**31}")

    @property
    def size(self) -> int:
        """The number of codes, K."""
        return math.prod(self.levels)

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Quantises.

        Args:
          z: [..., len(levels)], any numbers.

        Returns:
          f32 of the same shape in [-1, 1], with the gradient of `bound`, and the codes i32 [...].
        """
        bounded = self.bound(z)
        rounded = straight_through(bounded, jnp.round(bounded))
        return rounded / self._half(), self._index(jax.lax.stop_gradient(rounded))

    def bound(self, z: jax.Array) -> jax.Array:
        """Any numbers [..., len(levels)] -> f32 within half a level of the outermost ones; 0 becomes 0."""
        levels = np.asarray(self.levels, np.float64)
        half = (levels - 1) * (1 + EPSILON) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        shift, half, offset = (jnp.asarray(v, jnp.float32) for v in (np.arctanh(offset / half), half, offset))
        return jnp.tanh(z.astype(jnp.float32) + shift) * half - offset

    def nearest(self, z: jax.Array) -> jax.Array:
        """The codes i32 [...] of vectors [..., len(levels)]: mixed-radix numbers, the first feature counts least."""
        return self._index(jnp.round(self.bound(z)))

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [...] -> their vectors f32 [..., len(levels)] in [-1, 1]."""
        digits = codes[..., None] // self._basis() % jnp.asarray(self.levels, jnp.int32)
        return (digits - jnp.asarray(self._half(), jnp.int32)) / self._half()

    def _index(self, rounded: jax.Array) -> jax.Array:
        return jnp.sum((rounded + self._half()).astype(jnp.int32) * self._basis(), axis=-1)

    def _half(self) -> jax.Array:
        return jnp.asarray([level // 2 for level in self.levels], jnp.float32)

    def _basis(self) -> jax.Array:
        return jnp.asarray([math.prod(self.levels[:i]) for i in range(len(self.levels))], jnp.int32)
