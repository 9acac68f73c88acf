"""In-context policies step by step: the same as the full forward pass, in the units of the data, compiled once."""

import functools

import jax
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.inference.in_context import InContextPolicy
from tests.inference import random_policy
from tests.inference.random_policy import SIDE, A, L, P, S, T

SETTINGS = [
    {}, {"actions": "z+q", "fifa_temperature": 0.3, "causal": False, "future": 3},
    {"actions": "q", "cameras": 2, "image_size": SIDE, "context": 5, "prompts": 1, "normalize": "mean_std"},
    {"prompts": 0, "context": 1, "normalize": "none"},
    {"goal": True, "cameras": 1, "image_size": SIDE, "actions": "z", "causal": False, "context": 4},
    {"goal": True, "prompts": 0, "future": 2, "head": {"name": "policies.heads.bins", "bins": 9}, "context": 3},
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """Most of the time goes to compiling small programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


made = functools.cache(random_policy.make)


def rollout(policy, session, steps, executed=None):
    """Acts on random observations; (observations [rows, steps, ...], what was done, the chunks) of all steps."""
    rows = [random_policy.episode(policy, steps, 50 + k) for k in range(3)]
    seen = {name: np.stack([row[name] for row in rows]) for name in ("state", "image")}
    chunks, done = [], []
    for t in range(steps):
        told = None if executed is None or t == 0 else executed[:, t - 1]
        action = session.act({name: values[:, t] for name, values in seen.items()}, told)
        np.testing.assert_array_equal(action, session.chunk[:, 0])
        assert action.dtype == np.float32 and action.shape == (3, A)
        chunks.append(session.chunk)
        done.append(action if executed is None else executed[:, t])
    return seen, np.stack(done, 1), np.stack(chunks, 1)


def window_of(step, context):
    """The first step that the policy still sees: half a window is forgotten at a time."""
    half = context - context // 2
    return 0 if step < context else half * ((step - context) // half + 1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_step_by_step_equals_the_full_forward_pass(setting):
    make = random_policy.make if "head" in setting else made  # a group of fields has no hash
    policy = make(**setting)
    context, count = policy.model.context, policy.model.prompts
    lengths = [(L, 2), (3,), ()]
    prompts = [[random_policy.episode(policy, n, 7 * n + k) for n in row[:count]] for k, row in enumerate(lengths)]
    steps = 2 * context + 2
    executed = np.stack([random_policy.numbers(steps, A, 90 + k) for k in range(3)]) if "future" in setting else None
    goals = random_policy.episode(policy, 3, 77)
    given = [{name: goals[name][k] for name in ("state", "image")} for k in range(3)] if policy.model.goal else None
    seen, done, chunks = rollout(policy, policy.start(prompts, goals=given), steps, executed)
    scale, predict = random_policy.normalizers(policy), random_policy.predictor(policy)
    for first in sorted({window_of(t, context) for t in range(steps)}):
        places = np.minimum(np.arange(first, first + context), steps - 1)
        window = {name: values[:, places] for name, values in {**seen, "action": done}.items()}
        window |= {f"goal_{name}": goals[name][:, None] for name in ("state", "image")}
        full = np.asarray(predict(random_policy.batch_of(policy, prompts, window, scale)))
        for t in [t for t in range(first, min(first + context, steps)) if window_of(t, context) == first]:
            ours = scale["action"].normalize(chunks[:, t])
            np.testing.assert_allclose(ours, full[:, t - first], atol=1e-5, rtol=1e-5)
    assert np.abs(np.diff(chunks, axis=1)).max() > 0.01


@pytest.fixture(scope="module")
def policy():
    return made()


def test_a_goal_is_given_where_one_was_trained_with(policy):
    with pytest.raises(UserError, match="model.goal=False and takes no goals; 1 are given"):
        policy.reset(goal={"state": np.zeros(S)})
    with_goal = made(goal=True, prompts=0)
    with pytest.raises(UserError, match="takes a goal for each of the 1 episodes; none is given"):
        with_goal.reset()
    with pytest.raises(UserError, match="the goal's 'state' is missing"):
        with_goal.reset(goal={})


@pytest.fixture(scope="module")
def seeing():
    return random_policy.make(prompt_steps="window", cameras=1, image_size=SIDE, state_dim=0)


def acts(policy, prompt, steps=4, observations=None):
    policy.reset(prompt)
    observations = observations or random_policy.episode(policy, steps, 3)
    rows = [{name: observations[name][t] for name in ("state", "image")} for t in range(steps)]
    return np.stack([policy.act(row) for row in rows])


def test_one_episode_is_one_row_of_a_session(policy):
    prompts = [[random_policy.episode(policy, n, n)] for n in (2, 3, 4)]
    seen = random_policy.episode(policy, 5, 3)["state"]
    session = policy.start(prompts)
    rows = np.stack([session.act({"state": np.stack([row] * 3)}) for row in seen], 1)
    for row, prompt in enumerate(prompts):
        policy.reset(prompt[0])
        assert policy.chunk is None
        alone = np.stack([policy.act({"state": step}) for step in seen])
        np.testing.assert_allclose(alone, rows[row], atol=1e-5)
        np.testing.assert_array_equal(policy.chunk, alone[-1:])
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_long_demonstrations_are_reduced_as_in_training(policy, seeing):
    long = random_policy.episode(policy, 11, 5)
    chosen = np.rint(np.linspace(0, 10, L)).astype(int)
    np.testing.assert_array_equal(acts(policy, long), acts(policy, {k: v[chosen] for k, v in long.items()}))
    shown = random_policy.episode(seeing, 11, 5)
    np.testing.assert_array_equal(acts(seeing, shown), acts(seeing, {k: v[:L] for k, v in shown.items()}))


def test_pictures_are_resized_as_in_training(seeing):
    large = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3)).astype(np.uint8)
    small = np.stack([images.resize(one, SIDE) for one in large])
    action = random_policy.numbers(4, A, 1)
    found = [acts(seeing, {"action": action, "image": x}, observations={"state": small, "image": x})
             for x in (large, small)]  # fmt: skip
    np.testing.assert_array_equal(*found)


def test_what_was_really_done_counts(policy):
    seen = random_policy.episode(policy, 3, 3)["state"]

    def last(executed):
        policy.reset()
        first = policy.act({"state": seen[0]})
        return policy.act({"state": seen[1]}, first if executed is None else executed)

    policy.reset()
    policy.act({"state": seen[0]})
    told = policy.act({"state": seen[1]})
    np.testing.assert_array_equal(last(None), told)
    assert np.abs(last(random_policy.numbers(1, A, 8)[0]) - told).max() > 1e-3


def test_no_prompt_is_none_empty_or_left_out(policy):
    without = acts(policy, None)
    np.testing.assert_array_equal(acts(policy, []), without)
    assert np.abs(acts(policy, random_policy.episode(policy, 4, 1)) - without).max() > 1e-3


def test_nothing_is_compiled_during_a_rollout(policy):
    seen = random_policy.episode(policy, 4 * T, 3)["state"]
    counts = lambda: {name: program._cache_size() for name, program in policy._programs.items()}  # noqa: E731

    def rollout(size, steps, prompt):
        session = policy.start([prompt] * size)
        for step in seen[:steps]:
            session.act({"state": np.stack([step] * size)})

    rollout(1, T + 1, None)
    before = counts()
    rollout(1, 4 * T, [random_policy.episode(policy, 3, 1)] * P)
    acts(policy, random_policy.episode(policy, 30, 1), 2 * T)
    assert counts() == before
    # another number of episodes: "begin" at the first step and anew, "later" at all others
    rollout(5, T + 1, None)
    assert {name: count - before[name] for name, count in counts().items()} == {"start": 1, "begin": 2, "later": 1}
    rollout(5, 3 * T, [random_policy.episode(policy, 9, 1)])
    assert sum(counts().values()) == sum(before.values()) + 4


def test_export_acts_the_same_to_the_bit(policy, tmp_path):
    prompt = random_policy.episode(policy, 9, 1)
    policy.save_pretrained(tmp_path / "exported")
    again = lapa_jax.load(tmp_path / "exported")
    assert again.mesh.size == 8
    assert isinstance(again, InContextPolicy) and again.fingerprint == policy.fingerprint and again.step == 3
    np.testing.assert_array_equal(acts(again, prompt, 2 * T), acts(policy, prompt, 2 * T))


def test_units_of_several_datasets(policy):
    several = random_policy.make(datasets=("table", "other"))
    several._programs = policy._programs
    with pytest.raises(UserError, match="several datasets.*table, other"):
        several.reset()
    shown, seen = random_policy.episode(policy, 4, 1), {"state": random_policy.numbers(1, S, 2)[0]}
    found = {}
    for name in ("table", "other"):
        several.reset(shown, dataset=name)
        found[name] = several.act(seen)
    policy.reset(shown)
    np.testing.assert_array_equal(found["table"], policy.act(seen))
    assert np.abs(found["table"] - found["other"]).max() > 1e-3


def test_act_before_reset_is_refused():
    with pytest.raises(UserError, match="call reset"):
        random_policy.make(depth=1).act({"state": np.zeros(S)})


DEMO = {"action": np.zeros((5, A)), "state": np.zeros((5, S))}
BAD = np.array([0, 1, np.nan, 0, 0])


@pytest.mark.parametrize(
    "prompt, words",
    [
        ([DEMO] * (P + 1), f"3 demonstrations for a policy that was trained with {P}: give {P} at most"),
        ({"state": DEMO["state"]}, "demonstration 0's 'action' is missing"),
        ({"action": DEMO["action"]}, "demonstration 0's 'state' is missing"),
        ([DEMO, {**DEMO, "state": np.zeros((4, S))}], r"demonstration 1 has 5 actions and state \(4, 5\)"),
        ({**DEMO, "action": np.zeros((5, A + 1))}, "demonstration 0's action is float64.*the last of 3"),
        ({**DEMO, "action": np.zeros((0, A)), "state": np.zeros((0, S))}, "action is float64"),
        ({**DEMO, "state": np.array([["a"] * S] * 5)}, "state is <U1"),
        ({**DEMO, "state": np.tile(BAD, (5, 1))}, r"state holds a number that is not finite, at \[0, 2\]"),
        ([DEMO["action"]], "demonstration 0 is a ndarray"),
    ],
)
def test_bad_prompts_are_refused(policy, prompt, words):
    with pytest.raises(UserError, match=words):
        policy.reset(prompt)


@pytest.mark.parametrize(
    "observation, executed, words",
    [
        ({}, None, r"observation's 'state' is missing.*there is \[\]"),
        ({"state": np.zeros(S + 1)}, None, "the observation's state is float64"),
        ({"state": BAD}, None, "not finite"),
        ({"state": np.zeros(S)}, np.zeros(A + 1), "executed is float64"),
        ({"state": np.zeros(S)}, np.full(A, np.inf), "executed holds a number that is not finite"),
    ],
)
def test_bad_observations_are_refused_and_change_nothing(policy, observation, executed, words):
    seen = random_policy.episode(policy, 2, 3)["state"]
    policy.reset()
    with pytest.raises(UserError, match="executed is what was done at the step before"):
        policy.act({"state": seen[0]}, np.zeros(A))
    policy.act({"state": seen[0]})
    expected = policy.act({"state": seen[1]})
    policy.reset()
    policy.act({"state": seen[0]})
    with pytest.raises(UserError, match=words):
        policy.act(observation, executed)
    np.testing.assert_array_equal(policy.act({"state": seen[1]}), expected)


def test_bad_pictures_are_refused(seeing):
    seeing.reset()
    for image, words in (
        (np.zeros((SIDE, SIDE, 3)), "the observation's image is float64"),
        (np.zeros((SIDE, SIDE), np.uint8), r"uint8 \[N, H, W, 3\] is expected"),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), "is expected"),
    ):
        with pytest.raises(UserError, match=words):
            seeing.act({"image": image})


def test_prompts_need_a_model_with_prompts_and_batches_their_size(policy):
    with pytest.raises(UserError, match=r"trained with 0: reset\(\) without one"):
        random_policy.make(prompts=0, depth=1).reset(DEMO)
    with pytest.raises(UserError, match="prompts is empty"):
        policy.start([])
    with pytest.raises(UserError, match="2 rows are expected"):
        policy.start([None, None]).act({"state": np.zeros((3, S))})
