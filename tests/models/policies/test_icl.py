"""The in-context policy: what it may see, what it learns from, and that it learns from its prompt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models import fifa
from lapa_jax.models.policies import icl, icl_data
from lapa_jax.models.policies import icl as icl_losses
from lapa_jax.models.policies.heads import bins, chunk, dct, flow
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.models.tokenizers import mstcn
from lapa_jax.train.task import Task
from tests import jitted

A, S, T, P, L, ROWS = 3, 5, 6, 2, 4, 4
SMALL = {"action_dim": A, "state_dim": S, "cameras": 0, "image_size": 0, "context": T, "prompts": P, "prompt_length": L,
         "dim": 16, "depth": 2, "heads": 2, "hidden": 24}  # fmt: skip
RNGS = {name: jax.random.key(i) for i, name in enumerate(("params", "noise", "dropout"))}


def tokenizer(**changes):
    fields = {"action_dim": A, "context": T, "embed_dim": 8, "width": 8, "layers": 2, "stages": 1, "causal": True,
              "subclusters": 8, "clusters": 4, "dead_share": 0.1, "dead_age": 1}  # fmt: skip
    return mstcn.Model(**{**fields, **changes})


def build(**changes):
    if changes.get("actions", "raw") != "raw" and "tokenizer" not in changes:
        changes["tokenizer"] = tokenizer()
    model = icl.Model(**{**SMALL, **changes})
    config_lib.check(model)
    return model


def random_batch(model, seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    batch = {name: rng.normal(size=x.shape).astype(np.float32) if x.dtype == np.float32 and "mask" not in name else x
             for name, x in model.example(rows).items()}  # fmt: skip
    if model.cameras:
        for name in ("image", "prompt_image"):
            batch[name] = rng.integers(0, 256, batch[name].shape).astype(np.uint8)
    return {**batch, "task_id": np.arange(rows, dtype=np.int32) % 2}


@functools.cache
def variables_of(model):
    """Random ones; of a model with codebooks its own, with parameters that are not at trivial initial values."""
    rng = np.random.default_rng(1)
    if model.tokenizer is None:
        return tree.map_named(functools.partial(_drawn, rng), expected_variables(model))
    variables = jax.jit(lambda batch: model.init(RNGS, batch, train=True))(random_batch(model, 5))
    return variables | {"params": jax.tree.map(lambda a: a + 0.05 * rng.normal(size=a.shape).astype(np.float32),
                                               variables["params"])}  # fmt: skip


def _drawn(rng, name, leaf):
    size = leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.05
    return np.float32(name.endswith("scale") + size * rng.normal(size=leaf.shape))


def in_training(model, variables, batch):
    """Predictions of all window steps as the training pass makes them."""

    def predict(self, batch):
        batch = self._disturbed(batch)
        return _read_off(self, self._states(batch, self._vectors(batch, train=True)[0])[:, -self.context :])

    mutable = [name for name in variables if name != "params"]
    rngs = {name: RNGS[name] for name in ("noise", "dropout")}
    return model.apply(variables, batch, method=predict, mutable=mutable, rngs=rngs)[0]


def at_inference(model, variables, batch):
    if model.head is not None:
        return everywhere(model, variables, batch)[:, -T:]
    return model.apply(variables, batch, method="predict")["action"]


def everywhere(model, variables, batch):
    """Predictions of the prompts' steps too."""
    everything = lambda self, batch: _read_off(self, self._states(batch, self._vectors(batch, train=False)[0]))  # noqa: E731
    return model.apply(variables, batch, method=everything)


def _read_off(self, states):
    """Actions [B, N, F, A], or of a head its logits [B, N, F, A K]: the likeliest of them may stay what it was."""
    if self.head is None:
        return self._act(states)
    return self.act(states.reshape(-1, 1, self.dim)).reshape(*states.shape[:2], self.future, -1)


@functools.cache
def predictor(model, how=at_inference):
    return functools.partial(jax.jit(functools.partial(how, model)), variables_of(model))


SETTINGS = [
    {}, {"causal": False, "supervise_all_steps": False}, {"prompt_loss": True, "future": 3},
    {"actions": "z", "train_tokenizer": True}, {"actions": "q", "fifa_temperature": 0.1},
    {"actions": "z+q", "train_tokenizer": True}, {"actions": "z+q", "fifa_temperature": 1.0, "causal": False},
    {"goal": True, "prompts": 0}, {"goal": True, "actions": "q", "causal": False, "train_tokenizer": True},
    {"head": bins.Model(bins=5)}, {"head": dct.Model(limit=3), "future": 3, "goal": True},
]  # fmt: skip
"""Every value of every field, and those together that meet in the code."""


