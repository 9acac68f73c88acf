"""The success rules of the five families, checked on layouts whose answer is known by construction. No simulator."""

import numpy as np
import pytest

from lapa_jax.sim.push_table_expert import plan
from lapa_jax.sim.push_table_tasks import (
    AT_GOAL,
    BESIDE,
    BLOCKS,
    DIRECTIONS,
    FAMILIES,
    PLACES,
    SEPARATED,
    TOUCHING,
    WORDS,
    Task,
    draw_task,
)

FAR = np.array([[-0.2 + 0.057 * i, 0.2] for i in range(8)])
"""Blocks in a row at the top of the table."""


def with_blocks(**places) -> np.ndarray:
    blocks = FAR.copy()
    for name, place in places.items():
        blocks[int(name[1:])] = place
    return blocks


def drawn(family: str, count: int = 60):
    """Tasks of a family with the layouts they were drawn for."""
    rng = np.random.default_rng(0)
    pairs = []
    while len(pairs) < count:
        blocks = rng.uniform(-0.19, 0.19, (8, 2))
        task = draw_task(rng, family, blocks)
        if task is not None:
            pairs.append((task, blocks))
    return pairs


def test_block2block_is_done_when_the_blocks_can_touch():
    task = Task("block2block", "", block=0, other=3)
    assert task.success(with_blocks(b0=(0, 0), b3=(TOUCHING - 0.001, 0)))
    assert not task.success(with_blocks(b0=(0, 0), b3=(0, TOUCHING + 0.001)))


@pytest.mark.parametrize("place", sorted(PLACES))
def test_block2absolute_is_done_near_the_named_place(place):
    goal = np.array(PLACES[place])
    task = Task("block2absolute", "", block=2, goal=goal)
    assert task.success(with_blocks(b2=goal + (0, AT_GOAL - 0.001)))
    assert not task.success(with_blocks(b2=goal + (AT_GOAL + 0.001, 0)))
    words = {"top": goal[1] > 0.1, "bottom": goal[1] < -0.1, "left": goal[0] < -0.1, "right": goal[0] > 0.1}
    assert all((word in place) == there for word, there in words.items())


@pytest.mark.parametrize("way", sorted(DIRECTIONS))
def test_block2blockrelative_follows_the_other_block(way):
    offset = 0.085 * np.array(DIRECTIONS[way])
    task = Task("block2blockrelative", "", block=1, other=6, offset=offset)
    for other in np.array([[0.0, 0.0], [0.1, -0.05]]):
        assert task.success(with_blocks(b6=other, b1=other + offset))
        assert not task.success(with_blocks(b6=other, b1=other - offset))


def test_separate_is_done_when_the_distance_has_grown():
    task = Task("separate", "", block=4, other=5, start_distance=0.1)
    assert not task.success(with_blocks(b4=(0, 0), b5=(0.1 + SEPARATED - 0.001, 0)))
    assert task.success(with_blocks(b4=(0, 0), b5=(0.1 + SEPARATED + 0.001, 0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_tasks_start_undone_and_are_done_at_their_target(family):
    for task, blocks in drawn(family):
        assert task.family == family and not task.success(blocks)
        done = blocks.copy()
        done[task.block] = task.target(blocks)
        assert task.success(done)


@pytest.mark.parametrize("family", FAMILIES)
def test_instructions_name_the_blocks_and_the_direction(family):
    for task, blocks in drawn(family, 30):
        named = [i for i, (colour, shape) in enumerate(BLOCKS) if f"{colour} {shape}" in task.instruction]
        assert set(named) == {task.block, task.other} - {None}
        first = min(named, key=lambda i: task.instruction.index(" ".join(BLOCKS[i])))
        assert first == task.block
        if family == "block2relative":
            way = DIRECTIONS[task.instruction.split()[-1]]
            np.testing.assert_allclose(task.goal - blocks[task.block], 0.13 * np.array(way), atol=1e-12)


def combinations(family: str) -> list[Task]:
    """Every combination that a family can ask for."""
    two = [(a, b) for a in range(8) for b in range(8) if a != b]
    if family in ("block2block", "separate"):
        return [Task(family, "", a, b) for a, b in two]
    if family == "block2blockrelative":
        return [Task(family, "", a, b, place=way) for a, b in two for way in DIRECTIONS]
    return [Task(family, "", a, place=p) for a in range(8) for p in (PLACES if "abs" in family else DIRECTIONS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fifth_is_held_out_and_every_part_of_it_is_seen_elsewhere(family):
    tasks = combinations(family)
    seen = [task for task in tasks if not task.held_out()]
    assert 0.15 < 1 - len(seen) / len(tasks) < 0.25
    for part in ("block", "other", "place"):
        assert {getattr(task, part) for task in seen} == {getattr(task, part) for task in tasks}
    turned = {(task.other, task.block) for task in tasks if task.held_out() and task.other is not None}
    assert not turned & {(task.block, task.other) for task in seen}  # nor is the pair seen the other way round


@pytest.mark.parametrize("family", FAMILIES)
def test_wordings_differ_and_say_what_the_task_is(family):
    words = WORDS[family].seen + WORDS[family].unseen
    assert len(set(words)) == 6
    for task in combinations(family):
        texts = {task.worded(template).instruction for template in words}
        assert len(texts) == 6
        for text in texts:
            named = [i for i, (colour, shape) in enumerate(BLOCKS) if f"{colour} {shape}" in text]
            assert set(named) == {task.block, task.other} - {None}
            assert (BESIDE[task.place] if family == "block2blockrelative" else task.place) in text


def test_no_two_tasks_sound_the_same():
    told = {}
    for family in FAMILIES:
        for task in combinations(family):
            for template in WORDS[family].seen + WORDS[family].unseen:
                told.setdefault(task.worded(template).instruction, set()).add(
                    (family, task.block, task.other, task.place)
                )
    assert all(len(tasks) == 1 for tasks in told.values())


def test_a_task_whose_goal_is_taken_or_already_reached_is_not_drawn():
    class Always:
        """Draws block 0 and the center."""

        def integers(self, n):
            return 0 if n == len(BLOCKS) else list(PLACES).index("center")

    free = with_blocks(b0=(0.15, 0))
    assert draw_task(Always(), "block2absolute", free).instruction == "push the red cube to the center"
    assert draw_task(Always(), "block2absolute", with_blocks(b0=(0.15, 0), b7=(0.02, 0))) is None
    assert draw_task(Always(), "block2absolute", with_blocks(b0=(0.05, 0))) is None


def test_the_expert_pushes_from_behind_and_goes_round_from_the_front():
    task = Task("block2absolute", "", block=0, goal=np.array([0.15, 0.0]))
    blocks = with_blocks(b0=(0, 0))
    push = plan(np.array([-0.05, 0.0]), blocks, task)
    assert push[0] > 0.015 and abs(push[1]) < 1e-6
    at = np.array([0.1, 0.0])  # in the way of the block
    for _ in range(40):
        before = np.linalg.norm(at - blocks[0])
        at = at + plan(at, blocks, task)
        assert np.linalg.norm(at - blocks[0]) > 0.035 or at[0] < 0, f"ran into the block from {before:.3f} m"
        if at[0] < -0.045 and abs(at[1]) < 0.011:
            break
    else:
        raise AssertionError("the expert never got behind the block")
