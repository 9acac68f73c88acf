"""Recordings: what is in them is what happened, and neither kills nor workers change a byte."""

import importlib.util
import json
import os
import shutil
import sys

import av
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import StepShards
from tests.killing import run_until_done_with_kills, timed
from tools.torture.processes import differences

pytestmark = pytest.mark.usefixtures("gl")
BASE = {"env": "push_table", "episodes": 6, "size": 32, "noise": 0.003, "val_fraction": 0.3}


def record(out, workers=1, **options):
    from lapa_jax.sim.recording import Options, record

    return record(Options(**(BASE | options)), out, workers)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A recording as step shards, and its lines."""
    out = tmp_path_factory.mktemp("recording") / "shards"
    return out, record(out)


def episodes(folder):
    """{id: (shards, episode)} over both splits."""
    found = [StepShards(folder, split) for split in ("train", "val")]
    return {episode.id: (steps, episode) for steps in found for episode in steps.episodes}


def test_shards_hold_the_episodes_that_the_lines_tell(shards):
    out, lines = shards
    held = episodes(out)
    assert [line["id"] for line in lines] == sorted(held, key=lambda id: id[-6:])
    assert {line["task"] for line in lines} == {held_task(id) for id in held} and len(lines) == 6
    for line in lines:
        steps, episode = held[line["id"]]
        assert (episode.length, steps.split, steps.fps) == (line["frames"], line["split"], 10.0)
        assert steps.text(episode.start) == line["instruction"]
        assert steps.meta(episode.start + 1)["step"] == 1
        assert not steps.has(episode.start + episode.length - 1, "action.npy")


def test_chosen_tasks_take_turns(tmp_path):
    lines = record(tmp_path / "two", tasks=("separate", "block2block"), episodes=3)
    assert [line["task"] for line in lines] == ["separate", "block2block", "separate"]
    with pytest.raises(UserError, match="no task 'separat'"):
        record(tmp_path / "typo", tasks=("separate", "separat"))


def held_task(id: str) -> str:
    return id.rpartition("-")[0]


def test_replaying_the_recorded_actions_gives_the_recorded_states_and_success(shards):
    from lapa_jax.sim.push_table import Env

    out, lines = shards
    env, held = Env(32), episodes(out)
    for line in lines[:3]:
        steps, episode = held[line["id"]]
        env.reset(line["seed"], line["task"])
        for i in range(episode.start, episode.start + episode.length - 1):
            np.testing.assert_array_equal(steps.array(i, "state"), env.pusher.astype(np.float32))
            assert not env.success()
            env.step(steps.array(i, "action"))
        assert env.success()


def test_statistics_are_those_of_the_training_actions(shards):
    out, _ = shards
    train = StepShards(out, "train")
    rows = [train.array(i, "action") for i in range(len(train)) if train.has(i, "action.npy")]
    np.testing.assert_allclose(train.statistics["action"]["mean"], np.mean(rows, axis=0), rtol=1e-6)
    assert train.statistics["action"]["count"] == len(rows)


def test_a_slower_recording_sums_the_actions_in_between(shards, tmp_path):
    out, lines = shards
    slow = record(tmp_path / "slow", fps=5.0)
    fast_held, slow_held = episodes(out), episodes(tmp_path / "slow")
    for fast_line, slow_line in zip(lines, slow, strict=True):
        assert slow_line["fps"] == 5.0 and slow_line["frames"] == -(-(fast_line["frames"] - 1) // 2) + 1
        totals = []
        for steps, episode in (fast_held[fast_line["id"]], slow_held[slow_line["id"]]):
            rows = range(episode.start, episode.start + episode.length - 1)
            totals.append(np.sum([steps.array(i, "action") for i in rows], axis=0))
        np.testing.assert_allclose(*totals, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="Meta-World is not installed")
def test_a_slower_recording_takes_the_mean_of_actions_that_do_not_add_up(tmp_path):
    arrays = []
    for name, fps in (("fast", None), ("slow", 10.0)):
        (line,) = record(tmp_path / name, env="metaworld", tasks=("reach-v3",), fps=fps, episodes=1, format="mp4")
        assert line["instruction"] == "reach the target" and line["fps"] == (fps or 80.0)
        with np.load(tmp_path / name / line["arrays"], allow_pickle=False) as stored:
            arrays.append(dict(stored))
    fast, slow = arrays
    np.testing.assert_allclose(slow["action"][0], fast["action"][:8].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(slow["state"][:3], fast["state"][:17:8])
    assert len(slow["action"]) == -(-len(fast["action"]) // 8) and np.abs(slow["action"]).max() <= 1


def test_splits_wordings_and_looks_reach_the_recording(shards, tmp_path):
    from lapa_jax.sim.push_table_tasks import WORDS

    options = {"split": "unseen", "wordings": "unseen", "varied": True}
    lines = record(tmp_path / "new", episodes=1, env_options=options, workers=2)
    frames = [StepShards(folder, "train").image(0) for folder in (tmp_path / "new", shards[0])]
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 5
    heads = {template.split("{")[0] for template in WORDS["block2block"].unseen}
    assert any(lines[0]["instruction"].startswith(head) for head in heads)
    with pytest.raises(UserError, match="was recorded with split=unseen, now seen"):
        record(tmp_path / "new", episodes=1, env_options=options | {"split": "seen"})


def test_an_action_free_recording_has_no_trace_of_actions(tmp_path):
    record(tmp_path / "free", columns=(), episodes=2)
    for steps, episode in episodes(tmp_path / "free").values():
        assert set(steps.features) == {"image", "instruction"} and steps.statistics == {}
        assert set(steps.read(episode.start)) == {"image.jpg", "txt", "json"}


def test_workers_do_not_change_a_byte(shards, tmp_path):
    out, _ = shards
    record(tmp_path / "parallel", workers=2)
    assert differences(out, tmp_path / "parallel") == []


def test_an_interrupted_recording_is_finished_by_the_same_command(tmp_path, root):
    command = [sys.executable, "-B", str(root / "tools/record_sim.py"), "--env", "push_table", "--episodes", "8"]
    command += ["--size", "32", "--workers", "1", "--out"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    duration, startup = (timed([*command, str(tmp_path / "whole")], env) for _ in range(2))
    hits = run_until_done_with_kills(
        [*command, str(tmp_path / "killed")], kills=4, seed=0, duration=duration, startup=startup, env=env
    )
    assert hits > 0 and differences(tmp_path / "whole", tmp_path / "killed") == []


def test_mp4_holds_the_same_frames_and_arrays(shards, tmp_path):
    out, _ = shards
    lines = record(tmp_path / "mp4", format="mp4", episodes=2)
    held = episodes(out)
    for line in lines:
        steps, episode = held[line["id"]]
        with av.open(str(tmp_path / "mp4" / line["video"])) as container:
            assert container.streams.video[0].average_rate == 10
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == episode.length == line["frames"]
        for i in (0, len(frames) - 1):
            assert np.abs(frames[i].astype(int) - steps.image(episode.start + i)).mean() < 8
        with np.load(tmp_path / "mp4" / line["arrays"], allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["action"][0], steps.array(episode.start, "action"))
            assert len(arrays["state"]) == episode.length


def test_what_cannot_work_is_refused_before_anything_is_written(shards, tmp_path):
    cases = (
        ({"env": "push_tble"}, "did you mean 'push_table'"),
        ({"tasks": ("seperate",)}, "did you mean 'separate'"),
        ({"fps": 3.0}, "--fps 3.0 does not divide"),
        ({"format": "gif"}, "--format gif"),
        ({"columns": ("action", "reward")}, "--columns action,reward"),
        ({"format": "mp4", "size": 33}, "--size must be even"),
        ({"episodes": 0}, "--episodes"),
    )
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            record(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
    out, _ = shards
    with pytest.raises(UserError, match="was recorded with noise=0.003, now 0.0"):
        record(out, noise=0.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no recording"):
        record(tmp_path / "other")


def test_an_expert_that_cannot_solve_a_task_in_time_says_so(tmp_path):
    with pytest.raises(UserError, match="solved none of 50 layouts .* within 2 steps"):
        record(tmp_path / "out", max_steps=2)


def test_lines_are_json(shards):
    out, lines = shards
    assert [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()] == lines


def test_lines_that_cannot_be_read_are_told(shards, tmp_path):
    out = shutil.copytree(shards[0], tmp_path / "shards")
    for text in ("{", 100_000 * "["):
        (out / "episodes.jsonl").write_text(text)
        with pytest.raises(UserError, match="episodes.jsonl is damaged .*; restore it, or record to another folder"):
            record(out)
