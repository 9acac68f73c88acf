import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.nn.patches import from_patches, patch_grid, to_patches, whole_patches


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_there_and_back(rows, columns, patch):
    frames = np.random.default_rng(0).normal(size=(2, rows * patch, columns * patch, 3)).astype(np.float32)
    patches = to_patches(frames, patch)
    assert patches.shape == (2, rows * columns, 3 * patch**2)
    np.testing.assert_array_equal(from_patches(patches, (rows, columns), patch), frames)


def test_patches_are_row_major_and_their_features_channel_major():
    frames = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    patches = np.asarray(to_patches(frames, 2))
    second_row_third_column = frames[2:4, 4:6]
    np.testing.assert_array_equal(patches[5], second_row_third_column.transpose(2, 0, 1).reshape(-1))


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 17), st.integers(3, 17), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_they_are_the_windows_of_a_convolution_without_padding(height, width, patch, seed):
    """By NumPy's windows with the patch as stride, as the towers' embedding is defined."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = rng.normal(size=(4, 3, patch, patch)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(frames, (patch, patch), (1, 2))[:, ::patch, ::patch]
    expected = np.einsum("nrckhw,dkhw->nrcd", windows, kernel)
    rows, columns = whole_patches((height, width), patch)
    got = np.asarray(to_patches(frames, patch)) @ kernel.reshape(4, -1).T
    np.testing.assert_allclose(got.reshape(2, rows, columns, 4), expected, atol=1e-4)


def test_an_image_smaller_than_a_patch_is_refused():
    assert whole_patches((384, 384), 14) == (27, 27)
    with pytest.raises(UserError, match="13x384 pixels is smaller than a patch of 14"):
        whole_patches((13, 384), 14)


def test_a_patch_size_that_does_not_divide_is_refused_with_sizes_that_do():
    with pytest.raises(UserError, match=r"patch_size 7 does not divide .* 64x48 .* 63x49 .* 1, 2, 4, 8, 16"):
        patch_grid((64, 48), 7)
