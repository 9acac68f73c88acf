"""The stage-3 policy: its three heads, what they see and learn from, their figures, what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from lapa_jax.core import fields, tree
from lapa_jax.core.errors import UserError
from lapa_jax.data.statistics import column_statistics
from lapa_jax.models import llama
from lapa_jax.models.policies import action_measures, vla_action
from lapa_jax.models.policies.heads import bins, chunk, flow, latent
from lapa_jax.models.policies.heads.base import Context
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.models.vision import dinov2, siglip
from lapa_jax.train.task import Task

ROWS, LENGTH, SIDE, A, T, S, K = 4, 6, 28, 4, 3, 5, 16
CONSTANT, BINARY = 1, 3
TOWER = {"image_size": SIDE, "patch": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 12}
DECODER = {"vocab": 50, "dim": 16, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 24, "head": "none"}
HEADS = {
    "bins": bins.Model(bins=K),
    "chunk": chunk.Model(width=8),
    "latent": latent.Model(width=8, heads=2),
    "codes": latent.Model(width=8, heads=2, context=False),
    "flow": flow.Model(width=8, heads=2, depth=1, steps=3),
}
every_head = pytest.mark.parametrize("head", HEADS)


def filled(head):
    """A head as the model fills it in."""
    return head.clone(action_dim=A, chunk_length=T, binary=(BINARY,), dtype="float32")


def build(head="bins", **changes):
    parts = {"siglip": siglip.Model(**TOWER), "dinov2": dinov2.Model(**TOWER), "llm": llama.Model(**DECODER)}
    values = {"image_size": SIDE, "cameras": 1, "text_length": LENGTH, "action_dim": A, "chunk_length": T,
              "state_dim": S, "constant": (CONSTANT,), "binary": (BINARY,)}  # fmt: skip
    head = HEADS.get(head, head)
    model = vla_action.Model(**{**parts, **values, "head": head, **changes})
    fields.check(model)
    model.check()
    if head is not None:
        head.check()
    return model


def random_batch(model, seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    batch = model.example(rows)
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["text"] = rng.integers(3, 50, batch["text"].shape).astype(np.int32)
    batch["text_mask"] = (np.arange(LENGTH) < rng.integers(2, LENGTH + 1, rows)[:, None]).astype(np.float32)
    batch["action"] = rng.uniform(-1.1, 1.1, batch["action"].shape).astype(np.float32)
    batch["action"][..., CONSTANT] = 0
    batch["action"][..., BINARY] = np.where(batch["action"][..., BINARY] > 0, 1, -1)
    batch["action_mask"] = (np.arange(model.chunk_length) < rng.integers(1, 4, rows)[:, None]).astype(np.float32)
    if model.state_dim:
        batch["state"] = rng.normal(size=batch["state"].shape).astype(np.float32)
    return batch


@functools.cache
def variables_of(model):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.array(0.3 * rng.normal(size=x.shape), x.dtype), expected_variables(model))


def bin_logits(model, batch):
    """Logits f32 [B, T, A, K] of the head of bins."""
    return model.act(model.backbone_states(batch, model.encode_images(batch))[1])


@functools.cache
def _program(model, method):
    return jax.jit(lambda v, b: model.apply(v, b, method=method))


def apply(model, batch, method="evaluate"):
    return jax.tree.map(np.asarray, _program(model, method)(variables_of(model), batch))


@functools.cache
def _learn(model):
    task = Task(model, {"action": 1.0})
    return jax.jit(jax.value_and_grad(lambda v, b: task.loss(v, b, jax.random.key(0))[0]))


def loss(model, batch) -> float:
    batch = {"action_dims": np.ones((ROWS, A), np.float32), **batch}  # always there: one program for all tests
    return float(_learn(model)(variables_of(model), batch)[0])


def counted(batch) -> np.ndarray:
    """bool [B, T, A]: what is learned from."""
    there = np.repeat(batch["action_mask"][..., None] > 0, A, axis=2)
    there[..., CONSTANT] = False
    return there


def test_the_loss_of_bins_is_the_cross_entropy_of_each_dimension():
    model, batch = build(), random_batch(build())
    logits = apply(model, batch, bin_logits).astype(np.float64)
    edges = np.linspace(-1, 1, K + 1)[1:-1]
    terms = np.zeros(batch["action"].shape)
    for place in np.ndindex(*terms.shape):
        action, scores = batch["action"][place], logits[place]
        chosen = int(np.digitize(action, edges))
        if place[-1] == BINARY:
            scores, chosen = scores[[0, -1]], int(action > 0)
        terms[place] = scipy.special.logsumexp(scores) - scores[chosen]
    assert loss(model, batch) == pytest.approx(terms[counted(batch)].mean(), rel=1e-5)
    found = apply(model, batch)
    np.testing.assert_allclose(found["loss"][counted(batch)], terms[counted(batch)], rtol=1e-4)


def test_the_median_of_bins_has_the_smallest_expected_absolute_error():
    model, likely = build(bins.Model(bins=K, decode="median")), build()
    batch = random_batch(model)
    logits = apply(model, batch, bin_logits)
    median, argmax = (apply(m, batch)["prediction"] for m in (model, likely))
    centres = (np.arange(K) + 0.5) / K * 2 - 1
    moved = 0
    for place in np.ndindex(*median.shape):
        if place[-1] == BINARY:
            assert median[place] == argmax[place] and abs(median[place]) == pytest.approx(1)
            continue
        chance = scipy.special.softmax(logits[place].astype(np.float64))
        costs = np.abs(centres[:, None] - centres[None]) @ chance
        chosen = int(np.abs(centres - median[place]).argmin())
        assert costs[chosen] == pytest.approx(costs.min(), abs=1e-5)
        assert median[place] == pytest.approx(centres[chosen], abs=1e-6)
        moved += median[place] != argmax[place]
    assert moved, "and it is not always the most likely"


@pytest.mark.parametrize("head", ["chunk", "latent", "codes"])
def test_the_loss_of_regression_is_the_absolute_error_of_what_counts(head):
    model, batch = build(head), random_batch(build())
    away = np.abs(apply(model, batch)["prediction"] - batch["action"])
    assert loss(model, batch) == pytest.approx(away[counted(batch)].mean(), rel=1e-5)
    dims = np.ones((ROWS, A), np.float32)
    dims[0, 2:] = 0
    narrow = counted(batch) & (dims[:, None] > 0)
    assert loss(model, {**batch, "action_dims": dims}) == pytest.approx(away[narrow].mean(), rel=1e-5)


@every_head
def test_constant_dimensions_and_what_lies_behind_the_end_are_not_learned_from(head):
    model, batch = build(head), random_batch(build())
    other = np.where(counted(batch), batch["action"], 0.7).astype(np.float32)
    assert loss(model, {**batch, "action": other}) == pytest.approx(loss(model, batch), rel=1e-6)


@every_head
def test_actions_of_the_batch_never_reach_a_prediction(head):
    model, batch = build(head), random_batch(build())
    expected = apply(model, batch)["prediction"]
    other = random_batch(model, 7)
    leaked = {**batch, "action": other["action"], "action_mask": other["action_mask"]}
    np.testing.assert_array_equal(apply(model, leaked)["prediction"], expected)


@pytest.mark.parametrize("head", ["chunk", "latent", "codes", "flow"])
def test_pictures_words_and_proprioception_reach_every_action(head):
    model, batch = build(head), random_batch(build())
    batch["text_mask"][:] = 1
    expected = apply(model, batch)["prediction"]
    assert expected.shape == (ROWS, T, A) and expected.dtype == np.float32
    for name in ("image", "text", "state"):
        changed = {**batch, name: np.roll(batch[name], 1, axis=0)}
        moved = np.abs(apply(model, changed)["prediction"] - expected).max(axis=(1, 2))
        assert (moved > 1e-6).all(), name


@every_head
def test_a_gradient_reaches_every_parameter(head):
    model, batch = build(head), random_batch(build())
    batch["text_mask"][:] = 1
    batch["action_dims"] = np.ones((ROWS, A), np.float32)
    flat = tree.flatten(_learn(model)(variables_of(model), batch)[1])
    assert [name for name, value in flat.items() if not np.abs(value).max() > 0] == []


@every_head
def test_padding_of_instructions_is_seen_by_no_head(head):
    model, batch = build(head), random_batch(build())
    other = {**batch, "text": np.where(batch["text_mask"] > 0, batch["text"], 11)}
    np.testing.assert_allclose(apply(model, other)["loss"], apply(model, batch)["loss"], atol=1e-5)


def test_several_cameras_and_no_proprioception():
    model = build(cameras=2, state_dim=0, head="latent")
    batch = random_batch(model)
    assert batch["image"].shape == (ROWS, 2, SIDE, SIDE, 3) and "state" not in batch
    assert "see_state" not in variables_of(model)["params"]
    expected = apply(model, batch)["prediction"]
    second = {**batch, "image": np.concatenate([batch["image"][:, :1], 255 - batch["image"][:, 1:]], axis=1)}
    assert np.abs(apply(model, second)["prediction"] - expected).max() > 1e-4


def test_bins_decode_within_half_a_bin_and_grippers_to_their_two_values():
    head = filled(HEADS["bins"])
    action = np.random.default_rng(0).uniform(-1, 1, (500, T, A)).astype(np.float32)
    chosen = np.asarray(head.bins_of(action))
    fine = [i for i in range(A) if i != BINARY]
    away = np.asarray(head.centres())[chosen] - action
    assert np.abs(away[..., fine]).max() <= 1 / K + 1e-6 and abs(away[..., fine].mean()) < 2e-3
    assert set(np.unique(chosen[..., BINARY])) == {0, K - 1}
    beyond = np.asarray(head.bins_of(np.array([[[-3, 3, -1, 1.0]]], np.float32)))
    assert beyond.tolist() == [[[0, K - 1, 0, K - 1]]]
    model = build()
    found = apply(model, random_batch(model))["prediction"]
    assert set(np.unique(found[..., BINARY])) <= {-1.0, 1.0}
    assert np.abs(found[..., fine][..., None] - np.asarray(head.centres())).min(-1).max() < 1e-6


def test_the_decoder_of_codes_alone_knows_nothing_else():
    """Two inputs with the same probabilities of codes have the same actions: the plan's ablation."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(8), (2, 4)).astype(np.float32)
    seen = [rng.normal(size=(2, 7, 16)).astype(np.float32) for _ in range(2)]
    real = np.ones((2, 7), bool)
    for context in (False, True):
        head = filled(latent.Model(width=8, heads=2, context=context))
        variables = jax.jit(head.init)(jax.random.key(0), probabilities, Context(seen[0], real))
        one, two = (jax.jit(head.apply)(variables, probabilities, Context(each, real)) for each in seen)
        assert np.array_equal(one, two) == (not context)