def first_changes(predict, model, batch):
    """For each step t: the first step whose prediction changes when the actions from t on do; T where none does."""
    before = np.asarray(predict(batch))
    found = []
    for t in range(T):
        changed = batch["action"].copy()
        changed[:, t:] = np.random.default_rng(7).normal(size=changed[:, t:].shape) * 3
        after = np.asarray(predict({**batch, "action": changed}))
        differs = np.abs(after - before).max((0, 2, 3)) > 0
        found.append(int(np.argmax(differs)) if differs.any() else T)
    return found


@pytest.mark.parametrize("how", [in_training, at_inference])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_prediction_depends_on_its_own_or_a_later_action(setting, how):
    model = build(**setting)
    batch = random_batch(model)
    assert first_changes(predictor(model, how), model, batch) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("setting", [{}, {"head": bins.Model(bins=5), "goal": True}], ids=str)
def test_no_prediction_depends_on_a_later_observation(setting):
    """The goal is the one thing of the future that a policy knows; it is none of the window."""
    model = build(**setting)
    batch, predict = random_batch(model), predictor(model)
    before = np.asarray(predict(batch))
    for t in range(1, T):
        changed = batch["state"].copy()
        changed[:, t:] += 1
        change = np.abs(predict({**batch, "state": changed}) - before).max((0, 2, 3))
        assert (change[:t] == 0).all() and (change[t:] > 0).all()


@pytest.mark.parametrize("setting", [{}, {"causal": False}, {"prompts": 0}], ids=str)
def test_every_step_knows_the_goal_unless_it_is_masked(setting):
    model = build(goal=True, **setting)
    batch, predict = random_batch(model), predictor(model, everywhere)
    assert not [name for name in batch if name.startswith("goal_action")], "what is done at the goal is not told"
    other = {**batch, "goal_state": batch["goal_state"] + 1}
    assert (np.abs(predict(other) - predict(batch)).max((0, 2, 3)) > 0).all()
    masked = {"goal_step_mask": np.zeros((ROWS, 1), np.float32)}
    np.testing.assert_array_equal(predict({**other, **masked}), predict({**batch, **masked}))
    if model.prompts:
        alone = predict(icl_data.without_prompt(batch))[:, -T:]
        assert np.abs(alone - predict(icl_data.without_prompt(other))[:, -T:]).max() > 0, "the goal is no demonstration"


