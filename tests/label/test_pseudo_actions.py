"""Pseudo-actions of planted data, in which a square moves by what the action says."""

import json

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    read_dataset,
    step_key,
    write_dataset,
)
from lapa_jax.data.statistics import column_statistics
from lapa_jax.label import pseudo_actions

SIDE, LENGTH = 32, 9


def shards(folder, episodes, seed, actions=True):
    """Step shards of a bright square on grey; actions are pixels in x and y."""
    rng, moves = np.random.default_rng(seed), []
    with ShardWriter(folder / "train-00000.tar") as writer:
        for number in range(episodes):
            place, speed = rng.uniform(8, 24, 2), rng.uniform(-1.5, 1.5, 2)
            for step in range(LENGTH):
                picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
                x, y = place.round().astype(int).clip(3, SIDE - 4)
                picture[y - 3 : y + 4, x - 3 : x + 4] = 250
                meta = {"episode": f"e{number}", "step": step, "length": LENGTH, "fps": 10.0, "source": "test"}
                members = {"image.jpg": images.encode(picture), "txt": b"go", "json": json_bytes(meta)}
                if step < LENGTH - 1:
                    moves.append(speed.astype(np.float32))
                    members |= {"action.npy": array_bytes(moves[-1])} if actions else {}
                writer.add(step_key(f"e{number}", step), members)
                place = place + speed
    features = {"image": {"shape": [SIDE, SIDE, 3], "codec": "jpeg"}, "instruction": {"codec": "txt"}}
    statistics = {"action": column_statistics([np.stack(moves)])} if actions else {}
    features |= {"action": {"shape": [2], "dtype": "float32"}} if actions else {}
    splits = {"train": {"episodes": episodes, "steps": episodes * LENGTH, "shards": [writer.summary]}}
    write_dataset(folder, features=features, fps=10.0, source={"made": "test"}, splits=splits, statistics=statistics)
    return folder


@pytest.fixture(scope="module")
def small():
    """A smaller network than usual."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"dim": 32, "heads": 2, "dim_head": 16, "spatial_depth": 1}
        patch.setattr(pseudo_actions, "TOKENIZER", {**pseudo_actions.TOKENIZER, **sizes})
        patch.setattr(pseudo_actions, "AT_ONCE", 32)
        yield pseudo_actions.Options(gap=4, size=SIDE, steps=250)


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    """(demonstrations, data, out, summary)."""
    base = tmp_path_factory.mktemp("pseudo")
    demos, data = shards(base / "demos", 80, seed=0), shards(base / "data", 20, seed=1)
    return demos, data, base / "out", pseudo_actions.write(demos, data, base / "out", small)


def test_what_was_not_shown_is_seen(written):
    _, data, out, summary = written
    assert summary["steps"] == 20 * (LENGTH - 1) and summary["action_r2"] > 0.5
    guess = np.stack([StepShards(out).array(i, "action") for i in range(LENGTH - 1)])
    assert guess.shape == (LENGTH - 1, 2) and (guess[4:] == guess[4]).all(), "the last four are of one pair"


def test_the_rest_of_the_steps_is_as_it_was(written):
    _, data, out, summary = written
    before, after = StepShards(data), StepShards(out)
    assert [after.key(i) for i in range(len(after))] == [before.key(i) for i in range(len(before))]
    for i in (0, LENGTH - 1, LENGTH + 3):
        one, two = before.read(i), after.read(i)
        assert set(one) == set(two) and ("action.npy" in two) == (i != LENGTH - 1)
        assert all(one[name] == two[name] for name in one if name != "action.npy")
    assert read_dataset(out)["source"]["pseudo_actions"] == summary["labels"]
    assert json.loads((out / "statistics.json").read_text())["action"]["count"] == summary["steps"]


def test_what_is_done_is_not_done_again_and_another_task_is_refused(written, small, monkeypatch):
    demos, data, out, summary = written
    monkeypatch.setattr(pseudo_actions, "PseudoActions", None)
    assert pseudo_actions.write(demos, data, out, small) == summary
    with pytest.raises(UserError, match="of other data or options"):
        pseudo_actions.write(demos, data, out, pseudo_actions.Options(gap=3, size=SIDE, steps=250))
    with pytest.raises(UserError, match="holds something else"):
        pseudo_actions.write(demos, data, data, small)


@pytest.mark.parametrize(
    ("changes", "told"), [({"size": 30}, "--size 30"), ({"gap": 0}, "--gap 0"), ({"steps": 0}, "--steps"),
                          ({"seed": -1}, "--seed")])  # fmt: skip
def test_wrong_options_are_one_line(changes, told):
    with pytest.raises(UserError, match=told):
        pseudo_actions.Options(**changes)


def test_demonstrations_need_actions(small, tmp_path):
    data = shards(tmp_path / "data", 1, seed=0, actions=False)
    with pytest.raises(UserError, match="no actions"):
        pseudo_actions.write(data, data, tmp_path / "out", small)
    assert not (tmp_path / "out").exists()
