"""The frame in the middle of a pair, and the optical flow between its two frames."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lapa_jax.core.errors import UserError
from lapa_jax.data import flow, pipeline
from lapa_jax.data.transforms import Augment
from tests.inference import step_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return step_shards.write(tmp_path_factory.mktemp("middle"), actions=False)


def build(folder, **data):
    return pipeline.build({"path": str(folder), "gap_frames": 5, "fields": ("frames", "middle_frame"), **data}, "train")


def test_the_middle_frame_is_that_of_half_the_gap(folder):
    source = build(folder)
    batch = source.batch(range(len(source)))
    brightness = {name: batch[name].mean((-3, -2, -1)) for name in ("frames", "middle_frame")}
    # A step is 8 levels brighter than the one before; 256 wraps around.
    step = (batch["middle_frame"].shape, np.rint((brightness["middle_frame"] - brightness["frames"][:, 0]) / 8) % 32)
    assert step[0] == (len(source), 32, 32, 3) and set(step[1]) == {2}
    assert set(np.rint((brightness["frames"][:, 1] - brightness["frames"][:, 0]) / 8) % 32) == {5}
    with pytest.raises(UserError, match="a gap of 1 frame has no frame in the middle"):
        build(folder, gap_frames=1)


def blob(side=48):
    noise = gaussian_filter(np.random.default_rng(0).random((side, side, 3)), (2, 2, 0))
    return ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)


@pytest.fixture
def moved():
    """A texture, and the same one pixel further to the right and two further down, uint8 [1, 2, 32, 32, 3]."""
    pytest.importorskip("cv2")
    image = blob()
    return np.stack([image[8:40, 8:40], image[6:38, 7:39]])[None]


def test_flow_is_the_displacement_in_pixels(moved):
    field = flow.of_pairs(moved)
    assert field.shape == (1, 8, 8, 2) and field.dtype == np.float32
    inner = field[0, 2:-2, 2:-2]
    np.testing.assert_allclose(inner, np.broadcast_to(np.array([1.0, 2.0]), inner.shape), atol=0.02)
    assert np.abs(flow.of_pairs(moved[:, [0, 0]])).max() == 0


def test_flow_is_that_of_the_augmented_pair(moved):
    sample = {"frames": moved[0], "flow": flow.of_pairs(moved)[0]}
    mirrored = Augment(flip=1.0)(sample, np.random.default_rng(0))
    np.testing.assert_allclose(mirrored["flow"][2:-2, 2:-2].mean((0, 1)), [-1.0, 2.0], atol=0.02)
    assert sample["flow"][4, 4, 0] > 0, "the sample itself stays"


def test_cells_fill_the_images_and_flow_comes_with_the_pairs(folder):
    pytest.importorskip("cv2")
    source = build(folder, fields=("frames", "flow"), image_size=16)
    batch = source.batch([0, 1])
    np.testing.assert_array_equal(batch["flow"], flow.of_pairs(batch["frames"]))
    with pytest.raises(UserError, match="cells of 4 pixels do not fill images of 18x18"):
        build(folder, fields=("frames", "flow"), image_size=18)


def test_without_opencv_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'lapa_jax\[flow\]'"):
        build(folder, fields=("frames", "flow"))
