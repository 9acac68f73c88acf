"""How images are brought to the size of Prismatic's models: against Pillow's own calls, and formulas written out."""

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageOps

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.prismatic_images import PrismaticResize


def image_of(height, width, seed=0):
    """Smooth, with some noise: interpolations differ on it, and pixels are not all extremes."""
    rng = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (2, 2, 0)) * 300 + 128
    return np.clip(smooth + rng.normal(size=smooth.shape) * 5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(48, 72), (90, 30), (56, 56), (20, 20)])
def test_squashed_bicubically_as_pillow_does_it(shape):
    image = image_of(*shape)
    wanted = np.asarray(Image.fromarray(image).resize((56, 56), Image.BICUBIC))
    np.testing.assert_array_equal(PrismaticResize()(image, 56), wanted)
    if shape != (56, 56):
        assert (wanted != images.resize(image, 56)).any()


@pytest.mark.parametrize("shape", [(48, 72), (49, 72), (72, 48), (72, 47), (31, 30)])
def test_letterboxed_as_the_official_transform_does_it(shape):
    """Half of what is missing, rounded down, on either side; then the shorter side is brought to the size."""
    image, fill, size = image_of(*shape), (123, 116, 103), 56
    height, width = shape
    most = max(shape)
    right, down = int((most - width) / 2), int((most - height) / 2)
    padded = ImageOps.expand(Image.fromarray(image), (right, down, right, down), fill)
    w, h = padded.size
    new = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    resized = padded.resize(new, Image.BICUBIC)
    left, top = int(round((new[0] - size) / 2)), int(round((new[1] - size) / 2))
    wanted = np.asarray(resized.crop((left, top, left + size, top + size)))
    np.testing.assert_array_equal(PrismaticResize("letterbox", "bicubic", fill)(image, size), wanted)
    assert (wanted[0, 0] == fill).all() or abs(height - width) <= 1


def test_the_shorter_side_is_resized_and_the_middle_cut_out():
    image = image_of(40, 100)
    resized = np.asarray(Image.fromarray(image).resize((int(28 * 100 / 40), 28), Image.BICUBIC))
    np.testing.assert_array_equal(PrismaticResize("shorter_side", "bicubic")(image, 28), resized[:, 21:49])


@pytest.mark.parametrize("shape", [(56, 56), (48, 72), (224, 224)])
def test_the_middle_is_sampled_where_the_corners_of_a_box_of_that_area_lie(shape):
    image, size = image_of(*shape), 56
    side = np.sqrt(0.9)
    places = [((1 - side) / 2 + side * np.arange(size) / (size - 1)) * (n - 1) for n in shape]
    grid = np.meshgrid(*places, indexing="ij")
    values = np.stack([scipy.ndimage.map_coordinates(image[..., c].astype(np.float64), grid, order=1)
                       for c in range(3)], axis=-1)  # fmt: skip
    given = PrismaticResize(area=0.9)(image, size)
    assert given.shape == (size, size, 3)
    # x / 255 * 255.5 without its fraction: rounding, but for the float32 numbers nearest to a half
    wanted = values * 255.5 / 255
    assert np.abs(given - (wanted - 0.5)).max() <= 0.5 + 1e-3
    assert (given == np.floor(wanted)).mean() > 0.999


def test_what_needs_no_change_is_not_copied_and_the_middle_is_taken_at_any_size():
    image = image_of(56, 56)
    for mode in ("squash", "shorter_side", "letterbox"):
        np.testing.assert_array_equal(PrismaticResize(mode, "bicubic")(image, 56), image)
    assert (PrismaticResize(area=0.9)(image, 56) != image).any()
    assert images.keeps_size({"mode": "letterbox"}) and not images.keeps_size({"area": 0.9})
    np.testing.assert_array_equal(images.to_side(image, 56, None, {"area": 0.9}), PrismaticResize(area=0.9)(image, 56))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "leterbox"}, "did you mean 'letterbox'"),
        ({"interpolation": "nearest"}, "data.resize.interpolation is 'nearest'"),
        ({"fill": (1, 2)}, "three whole numbers"),
        ({"area": 0.0}, "share of the area"),
        ({"interpolate": 1}, "no field 'interpolate'; did you mean 'interpolation'"),
    ],
)
def test_wrong_fields_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        images.check_resize(config)
