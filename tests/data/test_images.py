"""Resizing that must equal other programs', and decoding at a smaller size, which need not."""

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import images, pipeline
from lapa_jax.data.samples.reading import CameraImages
from lapa_jax.data.samples.steps import Options
from lapa_jax.data.shards.step_shards import StepShards
from tests.data.samples import make
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


@pytest.mark.parametrize("noise", [0, 8])
def test_scaled_decoding_is_nearly_the_exact_image(noise):
    """At half the size and less; what is not twice as large stays exact.

    At half the size a pixel is a mean of 2 x 2, while Pillow weighs 4 x 4 by a triangle, 3:1 a side: the weights differ
    by 0.26 in their norm, so white noise of standard deviation s makes a difference of 0.26 s, 0.21 s on average.
    """
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 9, 320)[:, None, None] * [1.0, 2.0, 3.0] + np.linspace(0, 7, 480)[:, None])
    photo = np.clip(128 + 90 * waves + rng.normal(0, noise, (320, 480, 3)), 0, 255).astype(np.uint8)
    data = images.encode(photo)
    for size in (160, 120, 80, 64):
        for mode in ("squash", "center_crop"):
            exact, scaled = (images.resize(images.decode(data, smallest), size, mode) for smallest in (None, size))
            difference = np.abs(exact.astype(int) - scaled)
            assert 0 < difference.mean() < 0.21 * noise + 0.75, (size, mode)
            assert np.percentile(difference, 99) <= 2.6 * 0.26 * noise + 3, (size, mode)
    assert min(images.decode(data, 160).shape[:2]) == 160 and images.decode(data, 64).shape[:2] == (80, 120)
    np.testing.assert_array_equal(images.decode(data, 161), images.decode(data))


def test_only_training_reads_scaled_images(tmp_path):
    make.write(tmp_path, {"train": [[4]], "val": [[4]]}, size=64)
    for kind, field in (("pairs", "frames"), ("steps", "image")):
        data = {"path": str(tmp_path), "samples": kind, "image_size": 16, "fields": (field,)}
        data |= {"gap_frames": 1} if kind == "pairs" else {}
        for split, equal in (("train", False), ("val", True)):
            exact, scaled = (pipeline.build({**data, "scaled_decoding": on}, split).batch([0, 1, 2])[field]
                             for on in (False, True))  # fmt: skip
            assert np.array_equal(exact, scaled) == equal and exact.shape == scaled.shape
    for resize in ("lapa", "lapa_cropped", {"mode": "letterbox"}):
        with pytest.raises(UserError, match="data.scaled_decoding=True would change images"):
            Options(resize=resize, scaled_decoding=True)


def test_scaled_decoding_leaves_what_the_data_say_of_another_program_exact(tmp_path):
    make.write(tmp_path, {"train": [[4]]}, size=64)
    shards = StepShards(tmp_path)
    shards.features["image"][images.RESIZE] = "lapa"
    exact, scaled = (np.zeros((1, 16, 16, 3), np.uint8) for _ in range(2))
    for out, on in ((exact, False), (scaled, True)):
        CameraImages(shards, "image", 16, scaled=on).into(list(out), [0])
    assert exact.any() and np.array_equal(exact, scaled)
