"""Resizing that must equal other programs'."""

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.samples.steps import Options
from tests.golden import make_opencv


def test_opencv_s_bilinear_is_equal_to_the_bit():
    expected = np.load(make_opencv.FILE)
    for number, (_, _, height, width) in enumerate(make_opencv.SIZES):
        resized = images.resize_opencv(make_opencv.image(number), height, width)
        np.testing.assert_array_equal(resized, expected[str(number)], err_msg=str(make_opencv.SIZES[number]))


def test_opencv_itself_agrees_where_it_is_installed():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, columns, height, width = map(int, rng.integers(1, 120, 4))
        image = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        np.testing.assert_array_equal(images.resize_opencv(image, height, width), cv2.resize(image, (width, height)))


def test_lapa_s_images_are_those_of_its_own_code(shared):
    golden = np.load(shared / "golden" / "released" / "lapa7b_small" / "golden.npz")
    for case in (0, 1):
        resized = images.resize(golden[f"case{case}.image"], 64, "lapa")
        np.testing.assert_array_equal(resized, golden[f"case{case}.resized"])
        squashed = images.resize(golden[f"case{case}.image"], 64)
        assert np.abs(squashed.astype(int) - resized).max() > 10, "anti-aliasing makes other images"


def test_finetuned_models_of_lapa_see_the_middle_of_the_height(shared):
    """57 of 64 rows from the fourth on, and all columns, brought back to the square, whatever the size was before."""
    golden = np.load(shared / "golden" / "released" / "lapa7b_small" / "golden.npz")
    for case in (0, 1):
        expected = images.resize_opencv(golden[f"case{case}.resized"][3:60], 64, 64)
        for image in (golden[f"case{case}.image"], golden[f"case{case}.resized"]):
            np.testing.assert_array_equal(images.to_side(image, 64, None, "lapa_cropped"), expected)
    assert not images.keeps_size("lapa_cropped") and images.keeps_size("lapa")
    assert Options(resize="lapa_cropped").resize == "lapa_cropped"


def test_extreme_shapes_still_give_a_square():
    assert images.resize(np.zeros((1, 900, 3), np.uint8), 32, "lapa").shape == (32, 32, 3)


def test_an_unknown_way_to_resize_is_refused():
    with pytest.raises(UserError, match="data.resize 'lappa' does not exist.*lapa"):
        Options(resize="lappa")