def test_figures_of_a_data_set():
    rng = np.random.default_rng(0)
    action = rng.normal(size=(300, T, A)).astype(np.float32)
    action[..., BINARY] = np.sign(action[..., BINARY])
    prediction = (0.6 * action + 0.3 * rng.normal(size=action.shape)).astype(np.float32)
    weight = np.repeat((rng.random((300, T, 1)) < 0.8).astype(np.float32), A, axis=2)
    weight[..., CONSTANT] = 0
    weight[:100, :, 2] = 0  # a robot that has no such dimension
    near, losses = rng.random(action.shape) < 0.7, rng.random(action.shape).astype(np.float32)
    arrays = {"action": action, "prediction": prediction, "weight": weight, "near": near, "loss": losses}
    found = action_measures.summarize(arrays, (BINARY,))
    told = {name: [] for name in ("action_mse", "action_mae", "action_r2", "action_distance")}
    for i in (0, 2, BINARY):
        rows = weight[..., i] > 0
        a, p = action[..., i][rows].astype(np.float64), prediction[..., i][rows].astype(np.float64)
        told["action_mse"].append(np.mean((a - p) ** 2))
        told["action_mae"].append(np.mean(np.abs(a - p)))
        told["action_r2"].append(1 - np.sum((a - p) ** 2) / np.sum((a - a.mean()) ** 2))
        told["action_distance"].append(scipy.stats.wasserstein_distance(a, p) / a.std())
        for name, values in told.items():
            assert found[f"{name}_{i}"] == pytest.approx(values[-1], rel=1e-6)
    for name, values in told.items():
        assert found[name] == pytest.approx(np.mean(values), rel=1e-6)
    off = np.abs(action - prediction)
    for name, of in (("", off[weight > 0]), ("_2", off[..., 2][weight[..., 2] > 0])):
        assert found[f"action_p99_error{name}"] == pytest.approx(np.quantile(of, 0.99), rel=1e-5)
        assert found[f"action_max_error{name}"] == pytest.approx(of.max(), rel=1e-6)
    assert f"action_mse_{CONSTANT}" not in found
    right = (np.sign(prediction) == action)[..., BINARY][weight[..., BINARY] > 0]
    assert found["gripper_accuracy"] == pytest.approx(right.mean())
    shares = [near[..., i][weight[..., i] > 0].mean() for i in (0, 2)]
    assert found["bin_accuracy"] == pytest.approx(np.mean(shares))
    assert found["loss"] == pytest.approx(losses[weight > 0].mean(), rel=1e-6)
    assert action_measures.summarize({**arrays, "weight": weight * 0}, (BINARY,)) == {}


