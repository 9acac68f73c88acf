"""Policies as controllers: which actions of which chunks are done, whom an environment refuses."""

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.inference import controllers
from lapa_jax.inference.ensemble import Ensemble
from lapa_jax.sim.evaluation import Interface
from tests.inference import random_policy, small_policy

TABLE = Interface(actions=2, state=2, cameras=1, notes=())

TEXTS = ["push the red cube", "go left", "stay"]


@pytest.fixture(scope="module")
def policy(root):
    return small_policy.make(root)


def observations(steps: int, state: int = 2) -> list[dict[str, np.ndarray]]:
    """What three rows see at each step."""
    rng = np.random.default_rng(1)
    return [{"image": rng.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8),
             "state": rng.normal(0, 0.02, (3, state)).astype(np.float32)} for _ in range(steps)]  # fmt: skip


def chunk(policy, seen):
    return policy.chunk(seen["image"], TEXTS, seen["state"])


@pytest.mark.parametrize("execute", [1, 3, None])
def test_so_many_actions_of_a_chunk_are_done_before_the_next_is_asked_for(policy, execute):
    seen, acts = observations(9), controllers.controller_of(policy, None, execute=execute)
    acts.begin([None] * 3)
    every = execute or small_policy.CHUNK
    for t, now in enumerate(seen):
        expected = chunk(policy, seen[t - t % every])[:, t % every]
        assert acts.sees == (t % every == 0), "between two chunks nothing need be drawn"
        np.testing.assert_array_equal(acts.act(now if acts.sees else None, TEXTS), expected)
    acts.begin([None] * 3)
    np.testing.assert_array_equal(acts.act(seen[5], TEXTS), chunk(policy, seen[5])[:, 0])


def test_an_ensemble_of_rows_is_that_of_each_row_alone(policy):
    seen, acts, decay = observations(6), controllers.controller_of(policy, None, ensemble=0.3), 0.3
    acts.begin([None] * 3)
    chunks, alone = [], Ensemble(policy, decay)
    for t, now in enumerate(seen):
        chunks.append(chunk(policy, now))
        old = range(max(0, t - small_policy.CHUNK + 1), t + 1)
        weights = np.exp(-decay * np.arange(len(old)))
        expected = sum(w * chunks[s][:, t - s] for w, s in zip(weights / weights.sum(), old))
        found = acts.act(now, TEXTS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        single = alone.act(now["image"][1], TEXTS[1], now["state"][1])
        np.testing.assert_allclose(found[1], single, rtol=1e-4, atol=1e-6)
    acts.begin([None] * 3)
    np.testing.assert_allclose(acts.act(seen[0], TEXTS), chunk(policy, seen[0])[:, 0], rtol=1e-6)


def test_prompts_are_for_in_context_policies(policy):
    with pytest.raises(UserError, match="told what to do by an instruction"):
        controllers.controller_of(policy, None, prompt="wrong")


def test_only_policies_that_say_codes_are_told_those_of_before(policy):
    for how in ({}, {"ensemble": -0.1}):
        with pytest.raises(UserError, match="sees no codes of the query before; leave --history out"):
            controllers.controller_of(policy, None, history=True, **how)


class Episode:
    def __init__(self, task):
        self.task = task


def test_in_context_policies_are_shown_demonstrations_of_each_rows_task():
    policy = random_policy.make()
    shown = {task: [random_policy.episode(policy, 5, seed)] for seed, task in enumerate("ab")}
    acts, seen = controllers.controller_of(policy, shown.__getitem__), observations(3, random_policy.S)
    acts.begin([Episode("a"), Episode("b"), Episode("a")])
    found = [acts.act(now, TEXTS) for now in seen]
    for row, task in enumerate("aba"):
        policy.reset(shown[task])
        for now, actions in zip(seen, found):
            alone = policy.act({"state": now["state"][row]})
            np.testing.assert_allclose(actions[row], alone, rtol=1e-4, atol=1e-5)
    # Without a prompt nothing is shown, and the results are told apart from those with one.
    alone, now = controllers.controller_of(policy, None, prompt="none"), seen[0]
    alone.begin([Episode("a")])
    without = alone.act({"state": now["state"][:1]}, TEXTS[:1])
    assert np.abs(without[0] - found[0][0]).max() > 1e-3 and alone.about["prompt"] == "none"
    assert "prompt" not in acts.about
    none = random_policy.make(prompts=0)
    controllers.controller_of(none, None).begin([Episode("a")])
    with pytest.raises(UserError, match="this one was trained with none"):
        controllers.controller_of(none, None, prompt="wrong")
    with pytest.raises(UserError, match="step by step"):
        controllers.controller_of(policy, None, execute=2)


@pytest.mark.parametrize(
    ("made", "env", "told"),
    [({"width": 7}, {}, "actions of 7 numbers, table takes 2"), ({"state": 3}, {}, "states of 3 numbers, table has 2"),
     ({"cameras": 2}, {}, "sees 2 cameras, table has 1"), ({}, {"actions": 4}, "actions of 2 numbers")],
)  # fmt: skip
def test_policies_that_do_not_fit_are_refused(root, made, env, told):
    policy = small_policy.make(root, **made)
    with pytest.raises(UserError, match=told):
        controllers.check_fits(policy, None, "table", TABLE._replace(**env))


def test_what_fits_is_taken_and_chunks_end_where_they_end(root, policy):
    controllers.check_fits(policy, None, "table", TABLE)
    controllers.check_fits(small_policy.make(root, state=0), None, "table", TABLE._replace(state=0))
    controllers.check_fits(small_policy.make(root, cameras=2), None, "table", TABLE._replace(cameras=2))
    assert controllers.rate(policy) == 10.0
    for execute in (0, small_policy.CHUNK + 1):
        with pytest.raises(UserError, match="give 1 to 4"):
            controllers.Chunks(policy, execute)
