"""The push-table's physics, its determinism and its expert."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.sim.push_table_tasks import FAMILIES, WORDS

pytestmark = pytest.mark.usefixtures("mujoco")

PARTS = ("family", "block", "other", "place")
LEAST_DISTANCE = {"disc": 0.022, "cube": 0.02, "bar": 0.012, "triangle": 0.016}
"""Radius of the largest circle about the centre that lies within each shape, metres."""


@pytest.fixture(scope="module")
def env():
    from lapa_jax.sim.push_table import Env

    env = Env(64)
    yield env
    env.close()


def rollout(env, seed: int, task: str, noise: float = 0.0, limit: int = 150) -> list[np.ndarray]:
    """The expert's actions until success or `limit`."""
    env.reset(seed, task)
    expert, actions = env.expert(seed, noise), []
    while len(actions) < limit and not env.success():
        actions.append(expert.act())
        env.step(actions[-1])
    return actions


def place(env, block: int, at, angle: float = 0.0) -> None:
    """Puts a block somewhere, the others in a row at the top."""
    poses = env.data.qpos[:-2].reshape(-1, 3)
    poses[:] = [[-0.24 + 0.068 * i, 0.24, 0.0] for i in range(8)]
    poses[block] = [*at, angle]
    env.data.qvel[:] = 0


def drive(env, start, action, steps: int) -> None:
    """Puts the pusher at `start` and applies an action several times."""
    env.data.qpos[-2:] = start
    env._setpoint = np.array(start, float)
    for _ in range(steps):
        env.step(action)


def test_a_pushed_block_moves_with_the_pusher_and_stops_when_it_stops(env):
    env.reset(0)
    place(env, 0, (0.0, 0.0))
    drive(env, (-0.06, 0.0), [0.02, 0.0], 6)
    for _ in range(5):
        env.step([0.0, 0.0])
    np.testing.assert_allclose(env.pusher, [0.06, 0.0], atol=2e-3)
    moved = env.blocks[0]
    np.testing.assert_allclose(moved, [0.06 + 0.011 + 0.02, 0.0], atol=3e-3)  # pusher's radius, half a cube
    for _ in range(10):
        env.step([0.0, 0.0])
    np.testing.assert_allclose(env.blocks[0], moved, atol=2e-3)


def test_untouched_blocks_do_not_move(env):
    env.reset(0)
    place(env, 0, (0.0, 0.0), angle=0.3)
    before = env.blocks
    drive(env, (-0.1, -0.1), [0.0, -0.01], 10)
    np.testing.assert_allclose(env.blocks, before, atol=1e-6)


def test_a_block_pushed_beside_its_middle_turns(env):
    env.reset(0)
    place(env, 7, (0.0, 0.0), angle=np.pi / 2)  # the yellow bar, upright
    drive(env, (-0.05, 0.025), [0.02, 0.0], 4)
    assert env.angles[7] < np.pi / 2 - 0.2


def test_the_pusher_takes_a_clipped_action_and_stays_on_the_table(env):
    env.reset(0)
    place(env, 0, (0.1, 0.1))
    drive(env, (0.0, -0.1), [1.0, 0.0], 1)
    for _ in range(5):
        env.step([0.0, 0.0])
    np.testing.assert_allclose(env.pusher, [0.03, -0.1], atol=2e-3)
    for _ in range(60):
        env.step([-0.03, -0.03])
        assert np.abs(env.pusher).max() < 0.265