def test_a_bin_counts_as_near_when_it_is_at_most_one_away():
    model, batch = build(), random_batch(build())
    found = apply(model, batch)
    width = 2 / K
    # decoded at the centre: of inner actions the distance tells how many bins lie between
    inner = counted(batch) & (np.abs(batch["action"]) < 1)
    inner[..., BINARY] = False
    lower = np.floor((batch["action"] + 1) / width)
    predicted = np.floor((found["prediction"] + 1) / width)
    np.testing.assert_array_equal(found["near"][inner], (np.abs(lower - predicted) <= 1)[inner])


class Source:
    """A source of chunks as `from_data` sees it."""

    vocabulary, label_info = 40, None

    def __init__(self, rows=None, **changes):
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(200, A)) if rows is None else rows
        rows[:, CONSTANT], rows[:, BINARY] = 0.5, np.sign(rows[:, BINARY])
        self._statistics = column_statistics([rows.astype(np.float32)])
        self._batch = {"image": np.zeros((0, 56, 56, 3), np.uint8), "text": np.zeros((0, 9), np.int32),
                       "action": np.zeros((0, T, A), np.float32), **changes}  # fmt: skip

    def batch(self, indices):
        return {name: value for name, value in self._batch.items() if value is not None}

    def meta(self):
        return {"datasets": {"table": {"statistics": {"action": self._statistics}}}}


