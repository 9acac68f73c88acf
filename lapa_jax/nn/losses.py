"""Losses and image measures, per example. Images are f32 in [0, 1], channels last."""

import einops
import jax
import jax.numpy as jnp
import numpy as np


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """[B, ...] and [B, ...] -> f32 [B]: the mean over everything but the batch."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """[B, ...] and weights of at least 0, [B, ...] -> f32 [B]: means over all but the batch; 0 where nothing counts."""
    axes = tuple(range(1, values.ndim))
    total = jnp.sum(weights, axes)
    return jnp.sum(values * weights, axes) / jnp.where(total > 0, total, 1)


def psnr(mse):
    """Peak signal-to-noise ratio in dB of a mean squared error, for a peak of 1; works on jax and numpy values."""
    return -10 * np.log10(mse) if isinstance(mse, (float, np.ndarray, np.generic)) else -10 * jnp.log10(mse)


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity of two batches of images (Wang et al. 2004), averaged over positions and channels.

    Gaussian window of 11 pixels with sigma 1.5, only where it fits; K1 = 0.01, K2 = 0.03, peak 1. On images with a side
    under 11 pixels the window shrinks to that side.

    Args:
      a: [B, H, W, C] f32 in [0, 1].
      b: the same.

    Returns:
      f32 [B], 1 for equal images.
    """
    rows, columns = (_gaussian_band(size) for size in a.shape[1:3])

    def blur(x):
        return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision="highest", optimize=True)

    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _gaussian_band(size: int) -> np.ndarray:
    """[size - window + 1, size]: row i holds the window that starts at pixel i."""
    window = min(11, size)
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    band = np.zeros((size - window + 1, size), np.float32)
    for i in range(len(band)):
        band[i, i : i + window] = weights / weights.sum()
    return band


def motion_weighted_error(prediction: jax.Array, first: jax.Array, second: jax.Array, threshold: float) -> jax.Array:
    """Squared error where the image changes: small moving things count as much as large ones.

    Each pixel weighs max(0, largest channel difference of the two frames - threshold), and the weights of an image are
    normalised to sum to 1; an image in which (almost) nothing moves fades out instead of blowing up its noise.

    Args:
      prediction: [B, H, W, C] of the second frame.
      first: [B, H, W, C].
      second: [B, H, W, C].
      threshold: differences up to this (in [0, 1]) are taken for compression noise.

    Returns:
      f32 [B].
    """
    weight = jnp.maximum(jnp.max(jnp.abs(second - first), axis=-1) - threshold, 0)
    error = jnp.mean(jnp.square(prediction.astype(jnp.float32) - second), axis=-1)
    height, width = weight.shape[1:]
    return jnp.sum(weight * error, (1, 2)) / (jnp.sum(weight, (1, 2)) + 0.0005 * height * width)


def coarse_relative_error(prediction: jax.Array, first: jax.Array, second: jax.Array, cells) -> jax.Array:
    """Squared error of block means, relative to how much the block means change between the frames.

    A thin thing predicted two pixels off costs as much as no prediction when pixels are compared; block means still say
    how far off it is, so there is a slope to follow. Relative errors let pairs with little motion count as the others.

    Args:
      prediction: [B, H, W, C] of the second frame.
      first: [B, H, W, C].
      second: [B, H, W, C].
      cells: sides of the blocks in pixels, whose results are added; what does not fill a block at the right and the
        bottom is left out.

    Returns:
      f32 [B].
    """
    error, change = prediction.astype(jnp.float32) - second, second - first
    total = jnp.zeros(len(prediction), jnp.float32)
    for cell in cells:
        energy = [jnp.mean(jnp.square(_block_means(x, cell)), (1, 2, 3)) for x in (error, change)]
        # 1e-4 is (one hundredth of the range) squared: below that a change is noise.
        total += energy[0] / (energy[1] + 1e-4)
    return total


def _block_means(x: jax.Array, cell: int) -> jax.Array:
    rows, columns = x.shape[1] // cell, x.shape[2] // cell
    x = x[:, : rows * cell, : columns * cell]
    return einops.reduce(x, "b (rows p) (columns q) c -> b rows columns c", "mean", p=cell, q=cell)