def test_blocks_stay_on_the_table_and_do_not_interpenetrate(env):
    from lapa_jax.sim.push_table_tasks import BLOCKS

    least = np.array([LEAST_DISTANCE[shape] for _, shape in BLOCKS])
    closest = least[:, None] + least[None] + 10 * np.eye(8)
    rng = np.random.default_rng(0)
    for seed in range(4):
        env.reset(seed)
        way = rng.uniform(-1, 1, 2)
        for step in range(120):  # ploughs through whatever stands there, to the edges
            if step % 12 == 0:
                way = 0.03 * (env.blocks[rng.integers(8)] - env.pusher) / 0.1
            env.step(way)
            blocks = env.blocks
            assert np.abs(blocks).max() < 0.275
            apart = np.linalg.norm(blocks[:, None] - blocks[None], axis=-1) + 10 * np.eye(8)
            assert (apart > closest - 0.004 - 10 * np.eye(8)).all()
            deepest = min([contact.dist for contact in env.data.contact[: env.data.ncon]], default=0.0)
            assert deepest > -0.006


def test_layouts_start_apart_and_within_the_table(env):
    for seed in range(30):
        env.reset(seed)
        points = np.vstack([env.blocks, env.pusher])
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(9)
        assert apart.min() > 0.08 and np.abs(points).max() < 0.2
        assert env.instruction and not env.success()


def test_one_seed_gives_one_episode_and_two_seeds_give_two(env):
    first = rollout(env, 7, "block2block", noise=0.005)
    state, text = env.data.qpos.copy(), env.instruction
    second = rollout(env, 7, "block2block", noise=0.005)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state, env.data.qpos)
    assert env.instruction == text
    rollout(env, 8, "block2block", noise=0.005)
    assert not np.array_equal(state, env.data.qpos)


@pytest.mark.usefixtures("gl")
def test_two_processes_give_the_same_states_and_images_bit_for_bit(root):
    """Fresh ones: where much else was loaded and run before, software GL may round a pixel differently."""
    options = {"split": "unseen", "wordings": "unseen", "varied": True, "moving": True}
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.sim.test_push_table import digest; from lapa_jax.sim.push_table import Env\n"
        f"print(digest(Env(32)), digest(Env(32, **{options})))"
    )
    told = []
    for seed in "12":
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        told.append(run.stdout.split())
    assert told[0] == told[1] and len(set(told[0])) == 2


def digest(env) -> str:
    """Of an episode's actions, states, words and images; closes the environment."""
    actions = rollout(env, 3, "separate", 0.004)
    seen = [np.array(actions), env.data.qpos, env.data.qvel, env.observe()["image"]]
    env.close()
    return hashlib.sha256(b"".join(map(np.ndarray.tobytes, seen)) + env.instruction.encode()).hexdigest()


def test_splits_ask_for_their_own_combinations_and_wordings_keep_the_layout(env):
    from lapa_jax.sim.push_table import Env

    seen, unseen = Env(16, split="seen", wordings="seen"), Env(16, split="unseen", wordings="unseen")
    words = set()
    for seed in range(40):
        seen.reset(seed)
        unseen.reset(seed)
        assert not seen.task.held_out() and unseen.task.held_out()
        assert unseen.instruction in {unseen.task.worded(t).instruction for t in WORDS[unseen.task.family].unseen}
        words |= {text for text in WORDS["separate"].seen if seen.instruction == seen.task.worded(text).instruction}
    assert len(words) > 1  # the wording is drawn
    other = Env(16, wordings="unseen")
    for seed in range(5):
        env.reset(seed)
        other.reset(seed)
        np.testing.assert_array_equal(env.data.qpos, other.data.qpos)
        assert [getattr(env.task, name) for name in PARTS] == [getattr(other.task, name) for name in PARTS]
        assert env.instruction != other.instruction


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_solves_every_family_and_nothing_is_solved_by_waiting(env, family):
    for seed in range(6):
        actions = rollout(env, 500 + seed, family, noise=0.003)
        assert env.success(), f"seed {500 + seed}: {env.instruction}"
        assert len(actions) > 3
        env.reset(500 + seed, family)
        for _ in range(20):
            env.step([0.0, 0.0])
        assert not env.success()


