"""Environments of gymnasium: what is read of them by itself and by a mapping, and what is said where that fails."""

import importlib.util
import json

import numpy as np
import pytest
import yaml

from lapa_jax.core.errors import UserError
from lapa_jax.sim import controls, evaluation, gym_map, recording, rollouts
from lapa_jax.sim.env import make

gymnasium = pytest.importorskip("gymnasium")
TINY = "gym:tests.sim.tiny_env:lapa_jax_tests/Tiny-v0"
NESTED = {"make": {"nested": True}, "image": "pixels.top", "state": ["count", "agent.pos"], "success": {"info": "place",
          "at_least": 0.75}, "instruction": {"info": "wish"}, "fps": 5, "max_steps": 9, "additive": True}  # fmt: skip


@pytest.fixture
def mapped(tmp_path):
    """Makes the tiny environment with a mapping of these fields, from a YAML file."""

    def mapped(**fields):
        path = tmp_path / f"map_{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(fields))
        return make(TINY, size=16, env_map=str(path))

    return mapped


def test_a_plain_environment_is_read_without_a_mapping():
    env = make(TINY, size=16)
    assert (env.fps, env.max_steps, env.tasks, env.additive, env.cameras) == (20.0, 12, ("Tiny-v0",), False, 1)
    choices = "the image is render; the state is observation; success is info's is_success; the instruction is 'tiny'"
    assert env.notes == (f"{TINY} is read without a mapping; {choices}",)
    np.testing.assert_array_equal([env.action_low, env.action_high], [[-0.25], [0.5]])
    env.reset(3)
    seen = env.observe()
    assert seen["image"].shape == (4, 8, 3) and env.instruction == "tiny" and not env.success()
    env.step([9.0])  # is clipped
    assert env.success() and not env.ended()
    np.testing.assert_allclose(env.observe()["state"], [seen["state"][0] + 0.5, 1])


def test_a_mapping_says_which_keys_what_success_and_what_is_asked(mapped):
    env = mapped(**NESTED)
    assert (env.fps, env.max_steps, env.additive) == (5.0, 9, True)
    assert env.notes == (f"{TINY} is read by the mapping map_0",)
    env.reset(0)
    assert env.instruction == "go right"
    for wanted in (False, True):
        env.step([0.25])
        assert env.success() == wanted == (env.observe()["state"][1] >= 0.75)
    seen = env.observe()
    assert seen["state"][0] == 2 and seen["image"][0].any(axis=-1).argmax() == int(seen["state"][1] * 7)


def test_success_may_be_a_reward_or_the_end_of_the_episode(mapped):
    by_reward = mapped(success={"reward": 0.6}, make={"info": False})
    by_end = mapped(success="terminated", make={"falls": True})
    for env, wanted in ((by_reward, [False, True]), (by_end, [False, True])):
        env.reset(0)  # the dot starts at 0.318
        successes = []
        for _ in range(2):
            env.step([0.2])
            successes.append(env.success())
        assert successes == wanted


def test_several_cameras_are_one_array(mapped):
    env = mapped(**{**NESTED, "image": ["pixels.top", "pixels.side"]})
    env.reset(0)
    image = env.observe()["image"]
    assert env.cameras == 2 and image.shape == (2, 4, 8, 3)
    np.testing.assert_array_equal(image[0], image[1, :, ::-1])


