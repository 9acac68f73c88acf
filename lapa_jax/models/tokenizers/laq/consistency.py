"""Consistency: the codes say how the features of the first frame become those of the second, instead of its pixels.

The features are those that the encoder makes of each frame by itself. They are learned, so that what no code can tell
of the second frame need not be in them, where pixels show all of it (Nikulin et al. 2025, LAOM, arXiv 2502.00379).
Features that are all equal would be predicted best of all. Against that there are:
  the target    the same network with averaged parameters, without gradient (Grill et al. 2020, BYOL, arXiv 2006.07733);
  variance      a loss: no feature may vary less than by a standard deviation of 1;
  covariance    a loss: no feature may say what another one says (both Bardes et al. 2022, VICReg, arXiv 2105.04906).
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.nn import losses
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.residual import ResBlock
from lapa_jax.nn.views import change_colours, shift_clips, swap_backgrounds

COLLECTION = "target"


class ConsistencyHead(nn.Module):
    """Predicts the target's features of second frames; keeps the target's parameters, see `follow`.

    Attributes: dtype: of the prediction's layers. blocks: residual blocks of the prediction.
    """

    dtype: jnp.dtype
    blocks: int = 2

    @nn.compact
    def __call__(
        self, features: Callable, params: dict, first: jax.Array, second: jax.Array, action: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses "consistency", "variance" and "covariance", f32 [B].

        Args:
          features: (parameters, frames [B, H, W, 3]) -> grids [B, rows, columns, C].
          params: the parameters that are trained; at initialisation the target's are a copy of them.
          first, second: frames of two views of the pairs, see `draw_views`.
          action: the vectors of the pairs' codes [B, N, Q].
        """
        copy = lambda: jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)  # noqa: E731
        target = standardize(features(self.variable(COLLECTION, "encoder", copy).value, second))
        seen = standardize(features(params, first))
        width = seen.shape[-1]
        condition = nn.silu(Linear(width, dtype=self.dtype, name="action")(action.reshape(len(action), -1)))
        prediction = seen.astype(self.dtype)
        for block in range(self.blocks):
            prediction = ResBlock(math.gcd(8, width), self.dtype, name=f"block_{block}")(prediction, condition)
        variance, covariance = spread(seen)
        return {"consistency": losses.mean_squared_error(prediction, jax.lax.stop_gradient(target)),
                "variance": variance, "covariance": covariance}  # fmt: skip


def draw_views(clips: jax.Array, rng: jax.Array, kinds: tuple[str, ...], threshold: float) -> list[jax.Array]:
    """Two views of clips f32 [B, T, H, W, 3]: the first frame's features come from the one, the target from the other.

    "shift" moves both views alike, by up to a quarter of the image: the prediction compares cell with cell, and shifted
    otherwise the same cell would show another place. The codes come from the clips themselves, so that the shift is
    unknown to them. "colour" and "background" change each view by itself: what the two do not share no code can tell,
    and features of it cost. Backgrounds are those of the batch's next example and of the one after it; pixels that
    change by more than `threshold` stay.
    """
    shift, *colours = jax.random.split(rng, 3)
    if "shift" in kinds:
        clips = shift_clips(clips, shift, min(clips.shape[2:4]) // 4)
    views = [clips, clips]
    if "background" in kinds:
        views = [swap_backgrounds(clips, jnp.roll(clips, places, axis=0), threshold) for places in (-1, -2)]
    if "colour" in kinds:
        views = [change_colours(view, key) for view, key in zip(views, colours, strict=True)]
    return views


def standardize(features: jax.Array) -> jax.Array:
    """[..., C] -> f32 with mean 0 and variance 1 over the last axis: else smaller features would be nearer already."""
    x = features.astype(jnp.float32)
    # 1e-6 is for a cell whose features are all equal.
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def spread(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """VICReg's losses of grids f32 [B, rows, columns, C], the same for each example, f32 [B]: how far standard
    deviations of features are below 1, on average, and the sum of squared covariances of pairs of features over C.

    Deviations are from the mean of the same cell in all examples: convolutions know where in the image a cell is, and
    features that say no more than that would be predicted best of all. The variances are those of all cells together,
    since some, of a camera that stands still, may look alike in all examples.
    """
    count, width = len(features), features.shape[-1]
    x = (features - features.mean(0)).reshape(-1, width)
    covariance = jnp.matmul(x.T, x, precision="highest") / len(x)
    variances = jnp.diagonal(covariance)
    # 1e-4 is VICReg's: the root has no slope at 0.
    below = nn.relu(1 - jnp.sqrt(variances + 1e-4)).mean()
    shared = (jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(variances))) / width
    return jnp.broadcast_to(below, count), jnp.broadcast_to(shared, count)


def follow(averages: dict, params: dict, decay: float, step: jax.Array) -> dict:
    """The target's parameters after update number `step`: `decay` of what they were and the rest of the new ones.

    In the first 1 / (1 - decay) updates they are the mean of all new parameters: what a run begins with, at random or
    from another run that had no target, would count too long otherwise.
    """
    kept = jnp.minimum(decay, 1 - 1 / step.astype(jnp.float32))
    return jax.tree.map(lambda average, x: average + (1 - kept) * (x.astype(jnp.float32) - average), averages, params)