def test_the_loss_of_a_head_counts_the_supervised_steps():
    model = build(head=bins.Model(bins=5), goal=True)
    batch = random_batch(model)
    batch["action_mask"] = (np.arange(T) < 4).astype(np.float32) * np.ones((ROWS, 1), np.float32)
    out, actions = jax.jit(lambda v, b: (model.apply(v, b, train=False), model.apply(v, b, method="predict")["action"])
                           )(variables_of(model), batch)  # fmt: skip
    logits = np.asarray(predictor(model)(batch), np.float64).reshape(ROWS, T, A, 5)
    chosen = np.clip(np.floor((batch["action"] + 1) / 2 * 5), 0, 4).astype(int)
    error = scipy.special.logsumexp(logits, -1) - np.take_along_axis(logits, chosen[..., None], -1)[..., 0]
    assert out.losses.keys() == {"action"}
    np.testing.assert_allclose(out.losses["action"], error[:, :4].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(actions[:, :, 0], (logits.argmax(-1) + 0.5) / 5 * 2 - 1, atol=1e-6)


def test_the_leak_test_finds_the_leak_of_a_tokenizer_that_looks_ahead():
    model = icl.Model(**SMALL, actions="z", tokenizer=tokenizer(causal=False))
    found = first_changes(predictor(model), model, random_batch(model))
    assert found != [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="would depend on the actions after it"):
        config_lib.check(model)


@pytest.mark.parametrize("setting", [{}, {"actions": "z+q"}, {"prompt_loss": True}], ids=str)
def test_predictions_depend_on_prompts_and_on_steps_before(setting):
    model = build(**setting)
    batch, predict = random_batch(model), predictor(model)
    before = predict(batch)
    for name in ("prompt_state", "prompt_action", "state"):
        other = {**batch, name: batch[name][::-1]}
        assert np.abs(predict(other) - before)[:, 0].max() > 1e-6, name


@pytest.mark.parametrize("causal", [True, False])
def test_steps_of_a_prompt_see_the_later_ones_only_without_causal(causal):
    model = build(causal=causal)
    batch = random_batch(model)
    predict = predictor(model, everywhere)
    other = batch["prompt_state"].copy()
    other[:, :, -1] += 1
    change = np.abs(predict({**batch, "prompt_state": other}) - predict(batch)).max((0, 2, 3))
    assert (change[L - 2] > 0) != causal and change[L] > 0 and change[2 * L :].min() > 0


@pytest.mark.parametrize("actions", ["raw", "z"])
def test_what_masks_leave_out_counts_for_nothing(actions):
    model = build(actions=actions)
    batch = random_batch(model)
    batch["prompt_step_mask"], batch["prompt_action_mask"] = (np.ones((ROWS, P, L), np.float32) for _ in range(2))
    for mask in ("prompt_step_mask", "prompt_action_mask"):
        batch[mask][:, 1] = 0
        batch[mask][:, 0, 3:] = 0
    predict = predictor(model)
    other = {name: batch[name].copy() for name in ("prompt_state", "prompt_action")}
    for values in other.values():
        values[:, 1] = 9.0
        values[:, 0, 3:] = 9.0
    np.testing.assert_array_equal(predict({**batch, **other}), predict(batch))
    without = predict(icl_data.without_prompt(batch))
    assert np.isfinite(without).all() and np.abs(without - predict(batch)).max() > 1e-6


def test_losses_are_those_of_the_plan():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 2, T, 2, 4)) * 2
    weight = (rng.random((2, T, 2)) > 0.4).astype(np.float64)
    target[0, 0, 0, :3] = 0  # no direction
    action_losses = jax.jit(icl_losses.action_losses)
    got = action_losses(*(jnp.asarray(x, jnp.float32) for x in (prediction, target, weight)))
    for row in range(2):
        l2, l1, cosine = [], [], []
        for step, ahead in zip(*np.nonzero(weight[row]), strict=True):
            a, b = prediction[row, step, ahead], target[row, step, ahead]
            l2.append(np.mean((a - b) ** 2))
            l1.append(np.mean([0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in a - b]))
            if np.linalg.norm(b[:3]):
                cosine.append(1 - a[:3] @ b[:3] / np.linalg.norm(a[:3]) / np.linalg.norm(b[:3]))
        assert got["l2"][row] == pytest.approx(np.mean(l2), rel=1e-4)
        assert got["smooth_l1"][row] == pytest.approx(np.mean(l1), rel=1e-4)
        assert got["cosine"][row] == pytest.approx(np.sum(cosine) / len(cosine), rel=1e-3)
    zeros, ones, all_steps = np.float32(0 * prediction), np.float32(0 * target + 1), np.float32(0 * weight + 1)
    np.testing.assert_array_equal(action_losses(zeros, ones, all_steps)["cosine"], 1.0)
    slope = jax.jit(jax.grad(lambda p: icl_losses.action_losses(p, ones, all_steps)["cosine"].sum()))
    assert np.isfinite(slope(zeros)).all()


@pytest.mark.parametrize(
    ("setting", "steps"),
    [({}, 5), ({"supervise_all_steps": False}, 1), ({"prompt_loss": True}, P * L + 5),
     ({"future": 3}, 5)],
    ids=str,
)  # fmt: skip
def test_what_is_learned_from(setting, steps):
    model = build(**setting)
    batch = random_batch(model)
    batch["action_mask"] = batch["action_mask"].copy()
    batch["action_mask"][:, 5:] = 0  # the episode ends: the last step that there is, is the fifth
    if model.future > 1:
        batch["future_mask"] = batch["future_mask"] * batch["action_mask"][..., None]
    states, target, weight = icl_data.supervised(model, batch, jnp.zeros((ROWS, P * L + T, 7)))
    assert states.shape == (*target.shape[:2], 7) and weight.shape == target.shape[:-1]
    np.testing.assert_array_equal((weight.sum(-1) > 0).sum(1), steps)
    window, own = target[:, -T:], batch["action"]
    if model.future == 1:
        np.testing.assert_array_equal(window[:, :, 0], own)
    if setting == {"supervise_all_steps": False}:
        assert (weight[:, 4, 0] == 1).all()
    if setting.get("prompt_loss"):
        np.testing.assert_array_equal(target[:, : P * L, 0], batch["prompt_action"].reshape(ROWS, P * L, A))


