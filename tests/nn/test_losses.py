import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lapa_jax.nn import losses


def images(seed=0, shape=(2, 24, 20, 3)):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def ssim_with_scipy(a, b):
    """Gaussian filter with the same truncated window, cropped to where the window fits."""
    blur = lambda x: ndimage.gaussian_filter(x.astype(np.float64), 1.5, truncate=5 / 1.5, axes=(0, 1))[5:-5, 5:-5]  # noqa: E731
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return np.mean(top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))


def test_ssim_equals_scipy_and_is_one_for_equal_images():
    a = images()
    b = np.clip(a + 0.2 * images(1), 0, 1)
    got = losses.ssim(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(got, [ssim_with_scipy(x, y) for x, y in zip(a, b)], rtol=1e-3)
    np.testing.assert_allclose(losses.ssim(a, a), 1, atol=1e-5)


def test_psnr_of_known_errors():
    assert losses.psnr(0.01) == pytest.approx(20)
    np.testing.assert_allclose(losses.psnr(jnp.asarray([1.0, 1e-4])), [0, 40], atol=1e-5)


def test_mean_squared_error_is_per_example():
    a = images()
    b = a.copy()
    b[1] += 0.5
    np.testing.assert_allclose(losses.mean_squared_error(a, b), [0, 0.25], rtol=1e-5)


def test_motion_error_counts_only_where_the_frames_differ():
    first = np.full((1, 16, 16, 3), 0.5, np.float32)
    second = first.copy()
    second[:, 4:6, 4:6] = 1.0
    elsewhere, there = second.copy(), second.copy()
    elsewhere[:, 10:12, 10:12] += 0.3
    there[:, 4:6, 4:6] -= 0.3
    error = lambda prediction: float(losses.motion_weighted_error(prediction, first, second, 0.04)[0])  # noqa: E731
    assert error(elsewhere) == 0
    # Four pixels of weight 0.46 each, against the constant that fades out still images.
    expected = 0.09 * 4 * 0.46 / (4 * 0.46 + 0.0005 * 256)
    assert error(there) == pytest.approx(expected, rel=1e-4)


def test_motion_error_of_a_still_pair_is_zero():
    first = images()
    assert np.all(np.asarray(losses.motion_weighted_error(first + 0.1, first, first, 0.04)) == 0)


def test_coarse_error_is_one_for_a_copy_and_zero_for_the_truth():
    first, second = images(0), images(1)
    copy = losses.coarse_relative_error(first, first, second, (4,))
    change = (second - first).reshape(2, 6, 4, 5, 4, 3).mean((2, 4))
    energy = (change**2).mean((1, 2, 3))
    np.testing.assert_allclose(copy, energy / (energy + 1e-4), rtol=1e-4)
    assert np.all(np.asarray(losses.coarse_relative_error(second, first, second, (2, 4))) == 0)


def test_coarse_error_leaves_out_what_fills_no_block():
    first, second = images(0, (1, 11, 10, 3)), images(1, (1, 11, 10, 3))
    whole = losses.coarse_relative_error(first, first, second, (5,))
    np.testing.assert_allclose(whole, losses.coarse_relative_error(first[:, :10], first[:, :10], second[:, :10], (5,)))
