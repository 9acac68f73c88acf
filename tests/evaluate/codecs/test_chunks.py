"""Which chunks a comparison is made of."""

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.statistics import column_statistics
from lapa_jax.evaluate.codecs.chunks import gripper_levels, read_chunks
from tests.evaluate.codecs.action_shards import episodes, write


def walks(seed, lengths, **how):
    return episodes(np.random.default_rng(seed), lengths, **how)


def test_windows_are_whole_and_held_out_ones_share_no_step(tmp_path):
    train, val = walks(0, [9, 3, 4]), walks(1, [11, 4, 3])
    found = read_chunks("walks", write(tmp_path / "s", train, val), length=4)
    every = [actions[i : i + 4] for actions in train for i in range(len(actions) - 3)]
    np.testing.assert_array_equal(found.train, every)
    np.testing.assert_array_equal(found.train_apart, [train[0][:4], train[0][4:8], train[2]])
    np.testing.assert_array_equal(found.val, [val[0][:4], val[0][4:8], val[1]])
    assert found.counts == {"train_episodes": 3, "episodes": 3, "repeated_episodes": 0, "steps": 18,
                            "steps_left_over": 6, "chunks": 3}  # fmt: skip
    assert found.length == 4 and found.seconds == pytest.approx(0.1) and found.dimensions == ("0", "1", "2")
    rows = np.concatenate(train).astype(np.float64)
    np.testing.assert_allclose(found.summary["mean"], rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.summary["q99"], np.quantile(rows, 0.99, axis=0), rtol=1e-6)


def test_episodes_of_val_that_are_in_train_are_left_out(tmp_path):
    train, val = walks(0, [8, 8, 8]), walks(1, [8])
    found = read_chunks("walks", write(tmp_path / "some", train, [train[2], *val]), length=4)
    np.testing.assert_array_equal(found.val, val[0].reshape(2, 4, 3))
    assert found.counts["repeated_episodes"] == 1 and found.counts["episodes"] == 1
    with pytest.raises(UserError, match="all 3 episodes of val are in train too, so nothing is held out; convert"):
        read_chunks("walks", write(tmp_path / "all", train, train[::-1]), length=4)


def test_chunks_in_seconds(tmp_path):
    data = walks(0, [30]), walks(1, [30])
    folder = write(tmp_path / "clock", *data, fps=5.0)
    found = read_chunks("walks", folder, seconds=1.5)
    assert found.length == 8 and found.seconds == pytest.approx(0.2)
    without = write(tmp_path / "none", *data, fps=None)
    assert read_chunks("walks", without, length=4).seconds is None
    with pytest.raises(UserError, match="walks has no clock.*--chunk_length walks=STEPS"):
        read_chunks("walks", without, seconds=1.5)


def test_grippers_and_their_levels(tmp_path):
    rng = np.random.default_rng(0)
    shut = rng.choice([0.0, 1.0, 0.5], 200, p=[0.5, 0.47, 0.03])
    free, four = rng.normal(size=(2, 200)), rng.choice([-1.0, 0.0, 0.6, 1.0], 200)
    rows = np.stack([free[0], rng.choice([-1.0, 1.0], 200), shut, four, free[1]], axis=1).astype(np.float32)
    summary, names = column_statistics([rows]), ("x", "y", "gripper_open", "3", "Gripper width")
    found = gripper_levels(rows, summary, names)
    assert {i: levels.round(6).tolist() for i, levels in found.items() if i != 4} == {1: [-1, 1], 2: [0, 1]}
    np.testing.assert_array_equal(found[4], [rows[:, 4].min(), rows[:, 4].max()])
    assert gripper_levels(rows, summary, names, (-2,))[3].round(6).tolist() == [-1, 0, 0.6, 1]
    with pytest.raises(UserError, match="gripper dimension 5 does not exist; actions have 5"):
        gripper_levels(rows, summary, names, (5,))


def test_what_cannot_be_compared_is_one_line(tmp_path):
    folder = write(tmp_path / "s", walks(0, [9]), walks(1, [5]))
    with pytest.raises(UserError, match="no episode of val has 6 actions; give walks shorter chunks"):
        read_chunks("walks", folder, length=6)
    with pytest.raises(UserError, match="no episode of train has 10 actions"):
        read_chunks("walks", folder, length=10)
