"""Closed-loop episodes: the same whoever runs them, in whatever company, however often they are interrupted."""

import json
import os
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest

from lapa_jax.core.errors import UserError

pytestmark = pytest.mark.usefixtures("mujoco")
OPTIONS = {"size": 32}
PROGRAM = """
import json, pathlib, sys
from lapa_jax.sim import controls, rollouts
options = rollouts.Options("push_table", {"size": 32}, seed=3, num_envs=4)
print(json.dumps([rollouts.run(options, controls.CONTROLS[name](), 6, pathlib.Path(sys.argv[1]) / name)
                  for name in ("expert", "random")]))
"""


def run(out, name="expert", episodes=6, videos=None, **changes):
    from lapa_jax.sim import controls, rollouts

    options = rollouts.Options(**{"env": "push_table", "env_options": OPTIONS, "seed": 3, "num_envs": 4, **changes})
    return rollouts.run(options, controls.CONTROLS[name](), episodes, out, videos=videos)


@pytest.fixture(scope="module")
def expert(mujoco, tmp_path_factory):
    """The folder of the expert's episodes, and their lines."""
    out = tmp_path_factory.mktemp("rollouts") / "expert"
    return out, run(out)


def test_another_process_has_the_same_episodes_to_the_bit(expert, root, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "there")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expert[1], run(tmp_path / "here", "random")]


def test_the_expert_succeeds_where_controls_do_not_and_all_have_the_same_episodes(expert, tmp_path):
    lines = {"expert": expert[1], **{name: run(tmp_path / name, name) for name in ("random", "repeat")}}
    assert all(line["success"] for line in lines["expert"]) and not any(line["success"] for line in lines["random"])
    for name in ("task", "seed", "instruction"):
        assert len({tuple(line[name] for line in own) for own in lines.values()}) == 1
    assert len({line["task"] for line in lines["expert"]}) == 5
    assert len({line["seed"] for line in lines["expert"]}) == 6
    assert {line["steps"] for line in lines["random"]} == {150}


def test_episodes_are_those_of_the_environment_alone(expert):
    """Step by step by hand: the same instruction, the same number of steps, success at the last and not before."""
    from lapa_jax.sim.push_table import Env

    env = Env(32)
    for line in expert[1][:3]:
        env.reset(line["seed"], line["task"])
        expert, found = env.expert(line["seed"]), []
        while not found or not found[-1]:
            env.step(expert.act())
            found.append(env.success())
        assert (len(found), env.instruction) == (line["steps"], line["instruction"])


def test_what_is_missing_is_run_and_comes_out_the_same(expert, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(expert[0], out)
    for number in (1, 4):
        (out / "episodes" / f"{number:06d}.json").unlink()
    kept = (out / "episodes" / "000000.json").stat().st_mtime_ns
    assert run(out) == expert[1]
    assert (out / "episodes" / "000000.json").stat().st_mtime_ns == kept
    assert run(out, episodes=7)[:6] == expert[1], "more episodes are added to those that are there"


def test_the_number_of_environments_changes_nothing_for_a_controller_of_single_rows(expert, tmp_path):
    assert run(tmp_path / "one", num_envs=1, episodes=2) == expert[1][:2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"seed": 4}, "seed 3, now 4"), ({"name": "random"}, "controller"), ({"videos": 1}, "videos None, now 1")],
)
def test_a_folder_with_other_episodes_is_refused(expert, changes, told):
    with pytest.raises(UserError, match=told):
        run(expert[0], **changes)


