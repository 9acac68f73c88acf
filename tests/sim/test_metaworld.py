"""Meta-World: seeds, states and success are the package's, actions drive it as recorded, words tell the tasks apart."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.sim.metaworld_tasks import TASKS, UNSEEN_TASKS

pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # the experts count on actions being clipped
NEEDED = importlib.util.find_spec("metaworld") and importlib.util.find_spec("mujoco")
needs_metaworld = pytest.mark.skipif(not NEEDED, reason="Meta-World is not installed: pip install -e '.[metaworld]'")


@pytest.fixture(scope="module")
def env():
    from lapa_jax.sim.metaworld import Env

    env = Env(64)
    yield env
    env.close()


def rollout(env, seed: int, task: str, noise: float = 0.0, limit: int = 500) -> np.ndarray:
    """What the expert saw until success or `limit`, f64[T, 39]."""
    env.reset(seed, task)
    expert, seen = env.expert(seed, noise), [env.observation]
    while len(seen) <= limit and not env.success():
        env.step(expert.act())
        seen.append(env.observation)
    return np.array(seen)


def test_every_task_has_words_of_its_own_and_some_are_held_out():
    words = [text for wordings in TASKS.values() for group in wordings for text in group]
    assert len(words) == len(set(words)) == 50 * 5
    assert set(UNSEEN_TASKS) <= set(TASKS)


@needs_metaworld
def test_the_tasks_are_those_of_the_package():
    from lapa_jax.sim.metaworld import _classes

    assert set(_classes()) == set(TASKS)


@needs_metaworld
@pytest.mark.parametrize("task", ("reach-v3", "drawer-close-v3", "handle-press-v3"))
def test_experts_solve_tasks_and_nothing_is_solved_by_waiting(env, task):
    for seed in range(2):
        rollout(env, seed, task, noise=0.1)
        assert env.success()
        env.reset(seed, task)
        for _ in range(5):
            env.step(np.zeros(4))
        assert not env.success()


@needs_metaworld
def test_the_seed_decides_the_layout_whatever_came_before(env):
    first = rollout(env, 5, "push-v3", limit=20)
    rollout(env, 6, "push-v3", limit=20)
    np.testing.assert_array_equal(rollout(env, 5, "push-v3", limit=20), first)
    rollout(env, 5, "reach-v3", limit=5)
    np.random.seed(1)  # the package draws from NumPy's global numbers unless told otherwise
    np.testing.assert_array_equal(rollout(env, 5, "push-v3", limit=20), first)
    assert not np.array_equal(rollout(env, 6, "push-v3", limit=0)[0, 4:7], first[0, 4:7])


@needs_metaworld
@pytest.mark.usefixtures("gl")
def test_the_whole_state_has_objects_the_step_before_and_the_goal(env):
    from lapa_jax.sim.metaworld import Env

    whole = Env(16, state="all")
    states = []
    for world in (whole, env):
        world.reset(4, "push-v3")
        for _ in range(3):
            world.step(np.array([0.5, 0.5, -0.5, 1.0]))
            states.append(world.observe()["state"])
    *_, before, now = states[:3]
    assert now.shape == (39,) and now.dtype == np.float32
    np.testing.assert_array_equal(now[:4], states[-1], "the hand comes first, as in the short state")
    np.testing.assert_array_equal(now[18:36], before[:18])
    np.testing.assert_allclose(now[4:7], whole._sim.get_body_com("obj"), atol=1e-6)
    np.testing.assert_allclose(now[36:], whole._sim._target_pos, atol=1e-6)


@needs_metaworld
@pytest.mark.usefixtures("gl")
def test_other_processes_give_the_same_states_and_images_bit_for_bit(env, root):
    """Pictures of fresh ones: where much else ran before, software GL may round a pixel differently."""
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.sim.test_metaworld import rollout; from lapa_jax.sim.metaworld import Env\n"
        "import hashlib; env = Env(64); seen = rollout(env, 3, 'door-open-v3', 0.1, 15)\n"
        "for part in (seen, env.observe()['image']): print(hashlib.sha256(part.tobytes()).hexdigest())"
    )
    told = []
    for seed in "12":
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        told.append(run.stdout.split())
    assert told[0] == told[1] and len(told[0]) == 2
    assert told[0][0] == hashlib.sha256(rollout(env, 3, "door-open-v3", 0.1, 15).tobytes()).hexdigest()


@needs_metaworld
@pytest.mark.usefixtures("gl")
def test_recorded_actions_give_the_recorded_states_and_images(shared):
    """Episodes that were recorded without this package."""
    import av

    from lapa_jax.sim.metaworld import Env

    folder, env = shared / "data/metaworld_mt10", Env(256)
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    for line in (lines[0], next(line for line in lines if line["task"] == "window-open-v3")):
        assert line["instruction"] in TASKS[line["task"]].seen
        with av.open(str(folder / line["video"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with np.load(folder / line["arrays"], allow_pickle=False) as arrays:
            actions, states = arrays["action"], arrays["state"]
        env.reset(line["seed"], line["task"])
        for i, action in enumerate(actions):
            if i % 20 == 0:
                seen = env.observe()
                np.testing.assert_allclose(seen["state"], states[i], atol=1e-5)
                assert np.abs(seen["image"].astype(int) - frames[i]).mean() < 5  # the video is compressed
            env.step(action)
        assert env.success()
    env.close()


@needs_metaworld
def test_splits_and_wordings(env):
    from lapa_jax.sim.metaworld import Env

    seen, unseen = Env(16, split="seen", wordings="seen"), Env(16, split="unseen", wordings="unseen")
    assert set(unseen.tasks) == set(UNSEEN_TASKS) and not set(seen.tasks) & set(unseen.tasks)
    assert len(seen.tasks) == 45 and len(env.tasks) == 50
    texts = set()
    for seed in range(12):
        seen.reset(seed, "reach-v3")
        texts.add(seen.instruction)
    assert texts == set(TASKS["reach-v3"].seen)
    unseen.reset(0, "door-lock-v3")
    assert unseen.instruction in TASKS["door-lock-v3"].unseen
    env.reset(0, "door-lock-v3")
    assert env.instruction == TASKS["door-lock-v3"].seen[0]
    with pytest.raises(UserError, match="no task 'door-lock-v3'"):
        seen.reset(0, "door-lock-v3")


@needs_metaworld
def test_bad_input_is_refused(env):
    from lapa_jax.sim.env import make
    from lapa_jax.sim.metaworld import Env

    with pytest.raises(UserError, match="no task 'reach-v2' here; did you mean 'reach-v3'"):
        env.reset(0, "reach-v2")
    env.reset(0, "reach-v3")
    for action in ([0.0] * 3, [np.nan, 0, 0, 0]):
        with pytest.raises(UserError, match="four finite numbers"):
            env.step(action)
    with pytest.raises(UserError, match="noise -1"):
        env.expert(0, -1)
    with pytest.raises(UserError, match="call reset"):
        Env(32).observe()
    with pytest.raises(UserError, match="state 'al' does not exist; did you mean 'all'"):
        Env(32, state="al")
    with pytest.raises(UserError, match="no option 'splits'; did you mean 'split'"):
        make("metaworld", splits="seen")
