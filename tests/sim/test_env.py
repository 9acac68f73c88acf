"""Simulators are found by their names, say what they need, and need neither an expert nor a declaration."""

import argparse
import json

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.sim import controls, env, evaluation, flags, recording, rollouts

LEAST = '''
import numpy as np
from lapa_jax.sim.env import Simulator

class Env(Simulator):
    """Nothing but what has to be there."""
    tasks, fps, max_steps, instruction = ("wait",), 5.0, 4, "wait"
    action_low, action_high = np.array([0.0, -1.0]), np.array([2.0, 1.0])

    def __init__(self, size: int = 16, patience: int = 3, calm: bool = False):
        self.size, self.patience = size, patience

    def reset(self, seed, task=None):
        self.count, self.seed = 0, seed

    def observe(self):
        return {"image": np.full((self.size, self.size, 3), self.count, np.uint8)}

    def step(self, action):
        assert (action >= self.action_low).all() and (action <= self.action_high).all()
        self.count += 1

    def success(self):
        return self.count >= self.patience
'''


@pytest.fixture
def simulator(tmp_path):
    """Writes a simulator, with a change of its text."""

    def write(old: str = "", new: str = "", name: str = "least.py") -> str:
        assert old in LEAST
        (tmp_path / name).write_text(LEAST.replace(old, new) if old else LEAST)
        return str(tmp_path / name)

    return write


def test_the_simulators_of_the_package_are_those_that_have_an_env():
    assert {"push_table", "metaworld"} <= set(env.simulators())
    assert not {"env", "rollouts", "recording", "rendering"} & set(env.simulators())


@pytest.mark.parametrize("name", env.simulators())
def test_every_option_has_a_line_of_help(name):
    made = env.env_class(name)
    assert set(made.help) == set(env.options_of(made)) and "size" in made.help


def test_a_simulator_without_expert_and_declarations_is_evaluated(simulator, tmp_path):
    options = rollouts.Options(simulator(), {"size": 16}, num_envs=2)
    out = tmp_path / "out"
    results, lines = evaluation.compare(options, evaluation.control("random", options.env), 3, out, videos=1)
    assert list(results) == ["random"] and [line["steps"] for line in lines] == [3, 3, 3]
    assert evaluation.interface(options, state=True) == (2, 0, 1, ())
    assert list(json.loads((out / "random/rollouts.json").read_text())["simulator"]) == ["least.py"]


@pytest.mark.parametrize("name", ["expert", "oracle", "repeat"])
def test_what_needs_an_expert_is_refused_in_words(simulator, tmp_path, name):
    with pytest.raises(UserError, match=r"needs a scripted expert, and .*least.py has none; --policy random"):
        evaluation.control(name, simulator())
    options = rollouts.Options(simulator())
    with pytest.raises(UserError, match="has no scripted expert"):
        rollouts.run(options, controls.CONTROLS["repeat" if name == "repeat" else "expert"](), 1, tmp_path / name)


def test_nothing_is_recorded_without_an_expert(simulator, tmp_path):
    with pytest.raises(UserError, match="has no scripted expert"):
        recording.record(recording.Options(simulator(), 2, size=16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recording_without_state_says_which_columns_there_are(simulator, tmp_path):
    expert = "    def expert(self, seed, noise=0.0):\n        return self\n\n"
    act = "    def act(self):\n        return np.zeros(2)\n\n"
    name = simulator("    def success(self):\n", f"{expert}{act}    def success(self):\n")
    with pytest.raises(UserError, match="gives no state; give --columns action"):
        recording.record(recording.Options(name, 2, size=16), tmp_path / "out")
    lines = recording.record(recording.Options(name, 2, size=16, columns=("action",)), tmp_path / "out")
    assert [line["frames"] for line in lines] == [4, 4]


def test_a_changed_file_gives_other_episodes(simulator, tmp_path):
    out = tmp_path / "out"
    rollouts.run(rollouts.Options(simulator()), controls.Random(), 1, out)
    env.load_file.cache_clear()
    with pytest.raises(UserError, match="holds episodes with simulator"):
        rollouts.run(rollouts.Options(simulator("patience: int = 3", "patience: int = 2")), controls.Random(), 1, out)


def test_an_episode_ends_where_the_simulator_says_so(simulator, tmp_path):
    end = "    def success(self):\n"
    name = simulator(end, "    def ended(self):\n        return self.count == 2\n\n" + end)
    (line,) = rollouts.run(rollouts.Options(name, num_envs=1), controls.Random(), 1, tmp_path / "out")
    assert (line["steps"], line["success"]) == (2, False)


def test_options_of_a_simulator_are_flags(simulator):
    added = {}
    argv = ["--env", simulator(), "--patience", "7"]
    names = flags.add_options(lambda name, **how: added.update({name: how}), argv, skip=("size",))
    assert "patience" in names and added["--patience"]["type"] is int and added["--calm"]["action"] == "store_true"
    assert "--blocks" in added and "--size" not in added
    assert "patience" not in flags.add_options(lambda name, **how: None, ["--env", "push_table"])


def test_an_option_that_is_a_flag_already_is_refused(simulator):
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes")
    name = simulator("patience: int = 3", "episodes: int = 3, patience: int = 3")
    with pytest.raises(UserError, match="option 'episodes' of .*least.py is a flag of this command already"):
        flags.add_options(parser.add_argument, ["--env", name])


def test_oracle_is_another_name_for_the_expert():
    assert evaluation.control("oracle", "push_table").name == "expert"
    with pytest.raises(UserError, match="did you mean 'oracle'"):
        evaluation.control("oracel", "push_table")


@pytest.mark.parametrize(
    ("name", "message"),
    [("push_tabel", "did you mean 'push_table'"), ("rollouts", "no environment 'rollouts'"),
     ("absent.py", "absent.py does not"), ("push_table:cube", "takes nothing after its name")],
)  # fmt: skip
def test_names_that_are_none_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        env.make(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    def step(self", "    def steps(self", "does not define step"),
        ("tasks, fps, max_steps, instruction =", "tasks, fps, limit, instruction =", "does not say its max_steps"),
        ("class Env(", "class Table(", "defines no class Env"),
        ('    """No', '    packages = ("no-such-package",)\n    """No', "pip install no-such-package"),
        ('    """No', '    packages, extra = ("no-such-package",), "sim"\n    """No', r"pip install 'lapa_jax\[sim\]'"),
    ],
)
def test_what_a_simulator_lacks_is_said(simulator, old, new, message):
    with pytest.raises(UserError, match=message):
        env.make(simulator(old, new))


def test_random_actions_lie_between_the_bounds(simulator):
    made = env.make(simulator())
    made.reset(0)
    control = controls.Random()
    control.begin([rollouts.Episode(n, "wait", n, made) for n in range(200)])
    actions = control.act(None, [])
    assert actions.dtype == np.float32 and (actions[:, 0] > 0).all() and (np.abs(actions[:, 1]) <= 1).all()
    np.testing.assert_allclose(actions.mean(0), [1.0, 0.0], atol=0.2)


def test_a_wrong_demonstration_is_of_the_task_that_follows(simulator):
    name = simulator('("wait",)', '("wait", "go", "rest")')
    assert [evaluation.another_task(rollouts.Options(name), task) for task in ("wait", "rest")] == ["go", "wait"]
    with pytest.raises(UserError, match="has one task alone, wait"):
        evaluation.another_task(rollouts.Options(simulator(name="single.py")), "wait")