SPEC = {"name": "policies.vla_action", "llm": {"name": "llama", "vocab": None}}


def test_what_only_the_data_tell():
    found = vla_action.from_data(SPEC, Source(state=np.zeros((0, S), np.float32)), 0)
    wanted = {"action_dim": A, "chunk_length": T, "state_dim": S, "constant": [CONSTANT], "binary": [BINARY],
              "cameras": 1, "image_size": 56, "text_length": 9}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert vla_action.from_data(SPEC, Source(), 0)["state_dim"] == 0


@pytest.mark.parametrize(
    ("spec", "source", "message"),
    [
        ({}, Source(action=None), "data.samples=chunks"),
        ({}, Source(action=np.zeros((0, A), np.float32)), "data.samples=chunks"),
        ({}, Source(history_mask=np.zeros((0, 2), np.float32)), "data.history=0"),
        ({}, Source(text=None), "text of each step"),
        ({"action_dim": 7}, Source(), "action_dim is 7, the data have 4"),
        ({"chunk_length": 8}, Source(), "chunk_length is 8"),
        ({"cameras": 2}, Source(), "cameras is 2"),
    ],
)
def test_data_that_do_not_fit_are_refused(spec, source, message):
    with pytest.raises(UserError, match=message):
        vla_action.from_data({**SPEC, **spec}, source, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": None}, "head is None; name one"),
        ({"head": chunk.Model(width=8, action_dim=4)}, "model.head.action_dim is 4; leave it out"),
        ({"head": flow.Model(width=12, heads=4)}, "head.width 12 is no multiple of twice head.heads, 8"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"head": latent.Model(width=9, heads=2)}, "head.width 9 is no multiple of head.heads, 2"),
        ({"constant": (0, 1, 2, 3), "binary": ()}, "nothing to learn"),
    ],
)
def test_fields_that_cannot_work_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build(**change)


def test_flow_learns_the_velocity_of_noised_chunks_and_follows_it():
    """The contract of pi0, computed another way: a head that knew the velocity would land on the actions."""
    head = filled(flow.Model(width=8, heads=2, depth=1, steps=10))
    rng = np.random.default_rng(0)
    actions = jnp.asarray(rng.uniform(-1, 1, (2, T, A)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 2)

    class Knows(flow.Model):
        """Its velocity is the true one of a chunk: (noised - actions) / share."""

        def __call__(self, hidden, context, noised, share):
            return (noised - actions) / share[:, None, None]

    known = Knows(**{name: getattr(head, name) for name in ("action_dim", "chunk_length", "binary", "dtype", "steps")})
    losses = known.apply({}, None, None, actions, jnp.ones_like(actions), keys, method="loss")
    np.testing.assert_allclose(losses, 0, atol=1e-4)
    found = known.apply({}, None, None, keys, method="sample")
    np.testing.assert_allclose(found, actions, atol=1e-4)


def test_noise_shares_are_those_of_pi0():
    """Beta(1.5, 1), moved to (0.001, 1], by a test of Kolmogorov and Smirnov."""

    class Tells(flow.Model):
        def __call__(self, hidden, context, noised, share):
            self.sow("intermediates", "share", share)
            return noised

    head, zero = Tells(action_dim=1, chunk_length=1, binary=(), dtype="float32"), jnp.zeros((4000, 1, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    _, told = head.apply({}, None, None, zero, zero, keys, method="loss", mutable=["intermediates"])
    shares = (np.asarray(told["intermediates"]["share"][0]) - 0.001) / 0.999
    assert scipy.stats.kstest(shares, scipy.stats.beta(1.5, 1).cdf).pvalue > 0.01
