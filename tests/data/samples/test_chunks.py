import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.chunks import Chunks, Options
from lapa_jax.data.samples.mixture import Mixture
from lapa_jax.data.shards.step_shards import StepShards
from tests.data.samples import make

LENGTHS = [7, 2, 5, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    drop = [(0, 3, "action.npy"), (2, 1, "state.npy"), (2, 0, "image.jpg")]
    return make.write(tmp_path_factory.mktemp("data"), LENGTHS, drop=drop, texts=["a", "bb", "", "d"], latents=2)


def by_brute_force(folder, length, history, members):
    """(episode, t, actions, mask, steps seen) of each chunk."""
    chunks = []
    for number, steps in enumerate(make.decoded(folder)):
        for t, step in enumerate(steps):
            seen = [steps[max(t - k, 0)] for k in range(history, -1, -1)]
            fits = "action.npy" in step and all(m in s for m in members for s in seen)
            if fits:
                ahead = [steps[t + k].get("action.npy") if t + k < len(steps) else None for k in range(length)]
                actions = [np.zeros(3) if a is None else a for a in ahead]
                chunks.append((number, t, actions, [a is not None for a in ahead], seen))
    return chunks


@pytest.mark.parametrize("length", [1, 3, 20])
def test_actions_and_their_mask(folder, length):
    source = Chunks(StepShards(folder), Options(chunk_length=length))
    expected = by_brute_force(folder, length, 0, [])
    batch = source.batch(range(len(source)))
    assert list(zip(batch["episode_id"], batch["step"])) == [c[:2] for c in expected]
    np.testing.assert_array_equal(batch["action"], np.array([c[2] for c in expected], np.float32))
    np.testing.assert_array_equal(batch["action_mask"], np.array([c[3] for c in expected], np.float32))
    assert batch["action"].dtype == batch["action_mask"].dtype == np.float32
    counts = source.summary()
    assert counts["chunks"] == len(expected) and counts["steps_without_action"] == len(LENGTHS) + 1
    assert counts["chunks_padded"] == sum(not all(c[3]) for c in expected)


@pytest.mark.parametrize("history", [0, 1, 3])
def test_observations_with_a_history(folder, history):
    options = Options(fields=("action", "state", "image", "latent"), chunk_length=4, history=history)
    source = Chunks(StepShards(folder), options)
    expected = by_brute_force(folder, 4, history, ["state.npy", "image.jpg"])
    batch = source.batch(range(len(source)))
    assert list(zip(batch["episode_id"], batch["step"])) == [c[:2] for c in expected]
    states = np.array([[s["state.npy"] for s in c[4]] for c in expected])
    pictures = np.array([[s["image.jpg"] for s in c[4]] for c in expected])
    np.testing.assert_array_equal(batch["state"], states if history else states[:, 0])
    assert make.close(batch["image"], pictures if history else pictures[:, 0])
    np.testing.assert_array_equal(batch["latent"], [c[4][-1]["latent.npy"] for c in expected])
    if history:
        reach = [[t - k >= 0 for k in range(history, -1, -1)] for _, t, *_ in expected]
        np.testing.assert_array_equal(batch["history_mask"], np.array(reach, np.float32))
    assert ("history_mask" in batch) == bool(history)


def test_padding_is_zero_after_normalisation(folder):
    shards = StepShards(folder)
    source = Chunks(shards, Options(chunk_length=6, normalize="min_max"))
    batch = source.batch(range(len(source)))
    assert (batch["action"][batch["action_mask"] == 0] == 0).all()
    low, high = (np.array(shards.statistics["action"][name]) for name in ("min", "max"))
    raw = Chunks(shards, Options(chunk_length=6)).batch(range(len(source)))["action"]
    expected = (2 * (raw - low) / (high - low) - 1) * batch["action_mask"][..., None]
    np.testing.assert_allclose(batch["action"], expected, atol=1e-5)
    assert np.abs(batch["action"]).max() <= 1 + 1e-6


def test_an_instruction_where_it_is_asked_for(folder):
    source = Chunks(StepShards(folder), Options(fields=("action", "text"), chunk_length=2))
    batch = source.batch(range(len(source)))
    assert set(batch["text"]) == {"a", "bb"} and source.summary()["steps_without_text"] == 5
    assert 2 not in batch["episode_id"] and 2 in Chunks(StepShards(folder), Options()).batch(range(9))["episode_id"]


def test_steps_without_actions_fill_up_a_mixture_and_teach_none(folder):
    whole = Chunks(StepShards(folder), Options(fields=("action", "latent"), chunk_length=3))
    free = Chunks(StepShards(folder), Options(fields=("latent",), chunk_length=3))
    # Every step has a latent, the last one of an episode too.
    assert len(free) == sum(LENGTHS) > len(whole) and free.batch([0])["action"].shape == (1, 3, 0)
    assert free.summary()["chunks"] == sum(LENGTHS) and "action" not in free.numeric
    mixed = Mixture({"robot": whole, "video": free}, [1, 1])
    batch = mixed.batch([0, len(whole)])
    assert batch["action"].shape == (2, 3, 3) and (batch["action"][1] == 0).all()
    assert batch["action_mask"].tolist() == batch["action_dims"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert batch["latent_mask"].tolist() == [1, 1], "of what is no pair of frames all are whole"


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"fields": ("state",)}, "must hold 'action'"),
        ({"chunk_length": 0}, "chunk_length must be a whole number, 1 or more"),
        ({"chunk_length": 2.5}, "chunk_length must be a whole number"),
        ({"history": -1}, "history must be a whole number, 0 or more"),
    ],
)
def test_options_that_mean_nothing(wrong, words):
    with pytest.raises(UserError, match=words):
        Options(**wrong)


def test_data_without_actions(tmp_path):
    shards = StepShards(make.write(tmp_path / "a", [3], widths={"state": 2}))
    with pytest.raises(UserError, match="has no action"):
        Chunks(shards, Options())
    single = StepShards(make.write(tmp_path / "b", [2, 1], drop=[(0, 0, "state.npy")], cameras=()))
    with pytest.raises(UserError, match="no step .* begins a chunk .*2 lack 'action', 1 lack 'state'"):
        Chunks(single, Options(fields=("action", "state")))
