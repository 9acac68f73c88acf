import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.transforms import Augment, check_augment


@pytest.fixture
def sample():
    first = np.random.default_rng(0).integers(30, 200, (24, 24, 3), dtype=np.uint8)
    return {"frames": np.stack([first, first]), "step": np.int32(3)}


@pytest.mark.parametrize(
    "augment",
    [
        Augment(shift=4),
        Augment(crop_area=0.5),
        Augment(flip=1.0),
        Augment(brightness=0.5),
        Augment(contrast=0.5),
        Augment(saturation=0.5),
        Augment(shift=4, crop_area=0.5, flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3),
    ],
)
def test_one_draw_serves_both_frames(sample, augment):
    before = sample["frames"].copy()
    changed = 0
    for seed in range(10):
        out = augment(sample, np.random.default_rng(seed))
        assert out["frames"].shape == (2, 24, 24, 3) and out["frames"].dtype == np.uint8
        np.testing.assert_array_equal(out["frames"][0], out["frames"][1])
        np.testing.assert_array_equal(out["frames"], augment(sample, np.random.default_rng(seed))["frames"])
        changed += not np.array_equal(out["frames"], before)
        assert out["step"] == 3
    assert changed >= 8
    np.testing.assert_array_equal(sample["frames"], before)


def test_what_each_change_does(sample):
    frames = sample["frames"]
    np.testing.assert_array_equal(Augment(flip=1.0)(sample, np.random.default_rng(0))["frames"], frames[:, :, ::-1])
    shifted = Augment(shift=4)(sample, np.random.default_rng(1))["frames"][0]
    middle = shifted[8:16, 8:16]
    places = [(y, x) for y in range(4, 13) for x in range(4, 13)]
    assert sum(np.array_equal(middle, frames[0, y : y + 8, x : x + 8]) for y, x in places) == 1
    grey = np.full((2, 8, 8, 3), 100, np.uint8)
    unchanged = Augment(contrast=1.0, saturation=1.0)({"frames": grey}, np.random.default_rng(2))["frames"]
    assert np.abs(unchanged.astype(int) - 100).max() <= 1, "contrast and saturation leave an even grey alone"


def test_a_rectangle_of_one_colour_is_erased_from_all_images_of_a_sample():
    rng, shares, erased = np.random.default_rng(0), [], 0
    image = rng.integers(0, 256, (2, 40, 60, 3), np.uint8)  # two views
    for seed in range(200):
        out = Augment(erase=0.5)({"image": image}, np.random.default_rng(seed))["image"]
        changed = (out != image).any(-1)
        if not changed.any():
            continue
        erased += 1
        rows, columns = np.flatnonzero(changed.any((0, 2))), np.flatnonzero(changed.any((0, 1)))
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert len(np.unique(out[box].reshape(-1, 3), axis=0)) == 1, "all of it, in both views, has one colour"
        height, width = out[box].shape[1:3]
        shares.append(height * width / (40 * 60))
        assert max(height / width, width / height) < 3.3 * 1.15 or height == 40 or width == 60, "rounded to pixels"
    assert 70 < erased < 130, "about half"
    assert 0.015 < min(shares) < 0.06 and 0.28 < max(shares) < 0.35
    frames = Augment(shift=3, flip=0.5, erase=0.0)({"image": image}, np.random.default_rng(5))["image"]
    np.testing.assert_array_equal(
        Augment(shift=3, flip=0.5, erase=1e-9)({"image": image}, np.random.default_rng(5))["image"], frames,
        "the other draws stay what they were")  # fmt: skip


def test_erasing_is_not_for_pairs():
    with pytest.raises(UserError, match="augment.erase hides what moves between the two frames of a pair"):
        check_augment(Augment(erase=0.1), False, fields=("frames",))
    check_augment(Augment(erase=0.1), True, ["move it to the left"], ("image", "action", "latent"))


def test_motion_between_the_frames_is_kept():
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[0, 10:14, 10:14] = frames[1, 10:14, 15:19] = 255
    out = Augment(shift=6)({"frames": frames}, np.random.default_rng(0))["frames"]
    first, second = (np.argwhere(f[..., 0])[0] for f in out)
    assert (second - first).tolist() == [0, 5]


def test_config():
    assert Augment.from_config(None) is None and Augment.from_config({"shift": 0}) is None
    assert Augment.from_config({"shift": 2, "flip": 0.5}) == Augment(shift=2, flip=0.5)
    with pytest.raises(UserError, match="did you mean 'brightness'"):
        Augment.from_config({"brigthness": 0.1})
    for wrong in ({"shift": -1}, {"crop_area": 0}, {"flip": 2}, {"contrast": -0.1}, {"erase": 1.1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Augment.from_config(wrong)


def test_flips_that_contradict_the_data():
    flip = Augment(flip=0.5)
    with pytest.raises(UserError, match="move it to the LEFT"):
        check_augment(flip, True, ["open the door", "move it to the LEFT"])
    with pytest.raises(UserError, match="net_action"):
        check_augment(flip, False, fields=("frames", "net_action"))
    check_augment(flip, False, ["move it to the left"])
    check_augment(flip, True, ["bright copyright cleft", "leftover"])
    check_augment(Augment(shift=2), True, ["move it to the left"], ("action",))
    check_augment(None, True, ["left"])


@pytest.mark.parametrize("augment", [Augment(shift=4), Augment(crop_area=0.5), Augment(flip=1.0, contrast=0.5)])
def test_all_pictures_of_a_sample_change_alike(sample, augment):
    first = sample["frames"][0]
    whole = {"image": np.stack([first] * 6).reshape(3, 2, *first.shape), "prompt_image": first[None, None],
             "state": np.ones(2)}  # fmt: skip
    pair = augment(sample, np.random.default_rng(5))["frames"]
    changed = augment(whole, np.random.default_rng(5))
    assert changed["image"].shape == (3, 2, 24, 24, 3) and changed["prompt_image"].shape == (1, 1, 24, 24, 3)
    for name in ("image", "prompt_image"):
        assert (changed[name].reshape(-1, 24, 24, 3) == pair[0]).all(), "as the same draw changes a pair"
    assert changed["state"] is whole["state"]
    with pytest.raises(UserError, match="mirrors the images but not latent"):
        check_augment(Augment(flip=0.5), False, fields=("image", "latent"))