@pytest.mark.parametrize("joint", [False, True])
def test_gradients_flow_where_they_should_and_nowhere_else(joint):
    model = build(actions="q", train_tokenizer=joint)
    variables, batch = variables_of(model), random_batch(model)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    names = ["l2"] + ["tokenizer_reconstruction", "tokenizer_commitment_z"] * joint
    task = Task(model, dict.fromkeys(names, 1.0))

    def losses(params):
        _, (updated, metrics) = task.loss({"params": params, **rest}, batch, jax.random.key(3))
        return {name: metrics[f"loss_{name}"] for name in names}, (updated, metrics)

    gradients, (updated, metrics) = jax.jit(jax.jacrev(losses, has_aux=True))(params)
    size = lambda gradient: float(np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(gradient))))  # noqa: E731
    for name, gradient in gradients.items():
        tokens, policy = size(gradient["tokenizer"]), size({k: v for k, v in gradient.items() if k != "tokenizer"})
        assert (tokens == 0 and policy > 0) if name == "l2" else (tokens > 0 and policy == 0)
    before, after = (tree.flatten(x["codebook"]) for x in (rest, updated))
    moved = any(np.abs(np.asarray(after[name], np.float64) - before[name]).max() > 0 for name in before)
    assert moved == joint, "a frozen tokenizer's codebooks stay"
    assert ("tokenizer_perplexity_q" in metrics) == joint


def test_soft_clusters_are_means_by_probability():
    model = tokenizer()
    rng = np.random.default_rng(0)
    action, mask = rng.normal(size=(2, T, A)).astype(np.float32), np.ones((2, T), np.float32)
    batch = {"action": action, "action_mask": mask}
    variables = jax.jit(lambda batch: model.init(RNGS, batch, train=True))(batch)
    call = lambda *args, method: np.asarray(jitted.apply(model, variables, *args, method=method))  # noqa: E731
    soft = call(action, mask, 0.3, method="soft_clusters")
    distance = call(action, mask, method="cluster_distances")
    weight = np.exp(-distance / 0.3)
    vectors = variables["codebook"]["codes"]["q"]["codes"][0]
    expected = (weight / weight.sum(-1, keepdims=True)) @ np.asarray(vectors)
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    assert np.abs(soft - soft[:, :1]).max() > 1e-3, "it depends on the step"
    assert fifa.FARTHEST > distance.min()


def test_a_wrong_prompt_is_the_next_one_of_another_task():
    model = build()
    batch = random_batch(model, rows=5) | {"task_id": np.array([0, 0, 2, 1, 0], np.int32)}
    moved, there = icl_data.of_another_task(batch)
    for row, other in enumerate([2, 2, 3, 4, 2]):
        np.testing.assert_array_equal(moved["prompt_state"][row], batch["prompt_state"][other])
    assert there.tolist() == [1] * 5
    np.testing.assert_array_equal(moved["state"], batch["state"])
    assert icl_data.of_another_task({**batch, "task_id": np.zeros(5, np.int32)})[1].sum() == 0


def test_summaries_count_steps_and_tasks():
    rng = np.random.default_rng(0)
    action = rng.normal(size=(6, T, A)).astype(np.float32)
    mask = np.ones((6, T), np.float32)
    mask[0, 2:] = 0
    off = {"prediction": 0.1, "prediction_none": 0.3, "prediction_wrong": 0.2}
    arrays = {"action": action, "action_mask": mask, "task_id": np.array([0, 0, 1, 1, 2, 2]),
              "has_wrong": np.array([1, 1, 1, 1, 1, 0]), **{k: action + v for k, v in off.items()}}  # fmt: skip
    arrays["prediction_wrong"][2:4] = action[2:4]  # task 1: the wrong prompt does better
    arrays["prediction"][0, 2:] = 100  # masked
    found = icl_losses.summarize(arrays)
    assert found["action_mse"] == pytest.approx(0.01, rel=1e-4) and found["action_mae"] == pytest.approx(0.1, rel=1e-4)
    assert found["action_p99_error"] == pytest.approx(0.1, rel=1e-4) == found["action_max_error"], "without the masked"
    assert found["action_mse_no_prompt"] == pytest.approx(0.09, rel=1e-4)
    assert found["action_mse_wrong_prompt"] == pytest.approx(0.04 * (2 + 6 + 6) / (2 + 6 + 6 + 6 + 6), rel=1e-4)
    assert found["prompt_gain"] == pytest.approx(1 - 0.01 / 0.09, rel=1e-3)
    assert found["prompt_wins"] == pytest.approx(2 / 3)
    alone = icl_losses.summarize({**arrays, "has_wrong": np.zeros(6)})
    assert found.keys() - alone.keys() == {"prompt_wins", "action_mse_wrong_prompt"}, "one task: no other's prompts"