def test_noise_changes_actions_by_its_standard_deviation(env):
    env.reset(0, "separate")
    calm = env.expert(0).act()
    noisy = np.array([env.expert(seed, 0.003).act() for seed in range(400)])
    inside = np.abs(calm) < 0.02  # where the limit does not clip
    np.testing.assert_allclose((noisy - calm).std(axis=0)[inside], 0.003, rtol=0.2)


def test_bad_input_is_refused(env):
    from lapa_jax.sim.push_table import Env

    with pytest.raises(UserError, match="no task 'block2blok'; did you mean 'block2block'"):
        env.reset(0, "block2blok")
    env.reset(0)
    for action in ([0.0], [np.nan, 0.0]):
        with pytest.raises(UserError, match="two finite numbers"):
            env.step(action)
    with pytest.raises(UserError, match="noise -1"):
        env.expert(0, -1)
    with pytest.raises(UserError, match="reset"):
        Env(32).step([0.0, 0.0])
    for options, message in (
        ({"size": 4}, "size 4"),
        ({"split": "sen"}, "split 'sen' does not exist; did you mean 'seen'"),
        ({"wordings": "many"}, "wordings 'many' do not exist; known: one, seen, unseen"),
    ):
        with pytest.raises(UserError, match=message):
            Env(**options)


@pytest.mark.usefixtures("gl")
def test_images_show_what_moves(env):
    env.reset(2)
    place(env, 0, (0.0, 0.0))
    drive(env, (-0.06, -0.0), [0.0, 0.0], 1)
    first = env.observe()
    assert first["image"].shape == (64, 64, 3) and first["image"].dtype == np.uint8
    np.testing.assert_array_equal(env.observe()["image"], first["image"])
    np.testing.assert_allclose(first["state"], [-0.06, 0.0], atol=1e-4)
    for _ in range(5):
        env.step([0.02, 0.0])
    second = env.observe()

    def red(image):
        image = image.astype(int)
        rows, columns = np.nonzero((image[..., 0] > 100) & (image[..., 1:].max(axis=-1) < 60))
        kept = rows > 20  # the red disc waits at the top
        return rows[kept].mean(), columns[kept].mean()

    (row, column), (row_after, column_after) = red(first["image"]), red(second["image"])
    assert column_after > column + 4 and abs(row_after - row) < 2  # to the right in the picture, as in the table


def test_another_robot_looks_different_and_moves_alike(mujoco):
    from lapa_jax.sim.push_table import ROBOTS, Env

    images, states = [], []
    for robot in ROBOTS:
        env = Env(64, blocks=3, robot=robot)
        env.reset(5, "separate")
        expert = env.expert(5)
        for _ in range(10):
            env.step(expert.act())
        images.append(env.observe()["image"].astype(int))
        states.append(np.concatenate([env.pusher, env.blocks.ravel()]))
    np.testing.assert_array_equal(*states)
    assert np.mean(np.abs(images[0] - images[1]).max(-1) > 20) > 0.5, "most of the image"
    with pytest.raises(UserError, match="no robot 'orang'; did you mean 'orange'"):
        Env(64, robot="orang")


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_with_fewer_blocks_only_these_are_there_asked_for_and_pushed(mujoco, split):
    from lapa_jax.sim.push_table import ABSENT, Env
    from lapa_jax.sim.push_table_tasks import BLOCKS

    env, solved = Env(32, split=split, blocks=3), 0
    names = {" ".join(BLOCKS[i]) for i in (0, 4, 6)}
    others = {" ".join(block) for block in BLOCKS} - names
    for seed in range(5):
        env.reset(seed, env.tasks[seed])
        assert any(name in env.instruction for name in names) and not any(name in env.instruction for name in others)
        assert (env.blocks == ABSENT).all(1).sum() == 5 and len(env.angles) == 3
        assert env.task.held_out() == (split == "unseen")
        expert = env.expert(seed)
        for _ in range(env.max_steps):
            env.step(expert.act())
            if env.success():
                solved += 1
                break
    assert solved == 5
    with pytest.raises(UserError, match="3 to 8"):
        Env(32, blocks=2)