def test_episodes_are_those_of_the_environment_alone_and_go_on_where_they_stopped(tmp_path):
    """By hand with gymnasium alone: the same number of steps from the same seed and actions."""
    import tests.sim.tiny_env  # noqa: F401

    options = rollouts.Options(TINY, {"size": 16}, seed=1, num_envs=2)
    lines = rollouts.run(options, controls.Random(), 4, tmp_path / "random", videos=1)
    env = gymnasium.make("lapa_jax_tests/Tiny-v0")
    for line in lines:
        env.reset(seed=line["seed"])
        rng, steps, info = np.random.default_rng(line["seed"]), 0, {"is_success": False}
        while not info["is_success"] and steps < 12:
            *_, info = env.step(rng.uniform([-0.25], [0.5]).astype(np.float32).astype(float).reshape(1, 1))
            steps += 1
        assert (steps, info["is_success"]) == (line["steps"], line["success"])
    assert len({line["steps"] for line in lines}) > 1 and (tmp_path / "random/videos/000000.mp4").exists()
    (tmp_path / "random/episodes/000001.json").unlink()
    assert rollouts.run(options, controls.Random(), 4, tmp_path / "random", videos=1) == lines
    alone = rollouts.Options(TINY, {"size": 16}, seed=1, num_envs=1)
    assert rollouts.run(alone, controls.Random(), 4, tmp_path / "alone", videos=1) == lines


def test_versions_and_the_mapping_are_kept_with_the_episodes(mapped, tmp_path):
    versions = mapped(**NESTED).versions()
    assert versions["gymnasium"] == gymnasium.__version__ and {"tiny_env.py", "map_0.yaml"} < set(versions)


def test_an_environment_that_ends_an_episode_has_failed(mapped):
    env = mapped(make={"falls": True})
    env.reset(0)
    for ended in (False, True):
        env.step([-0.25])
        assert env.ended() == ended and not env.success()


def test_there_is_no_expert(tmp_path):
    with pytest.raises(UserError, match="needs a scripted expert"):
        evaluation.control("oracle", TINY)
    with pytest.raises(UserError, match="has no scripted expert"):
        recording.record(recording.Options(TINY, 1, size=16), tmp_path / "out")
    assert evaluation.controls_of(TINY) == ("random",) and not (tmp_path / "out").exists()