def test_episodes_of_another_version_of_the_simulator_are_refused(expert, tmp_path):
    folder = shutil.copytree(expert[0], tmp_path / "expert")
    about = json.loads((folder / "rollouts.json").read_text())
    assert about["simulator"].keys() == {"mujoco"}
    (folder / "rollouts.json").write_text(json.dumps({**about, "simulator": {"mujoco": "2.3.0"}}))
    with pytest.raises(UserError, match="simulator {'mujoco': '2.3.0'}, now"):
        run(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"tasks": ("separat",)}, "did you mean 'separate'"), ({"num_envs": 0}, "--num_envs"),
     ({"episodes": 0}, "--episodes"), ({"seed": -1}, "--seed"), ({"fps": 3.0}, "does not divide the 10"),
     ({"env": "push_tabel"}, "did you mean")],
)  # fmt: skip
def test_wrong_input_is_told_before_anything_is_written(mujoco, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
    (tmp_path / "other").write_text("no episodes")
    with pytest.raises(UserError, match="holds no episodes"):
        run(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        run(tmp_path / "other")


class Slow:
    """Five actions a second, one to the right."""

    name, sees, images, about = "slow", True, True, {}

    def begin(self, episodes):
        self.seen = []

    def act(self, observations, instructions):
        self.seen.append(observations["state"].copy())
        return np.tile(np.float32([0.02, 0.0]), (len(instructions), 1))


def test_a_slower_policy_has_its_displacements_spread_over_the_steps(gl, tmp_path):
    from lapa_jax.sim import rollouts

    slow = Slow()
    options = rollouts.Options("push_table", OPTIONS, ("separate",), seed=1, num_envs=2, fps=5.0)
    (line,) = rollouts.run(options, slow, 1, tmp_path / "slow", videos=1)
    assert line["steps"] == 150 and len(slow.seen) == 75
    moved = np.diff(np.stack(slow.seen)[1:6, 0], axis=0)
    np.testing.assert_allclose(moved.mean(0), [0.02, 0.0], atol=2e-3)
    with av.open(str(tmp_path / "slow/videos/000000.mp4")) as film:
        assert (film.streams.video[0].average_rate, sum(1 for _ in film.decode(video=0))) == (5, 76)
    from lapa_jax.data import images

    assert images.decode((tmp_path / "slow/strips/000000.jpg").read_bytes()).shape == (32, 8 * 32, 3)
    assert not (tmp_path / "slow/videos/000001.mp4").exists() and not (tmp_path / "slow/episodes/000001.json").exists()


class Plans(Slow):
    """Looks at each fourth step alone, and never at images."""

    images = False

    def begin(self, episodes):
        self.seen, self.sees, self._steps = [], True, 0

    def act(self, observations, instructions):
        assert (observations is not None) == self.sees
        if self.sees:
            self.seen.append(observations["state"])
            assert set(observations) == {"state"}
        self._steps += 1
        self.sees = self._steps % 4 == 0
        return np.tile(np.float32([0.01, 0.0]), (len(instructions), 1))


@pytest.mark.parametrize("env", ["push_table", "metaworld"])
def test_nothing_is_drawn_or_asked_for_that_nobody_looks_at(env, mujoco, monkeypatch, tmp_path):
    """An image takes longer than the steps between two of them."""
    from lapa_jax.sim import env as simulators
    from lapa_jax.sim import rollouts

    if env == "metaworld":
        pytest.importorskip("metaworld")
    made, asked = simulators.env_class(env), []
    observe = made.observe
    monkeypatch.setattr(made, "observe", lambda self: asked.append(self) or observe(self))
    monkeypatch.setattr("lapa_jax.sim.rendering.Camera.__init__", lambda *_: pytest.fail("an image was drawn"))
    monkeypatch.setattr(made, "max_steps", 10)
    plans = Plans()
    plans.act = lambda observations, texts, act=plans.act: np.pad(act(observations, texts), ((0, 0), (0, 2)))[:, :width]
    width = len(made.action_low)
    options = rollouts.Options(env, {"size": 32}, seed=1, num_envs=2)
    lines = rollouts.run(options, plans, 2, tmp_path / "plans")
    assert [line["steps"] for line in lines] == [10, 10]
    assert len(plans.seen) == 3 and len(asked) == 6, "steps 0, 4 and 8 of two episodes"


def test_of_what_is_not_filmed_few_images_are_held_and_its_strip_is_evenly_spread(gl, tmp_path):
    """The thinned images of a long episode are those that the whole film has, at most a few steps off."""
    from lapa_jax.data import images
    from lapa_jax.sim.rollouts import STRIP, Episode, Rollout, make

    env = make("push_table", **OPTIONS)
    rollout, seen, held = Rollout(Episode(5, "separate", 7, env), tmp_path, 0, 1), [], []
    rollout.begin(True)
    seen.append(rollout.seen()["image"])
    while rollout.running:
        rollout.step(np.float32([0.001, 0.0]))
        seen.append(rollout.seen()["image"])
        held.append(len(rollout._frames))
    assert len(seen) == 151 and max(held) < 4 * STRIP
    strip = images.decode((tmp_path / "strips/000005.jpg").read_bytes()).reshape(32, STRIP, 32, 3).swapaxes(0, 1)
    error = np.abs(strip[:, None].astype(int) - np.stack(seen)[None].astype(int)).mean((2, 3, 4))
    wanted = np.linspace(0, 150, STRIP)
    for place, step in enumerate(wanted):
        near = [t for t in range(151) if abs(t - step) <= 8]
        assert error[place, near].min() < 8
    assert error[0].argmin() < error[-1].argmin()
