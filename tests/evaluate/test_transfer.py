"""Codes applied to other clips, with a tokenizer whose answers are known."""

import numpy as np
import pytest

from lapa_jax.evaluate.latent_actions import transfer


class Brightness:
    """Codes are the change of brightness in steps of 1 of 8; `deaf`: the decoder does not listen to them."""

    codebook_size = 8

    def __init__(self, deaf=False):
        self.deaf = deaf

    def encode(self, frames):
        frames = frames.astype(np.float64) / (255 if frames.dtype == np.uint8 else 1)
        change = (frames[:, 1] - frames[:, 0]).mean((1, 2, 3))
        return np.clip(np.rint(change * 20), 0, 7).astype(np.int32)[:, None]

    def decode(self, first, codes):
        return (first.astype(np.float32) / 255 + (0 if self.deaf else codes[:, :, None, None] / 20)).astype(np.float32)


class Change:
    """The same without codes: the delta is the change of brightness itself."""

    codebook_size = None

    def __init__(self, deaf=False):
        self.deaf = deaf

    def encode(self, frames):
        frames = frames.astype(np.float64) / (255 if frames.dtype == np.uint8 else 1)
        return (frames[:, 1] - frames[:, 0]).mean((1, 2, 3))[:, None, None].astype(np.float32)

    def decode(self, first, delta):
        return (first.astype(np.float32) / 255 + (0 if self.deaf else delta[:, :, None])).astype(np.float32)


def batches(per_episode=(6, 6, 6, 6), seed=0):
    rng = np.random.default_rng(seed)
    for episode, count in enumerate(per_episode):
        start, codes = rng.integers(0, 100, count), rng.integers(0, 8, count)
        first = np.broadcast_to(start[:, None, None, None], (count, 4, 4, 3))
        frames = np.stack([first, first + np.rint(255 / 20 * codes)[:, None, None, None]], 1).astype(np.uint8)
        yield {"frames": frames, "episode_id": np.full(count, episode), "mask": np.ones(count),
               "net_action": np.stack([codes, -2.0 * codes], 1).astype(np.float32)}  # fmt: skip


def test_codes_that_mean_the_same_everywhere_come_back_and_say_the_action():
    found = transfer.measure(Brightness(), batches((40, 40, 40, 40)))
    assert found["transfer_consistency"] == 1.0 and found["transfer_action_r2"] > 0.95
    assert 0.05 < found["transfer_chance"] < 0.25, "eight codes, equally often"


def test_a_decoder_that_does_not_listen_is_found_out():
    found = transfer.measure(Brightness(deaf=True), batches((40, 40, 40, 40)))
    assert found["transfer_consistency"] < 0.25 and found["transfer_action_r2"] < 0.05


def test_without_codes_it_is_deltas_that_come_back():
    metrics = transfer.measure(Change(), batches((40, 40, 40, 40)))
    assert metrics["transfer_delta_r2"] > 0.99 and metrics["transfer_action_r2"] > 0.95
    assert -1.3 < metrics["transfer_delta_chance"] < -0.7, "two independent pairs are twice the variance apart"
    deaf = transfer.measure(Change(deaf=True), batches((40, 40, 40, 40)))
    assert deaf["transfer_delta_r2"] < 0 and deaf["transfer_action_r2"] < 0.05


def test_partners_are_of_other_episodes_and_each_is_one_once():
    episodes = np.array([3, 0, 0, 1, 3, 0, 1, 2])
    found = transfer.partners(episodes)
    assert sorted(found) == list(range(8)) and (episodes[found] != episodes).all()
    assert transfer.partners(np.array([0, 0, 0, 1])) is None
    assert transfer.measure(Brightness(), batches((9, 2))) == {}


def test_padding_does_not_count_and_no_more_than_the_limit(monkeypatch):
    rows = [{**batch, "mask": np.array([1, 1, 1, 0, 0, 0.0])} for batch in batches()]
    kept = transfer.gather(iter(rows), 5)
    assert kept["episode_id"].tolist() == [0, 0, 0, 1, 1] and len(kept["frames"]) == 5


def test_without_actions_there_is_no_score():
    rows = [{name: value for name, value in batch.items() if name != "net_action"} for batch in batches()]
    assert set(transfer.measure(Brightness(), rows)) == {"transfer_consistency", "transfer_chance"}


@pytest.mark.parametrize("again", ["codes", "noise"])
def test_the_score_is_that_of_what_comes_back(again):
    rng = np.random.default_rng(1)
    codes, episodes = rng.integers(0, 4, (200, 2)), np.arange(200) % 4
    actions = codes @ np.array([[1.0], [0.5]])
    back = codes if again == "codes" else rng.integers(0, 4, (200, 2))
    score = transfer.action_r2(codes, back, actions, episodes, 4)
    assert score > 0.95 if again == "codes" else score < 0.1
