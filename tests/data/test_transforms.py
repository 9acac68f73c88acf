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
    for wrong in ({"shift": -1}, {"crop_area": 0}, {"flip": 2}, {"contrast": -0.1}):
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
