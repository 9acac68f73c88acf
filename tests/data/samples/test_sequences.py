import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.sequences import Options, Sequences
from lapa_jax.data.samples.tasks import Prompts
from lapa_jax.data.shards.step_shards import StepShards
from tests.data.samples import make

LENGTHS = [9, 4, 7, 6, 12, 5, 3]
TASKS = ["lift", "lift", "push", "push", "lift", "push", "lift"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    drop = [(0, 4, "state.npy"), (2, 3, "action.npy"), (2, 4, "action.npy"), (2, 5, "action.npy"), (4, 2, "image.jpg")]
    return make.write(tmp_path_factory.mktemp("data"), LENGTHS, tasks=TASKS, drop=drop)


def used(steps):
    """Steps of an episode up to its last action."""
    return max((t + 1 for t, step in enumerate(steps) if "action.npy" in step), default=0)


def window(steps, times, members):
    """What a window at these steps must hold: {field: rows}, action mask, step mask."""
    end = used(steps)
    there = [steps[t] if t < end else {} for t in times]
    action = np.array([s.get("action.npy", np.zeros(3)) for s in there], np.float32)
    seen = np.array([all(m in s for m in members) and t < end for s, t in zip(there, times)])
    rows = {m: np.array([s[m] if ok else np.zeros_like(steps[0][m]) for s, ok in zip(there, seen)]) for m in members}
    return rows, action, np.array(["action.npy" in s for s in there], np.float32), seen.astype(np.float32)


@pytest.mark.parametrize("length, stride", [(4, 1), (4, 3), (20, 1)])
def test_windows(folder, length, stride):
    options = Options(fields=("action", "state", "image"), length=length, stride=stride, prompts=0, future=3)
    source, episodes = Sequences(StepShards(folder), options), make.decoded(folder)
    expected = []
    for number, steps in enumerate(episodes):
        last = max(used(steps) - length, 0)
        for t in range(last + 1):
            window_acts = window(steps, range(t, t + length), [])[2]
            if (t % stride == 0 or t == last) and window_acts.any():
                expected.append((number, t))
    batch = source.batch(range(len(source)))
    assert list(zip(batch["episode_id"], batch["step"])) == expected
    for i, (number, t) in enumerate(expected):
        steps = episodes[number]
        rows, action, acts, seen = window(steps, range(t, t + length), ["state.npy", "image.jpg"])
        np.testing.assert_array_equal(batch["action"][i], action)
        np.testing.assert_array_equal(batch["action_mask"][i], acts)
        np.testing.assert_array_equal(batch["step_mask"][i], seen)
        np.testing.assert_array_equal(batch["state"][i], rows["state.npy"])
        assert make.close(batch["image"][i], rows["image.jpg"])
        for k in range(length):
            _, ahead, mask, _ = window(steps, range(t + k, t + k + 3), [])
            np.testing.assert_array_equal(batch["future_action"][i, k], ahead)
            np.testing.assert_array_equal(batch["future_mask"][i, k], mask)
    assert source.summary()["windows"] == len(expected) and "prompt_action" not in batch


def test_a_goal_is_the_last_observation_of_the_episode_and_holds_no_action(folder):
    options = Options(fields=("action", "state", "image"), length=3, prompts=1, prompt_length=2, goal=True)
    source, episodes = Sequences(StepShards(folder), options), make.decoded(folder)
    batch = source.batch(range(len(source)))
    assert {name for name in batch if name.startswith("goal_")} == {"goal_state", "goal_image", "goal_step_mask"}
    for i, number in enumerate(batch["episode_id"]):
        end = used(episodes[number]) - 1
        rows, _, _, seen = window(episodes[number], [end], ["state.npy", "image.jpg"])
        np.testing.assert_array_equal(batch["goal_step_mask"][i], seen)
        np.testing.assert_array_equal(batch["goal_state"][i], rows["state.npy"])
        assert make.close(batch["goal_image"][i], rows["image.jpg"])
    without = Sequences(StepShards(folder), dataclasses.replace(options, goal=False)).batch(range(len(source)))
    assert batch.keys() - without.keys() == {"goal_state", "goal_image", "goal_step_mask"}
    for name, values in without.items():
        np.testing.assert_array_equal(batch[name], values)


@pytest.mark.parametrize("prompt_steps", ["even", "window"])
def test_prompts_are_other_episodes_of_the_task(folder, prompt_steps):
    options = Options(fields=("action", "state", "image"), length=3, prompts=2, prompt_length=5, seed=7,
                      prompt_steps=prompt_steps)  # fmt: skip
    source, episodes = Sequences(StepShards(folder), options), make.decoded(folder)
    batch = source.batch(range(len(source)))
    assert source.tasks == ["lift", "push"]
    for i in range(len(source)):
        number = batch["episode_id"][i]
        assert source.tasks[batch["task_id"][i]] == TASKS[number]
        drawn = batch["prompt_episode_id"][i]
        assert len(set(drawn)) == 2 and number not in drawn and {TASKS[p] for p in drawn} == {TASKS[number]}
        for k, prompt in enumerate(drawn):
            steps = episodes[prompt]
            end = used(steps)
            if end <= 5:
                choices = [range(5)]
            elif prompt_steps == "even":
                choices = [np.round(np.linspace(0, end - 1, 5)).astype(int)]
            else:
                choices = [range(t, t + 5) for t in range(end - 4)]
            whole = [window(steps, times, ["state.npy", "image.jpg"]) for times in choices]
            fits = [n for n, w in enumerate(whole) if np.array_equal(w[1], batch["prompt_action"][i, k])]
            assert len(fits) == 1
            rows, _, acts, seen = whole[fits[0]]
            np.testing.assert_array_equal(batch["prompt_action_mask"][i, k], acts)
            np.testing.assert_array_equal(batch["prompt_step_mask"][i, k], seen)
            np.testing.assert_array_equal(batch["prompt_state"][i, k], rows["state.npy"])
            assert make.close(batch["prompt_image"][i, k], rows["image.jpg"])


def test_windows_of_a_prompt_begin_anywhere(tmp_path):
    folder = make.write(tmp_path, [8, 301], tasks=["x", "x"], cameras=())
    options = Options(fields=("action",), length=2, prompt_length=6, prompt_steps="window")
    source, rows = Sequences(StepShards(folder), options), [s.get("action.npy") for s in make.decoded(folder)[0][:7]]
    first = source.batch(range(6, 305))["prompt_action"][:, 0, 0]
    times = [sum(np.array_equal(row, rows[t]) for row in first) for t in range(7)]
    assert times[2:] == [0] * 5 and min(times[:2]) > 150 - 5 * 9 and sum(times) == len(first) == 299


def test_draws_depend_on_seed_and_sample_alone(folder):
    shards = StepShards(folder)
    one = Sequences(shards, Options(length=3, prompts=2, seed=1))
    whole = one.batch(range(len(one)))
    for i in (0, 5, 11):
        for name, value in one[i].items():
            np.testing.assert_array_equal(value, whole[name][i])
    again, other = (Sequences(shards, Options(length=3, prompts=2, seed=s)).batch(range(len(one))) for s in (1, 2))
    np.testing.assert_array_equal(again["prompt_action"], whole["prompt_action"])
    assert (other["prompt_episode_id"] != whole["prompt_episode_id"]).any()


def test_draws_outlive_an_upgrade():
    prompts = Prompts(np.zeros(10, np.int64), np.ones(10, bool), 4, seed=0)
    assert [prompts.draw(i, 3)[0].tolist() for i in range(3)] == [[6, 2, 9, 0], [0, 7, 2, 5], [9, 7, 0, 1]]


@settings(max_examples=150, deadline=None)
@given(tasks=st.lists(st.integers(0, 3), min_size=1, max_size=12), count=st.integers(1, 5), seed=st.integers(0, 2**32),
       unusable=st.sets(st.integers(0, 11)))  # fmt: skip
def test_no_draw_is_the_episode_itself_and_none_repeats_without_need(tasks, count, seed, unusable):
    task_of = np.array(tasks)
    usable = np.array([i not in unusable for i in range(len(tasks))])
    prompts = Prompts(task_of, usable, count, seed)
    for episode in range(len(tasks)):
        others = {i for i in range(len(tasks)) if i != episode and usable[i] and tasks[i] == tasks[episode]}
        assert prompts.others(episode) == len(others)
        drawn = prompts.draw(5, episode)[0].tolist()
        if not others:
            assert drawn == [-1] * count
            continue
        assert set(drawn) <= others
        times = Counter(drawn)
        assert max(times.values()) - min(times.get(o, 0) for o in others) <= 1


def test_every_other_episode_is_drawn_equally_often():
    prompts = Prompts(np.zeros(6, np.int64), np.ones(6, bool), 2, seed=3)
    times = Counter(int(p) for i in range(5000) for p in prompts.draw(i, 2)[0])
    assert set(times) == {0, 1, 3, 4, 5} and all(abs(n - 2000) < 5 * 35 for n in times.values())


def test_an_episode_alone_in_its_task(tmp_path):
    shards = StepShards(make.write(tmp_path, [5, 4, 6], tasks=["a", "b", "a"], cameras=()))
    with pytest.raises(UserError, match="1 of 3 episodes .* alone in their task, as 'b': set data.alone=drop"):
        Sequences(shards, Options())
    dropped = Sequences(shards, Options(alone="drop", length=3))
    assert set(dropped.batch(range(len(dropped)))["episode_id"]) == {0, 2}
    assert dropped.summary()["episodes_alone"] == 1 and dropped.summary()["episodes_used"] == 2
    empty = Sequences(shards, Options(alone="empty", length=3))
    batch = empty.batch(range(len(empty)))
    alone = batch["episode_id"] == 1
    assert alone.any() and (batch["prompt_episode_id"][alone] == -1).all()
    for name in ("prompt_action", "prompt_state", "prompt_action_mask", "prompt_step_mask"):
        assert (batch[name][alone] == 0).all() and (batch[name][~alone] != 0).any()
    repeated = Sequences(shards, Options(alone="drop", prompts=3))
    assert repeated.batch([0])["prompt_episode_id"].tolist() == [[2, 2, 2]]
    assert repeated.summary()["episodes_with_repeated_prompts"] == 2


def test_tasks_come_from_the_json_then_from_the_instruction(tmp_path):
    texts = ["push it", "push that", "lift it", "lift it", None]
    folder = make.write(tmp_path / "a", [5, 5, 5, 5, 5], tasks=["push", "push", None, None, "lift it"], texts=texts)
    source = Sequences(StepShards(folder), Options())
    assert source.tasks == ["lift it", "push"]
    assert source.batch(range(len(source)))["task_id"].tolist() == [1] * 2 + [0] * 3, "one window an episode"
    bare = StepShards(make.write(tmp_path / "b", [5, 5]))
    with pytest.raises(UserError, match="names no tasks and has no instructions.*data.prompts=0"):
        Sequences(bare, Options())
    assert len(Sequences(bare, Options(prompts=0))) == 2


def test_held_out_tasks(folder):
    shards = StepShards(folder)
    options = {"held_out_tasks": ("push",), "length": 3}
    of = {tasks: Sequences(shards, Options(**options, tasks=tasks)) for tasks in ("seen", "held_out", "all")}
    episodes = {tasks: set(source.batch(range(len(source)))["episode_id"].tolist()) for tasks, source in of.items()}
    assert episodes == {"seen": {0, 1, 4, 6}, "held_out": {2, 3, 5}, "all": set(range(7))}
    assert of["seen"].tasks == ["lift"] and of["seen"].summary()["episodes_of_other_tasks"] == 3
    with pytest.raises(UserError, match="no task 'pushh'; did you mean 'push'"):
        Sequences(shards, Options(held_out_tasks=("pushh",)))


def test_an_instruction_where_it_is_asked_for(tmp_path):
    folder = make.write(tmp_path, [4, 4, 4], texts=["a", None, "a"], tasks=["x"] * 3)
    source = Sequences(StepShards(folder), Options(fields=("action", "text"), length=2))
    batch = source.batch(range(len(source)))
    assert set(batch["text"]) == {"a"} and 1 not in batch["episode_id"]
    assert source.summary()["windows_without_text"] == 2 and 1 in batch["prompt_episode_id"]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"length": 0}, "length must be a whole number, 1 or more"),
        ({"prompts": -1}, "prompts must be a whole number, 0 or more"),
        ({"prompt_steps": "evn"}, "did you mean 'even'"),
        ({"alone": "keep"}, "data.alone 'keep'"),
        ({"fields": ("state",)}, "must hold 'action'"),
    ],
)
def test_options_that_mean_nothing(wrong, words):
    with pytest.raises(UserError, match=words):
        Options(**wrong)


def test_an_empty_batch_tells_shapes(folder):
    options = Options(fields=("action", "state", "image"), prompts=2, future=2, alone="empty")
    source = Sequences(StepShards(folder), options)
    empty, full = source.batch([]), source.batch([0, 3])
    for name in full:
        assert empty[name].shape == (0, *full[name].shape[1:]) and empty[name].dtype == full[name].dtype
