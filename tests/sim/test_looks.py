"""Looks differ from episode to episode, are the same for one seed, and never touch the physics."""

import numpy as np
import pytest

from lapa_jax.sim.looks import _turned

pytestmark = pytest.mark.usefixtures("gl")
NAMED = {"red": (0.85, 0.12, 0.12), "green": (0.12, 0.65, 0.2), "blue": (0.12, 0.3, 0.9), "yellow": (0.95, 0.8, 0.1)}


@pytest.fixture(scope="module")
def make():
    """Makes push-tables and closes them in the end."""
    from lapa_jax.sim.push_table import Env

    made = []

    def make(**options):
        made.append(Env(48, **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def image(env, seed: int) -> np.ndarray:
    env.reset(seed)
    return env.observe()["image"].astype(int)


def test_a_varied_look_is_decided_by_the_seed_alone(make):
    env, other = make(varied=True), make(varied=True)
    first = image(env, 1)
    assert np.abs(image(env, 2) - first).mean() > 5
    np.testing.assert_array_equal(image(env, 1), first)  # nothing adds up over episodes
    np.testing.assert_array_equal(image(other, 1), first)


def test_looks_change_neither_layout_nor_physics(make):
    plain, fancy = make(), make(varied=True, moving=True)
    for env in (plain, fancy):
        env.reset(3, "block2block")
        expert = env.expert(0, 0.003)
        for _ in range(15):
            env.step(expert.act())
    np.testing.assert_array_equal(plain.data.qpos, fancy.data.qpos)
    assert plain.instruction == fancy.instruction
    assert np.abs(plain.observe()["image"].astype(int) - fancy.observe()["image"]).mean() > 5


def test_colours_keep_their_names(make):
    from lapa_jax.sim.push_table_tasks import BLOCKS

    env, names = make(varied=True), list(NAMED)
    for seed in range(20):
        env.reset(seed)
        for i, (colour, _) in enumerate(BLOCKS):
            rgb = env.model.geom(f"block{i}").rgba[:3]
            assert names[np.argmin([np.linalg.norm(rgb - NAMED[name]) for name in names])] == colour


def test_only_a_moving_background_moves_by_itself(make):
    for moving in (False, True):
        env = make(moving=moving)
        before = image(env, 0)
        for _ in range(5):
            env.step([0.0, 0.0])
        share = (np.abs(env.observe()["image"] - before).max(axis=-1) > 20).mean()
        assert share > 0.03 if moving else share == 0.0


def test_a_camera_is_turned_by_the_rotation_asked_for():
    by, start = np.array([0.0, 0.0, 0.02]), np.array([np.cos(0.4), 0.0, 0.0, np.sin(0.4)])  # about z by 0.8
    np.testing.assert_allclose(_turned(start, by), [np.cos(0.41), 0.0, 0.0, np.sin(0.41)], atol=1e-4)