def test_it_learns_from_the_prompt_what_the_task_is():
    """Tasks are rotations by any angle, actions the rotated states: only the prompt tells which."""
    model = build(action_dim=2, state_dim=2, context=2, prompts=1, prompt_length=3, dim=32, hidden=64, state_noise=0.0)

    def draw(key, rows=64):
        angle, states = jax.random.split(key)
        angle = jax.random.uniform(angle, (rows,), maxval=2 * np.pi)
        turn = jnp.stack([jnp.cos(angle), -jnp.sin(angle), jnp.sin(angle), jnp.cos(angle)], -1).reshape(rows, 2, 2)
        states = jax.random.normal(states, (rows, 5, 2))
        actions = jnp.einsum("bij,btj->bti", turn, states)
        batch = {k: jnp.asarray(v) for k, v in model.example(rows).items()}
        return batch | {"state": states[:, 3:], "action": actions[:, 3:], "prompt_state": states[:, None, :3],
                        "prompt_action": actions[:, None, :3], "task_id": jnp.arange(rows)}  # fmt: skip

    task, optimizer = Task(model, {"l2": 1.0}), optax.adam(3e-3)

    @jax.jit
    def train(key):
        variables = task.init(key, draw(key))

        def step(carry, key):
            variables, state = carry
            gradient = jax.grad(lambda v: task.loss(v, draw(key), key)[0])(variables)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), None

        (variables, _), _ = jax.lax.scan(step, (variables, optimizer.init(variables)), jax.random.split(key, 600))
        return variables, model.apply(variables, draw(jax.random.key(99), 512), method="evaluate")

    _, arrays = train(jax.random.key(0))
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    first = {name: float(np.square(arrays[name] - arrays["action"])[:, 0].mean())
             for name in ("prediction", "prediction_wrong", "prediction_none")}  # fmt: skip
    assert first["prediction"] < 0.2 < 0.8 < min(first["prediction_none"], first["prediction_wrong"]), first


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"state_dim": 0}, "nothing to observe"),
        ({"dim": 18}, "not a multiple of twice the heads"),
        ({"actions": "y"}, "actions is 'y'"),
        ({"actions": "q", "tokenizer": None}, "codes need a tokenizer"),
        ({"tokenizer": tokenizer()}, "raw actions none"),
        ({"actions": "q", "tokenizer": tokenizer(action_dim=4)}, "reads 4 numbers of an action"),
        ({"actions": "z", "fifa_temperature": 0.1}, "actions 'q' or 'z\\+q'"),
        ({"fifa_temperature": 0.1}, "need a tokenizer"),
        ({"future": 2, "supervise_all_steps": False}, "chunks of actions are learned at every step"),
        ({"prompt_loss": True, "causal": False}, "see their own actions"),
        ({"prompt_loss": True, "prompts": 0}, "needs prompts"),
        ({"prompt_dropout": 1.0}, "prompt_dropout is 1.0"),
        ({"cameras": 1, "image_size": 30, "patch": 16}, "does not divide image_size 30"),
        ({"head": flow.Model(width=8, heads=2)}, "heads.flow; a step's actions are read off one state"),
        ({"head": chunk.Model(width=8), "future": 2}, "heads.chunk; a step's actions are read off one state"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_fields_that_cannot_work_are_refused(changes, told):
    with pytest.raises(UserError, match=told):
        build(**changes)


@pytest.mark.parametrize("cameras", [1, 2])
def test_pictures(cameras):
    model = build(cameras=cameras, image_size=16, patch=8, vit_dim=12, vit_depth=1, vit_heads=2)
    batch, predict = random_batch(model), predictor(model)
    before = predict(batch)
    assert before.shape == (ROWS, T, 1, A)
    for view in range(cameras):
        image = batch["image"].copy()
        part = image if cameras == 1 else image[:, :, view]
        part[:, 3] = 255 - part[:, 3]
        change = np.abs(predict({**batch, "image": image}) - before).max((0, 2, 3))
        assert (change[:3] == 0).all() and (change[3:] > 0).all()
    as_float = {name: x.astype(np.float32) / 255 if x.dtype == np.uint8 else x for name, x in batch.items()}
    np.testing.assert_allclose(predict(as_float), before, atol=1e-5)