HAS = r"it has: agent.pos float32\[1\], count float32\[1\], pixels.side uint8\[4, 8, 3\], pixels.top uint8\[4, 8, 3\]"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "pixels"}, f"has no 'pixels' in its observation, the image of the mapping; {HAS}"),
        ({"image": "count"}, r"'count' is float32\[1\], an image is uint8"),
        ({"state": ["agent.pos", "speed"]}, f"has no 'speed' in its observation, the state of the mapping; {HAS}"),
        ({"success": {"info": "done"}}, "has no 'done' in its info, the success of the mapping; it has: is_su"),
        ({"success": {"return": 3}}, "success is {'return': 3}; give"),
        ({"instruction": {"info": "text"}}, "has no 'text' in its info, the instruction of the mapping; it has: is_s"),
        ({"make": {"nested": True, "info": False}}, "does not say what success is; .*its info has: no keys"),
        ({"make": {"nests": True}}, "gymnasium.make.* fails: TypeError: .*nests"),
        ({"make": {"nested": True, "bound": np.inf}}, "has actions without bounds"),
        ({"action": {"low": 0}}, r"action is {'low': 0}; give low and high for Box"),
        ({"action": {"low": [0, 0], "high": [1, 1]}}, "give low and high for Box"),
        ({"images": "pixels"}, "has the field 'images'; did you mean 'image'"),
        ({"fps": "fast"}, "fps cannot be 'fast'"),
    ],
)
def test_what_a_mapping_has_wrong_is_one_line_that_lists_what_there_is(mapped, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        mapped(**{"make": {"nested": True}, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:tests.sim.tiny_env:lapa_jax_tests/Tinny-v0", "did you mean 'lapa_jax_tests/Tiny-v0'"),
        ("gym:tests.sim.tiny_env:lapa_jax_tests/Endless-v0", "declares no max_episode_steps; give max_steps"),
        ("gym:no_such_module:Tiny-v0", "needs the module no_such_module"),
        ("gym:CartPole-v1", "takes Discrete"),
        ("gym:Pendulum-v1", "does not say what success is"),
        ("gym", "wants its environment's name"),
    ],
)
def test_names_that_cannot_be_used_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        make(name)


def test_images_that_cannot_be_chosen_are_told_before_anything_is_written(mapped, tmp_path):
    env = mapped(make={"nested": True})
    with pytest.raises(UserError, match="has several images; give image in --env_map; its observation has: agent.pos"):
        env.check_images()
    (path,) = tmp_path.iterdir()
    options = rollouts.Options(TINY, {"size": 16, "env_map": str(path)})
    with pytest.raises(UserError, match="has several images"):
        rollouts.run(options, controls.Random(), 1, tmp_path / "out", videos=1)
    assert not (tmp_path / "out").exists()
    assert len(rollouts.run(options, controls.Random(), 1, tmp_path / "out")) == 1, "who sees nothing needs none"


def test_a_mapping_in_python_makes_environments_itself(tmp_path):
    (tmp_path / "two.py").write_text(
        "import gymnasium\nfrom lapa_jax.sim.gym_map import GymMap\nimport tests.sim.tiny_env\n\n"
        "class Map(GymMap):\n    max_steps = 7\n    instruction = {'info': 'wish'}\n\n"
        "    def tasks(self):\n        return ('slow', 'fast')\n\n"
        "    def make_env(self, task, size):\n"
        "        bound = {'slow': 0.01, 'fast': 0.5}[task]\n"
        "        return gymnasium.make('lapa_jax_tests/Tiny-v0', bound=bound, wide=size, render_mode='rgb_array')\n"
    )
    options = rollouts.Options("gym:two", {"size": 16, "env_map": str(tmp_path / "two.py")}, num_envs=2)
    results, lines = evaluation.compare(options, controls.Random(), 4, tmp_path / "out", videos=1)
    assert list(results["random"]["tasks"]) == ["slow", "fast"]
    assert {line["instruction"] for line in lines} == {"go right"}
    assert [line["success"] for line in lines if line["task"] == "slow"] == [False, False]
    env = make("gym:two", **options.env_options)
    with pytest.raises(UserError, match="has no task 'quick'"):
        env.reset(0, "quick")
    (tmp_path / "none.py").write_text("")
    for path, message in ((tmp_path / "none.py", "defines no class Map"), (tmp_path / "absent.yaml", "cannot be read")):
        with pytest.raises(UserError, match=message):
            make("gym:two", env_map=str(path))
    with pytest.raises(UserError, match="did you mean 'pusht'"):
        make("gym:two", env_map="pusth")


def test_shipped_mappings_are_found_by_the_environments_name():
    for name in ("PushT-v0", "gym_pusht/PushT-v0"):
        chosen, path = gym_map.find(name, None)
        assert (chosen.name, path.name) == ("gym_pusht/PushT-v0", "pusht.yaml")
    chosen, path = gym_map.find("libero_goal", None)
    assert path.name == "libero.py" and chosen.max_steps == 300
    assert gym_map.find("Other-v0", None)[1] is None


@pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="not installed: pip install gym-pusht")
def test_pusht_is_driven_as_gymnasium_drives_it():
    env = make("gym:PushT-v0")
    assert set(env.versions()) == {"gymnasium", "gym-pusht", "pymunk"} and env.fps == 10 and env.max_steps == 300
    plain = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    env.reset(7)
    observation, info = plain.reset(seed=7)
    for action in np.random.default_rng(0).uniform(0, 512, (20, 2)).astype(np.float32):
        env.step(action)
        observation, _, terminated, _, info = plain.step(action)
    seen = env.observe()
    np.testing.assert_array_equal(seen["image"], observation["pixels"])
    np.testing.assert_array_equal(seen["state"], observation["agent_pos"].astype(np.float32))
    assert env.success() == info["is_success"] == terminated


def test_metrics_name_the_mapping(mapped, tmp_path):
    mapped(**NESTED)
    (path,) = tmp_path.iterdir()
    options = rollouts.Options(TINY, {"size": 16, "env_map": str(path)}, num_envs=1)
    rollouts.run(options, controls.Random(), 1, tmp_path / "out")
    pinned = json.loads((tmp_path / "out/rollouts.json").read_text())
    assert pinned["env_options"]["env_map"] == str(path) and len(pinned["simulator"][path.name]) == 64
