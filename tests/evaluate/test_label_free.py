"""Figures without actions, of tokenizers that say what is known: how a square moves, or where it ends."""

import numpy as np
import pytest

from lapa_jax.evaluate.latent_actions import label_free

SIDE = 24
NAMES = {"view_consistency", "reversal_correlation", "reversal_r2", "one_frame_r2", "swap_gap_same_place"}


def image(place):
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:, place : place + 2] = 255
    return picture


def place_of(frames):
    return frames.astype(np.float64).mean((1, 3)).argmax(-1)


class Square:
    """A bar moves along x. Codes are its motion from -3 to 3, or (`place`) where it ends; deltas are the same."""

    def __init__(self, place=False, discrete=True):
        self.place, self.discrete = place, discrete

    def encode_both(self, frames):
        first, last = place_of(frames[:, 0]), place_of(frames[:, 1])
        said = last if self.place else last - first + 3
        codes = {"codes": said[:, None].astype(np.int32)} if self.discrete else {}
        return {"delta": said[:, None, None].astype(np.float32), **codes}

    def decode(self, first, codes):
        said = codes.reshape(len(codes)).astype(int)
        last = said if self.place else place_of(first) + said - 3
        return np.stack([image(place) for place in np.clip(last, 0, SIDE - 2)]) / np.float32(255) * 0.9

    def observe(self, frames):
        return frames / np.float32(255)


def batches(episodes=8, count=40):
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        first, motion = rng.integers(6, SIDE - 8, count), rng.integers(-3, 4, count)
        frames = np.stack([[image(a), image(a + b)] for a, b in zip(first, motion)])
        yield {"frames": frames, "episode_id": np.full(count, episode), "mask": np.ones(count)}


def test_motion_and_place_are_told_apart():
    motion, place = (label_free.measure(Square(place=is_place), batches()) for is_place in (False, True))
    assert set(motion) == set(place) == NAMES
    # The same motion from elsewhere, backwards, and not to be seen in one frame.
    assert motion["view_consistency"] == 1.0 and motion["reversal_correlation"] < -0.99
    assert motion["reversal_r2"] > 0.99 and motion["one_frame_r2"] < 0.4
    assert place["view_consistency"] < 0.5 and place["reversal_correlation"] > 0
    assert place["one_frame_r2"] > 0.9
    # The codes of a pair that ends at the same place do where codes say this place, and only there.
    assert place["swap_gap_same_place"] == pytest.approx(0, abs=1e-6) and motion["swap_gap_same_place"] > 1


def test_deltas_without_codes():
    found = label_free.measure(Square(discrete=False), batches())
    assert set(found) == NAMES - {"view_consistency"} | {"view_delta_r2"} and found["view_delta_r2"] > 0.99


def test_pairs_of_one_episode_have_no_figures():
    assert label_free.measure(Square(), batches(episodes=1)) == {}


def test_what_is_seen_of_a_frame():
    frames = np.arange(2 * 40 * 33 * 3, dtype=np.uint8).reshape(2, 40, 33, 3)
    seen = label_free.blocks(frames)
    assert seen.shape == (2, 20 * 16 * 3)
    np.testing.assert_allclose(seen[1, :3], frames[1, :2, :2].mean((0, 1)))
    assert label_free.blocks(frames[:, :8, :8]).shape == (2, 8 * 8 * 3)


def test_the_most_similar_is_of_another_episode():
    features = np.array([[0.0], [0.1], [5.0], [5.2], [0.4]])
    assert label_free.most_similar(features, np.array([0, 0, 1, 2, 1])).tolist() == [4, 4, 3, 2, 1]
