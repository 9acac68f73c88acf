"""Losses of middle frames and of optical flow: what they are, whom their gradient reaches, and that they cost nothing
where the samples have no such field."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config, tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.models.tokenizers.laq.horizons import similarity
from lapa_jax.train.task import Task
from tests.models.test_few_actions import EACH, MODELS

ROWS = 4
LOSSES = ("reversal", "composition", "midway", "flow", "flow_weighted")


@functools.cache
def small(name):
    """(model with both, its variables)."""
    model = config.build("lapa_jax.models", {**MODELS[name], "horizons": True, "flow": True})
    return model, jax.jit(Task(model, {}).init)(jax.random.key(0), batch_of())


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.random((ROWS, 2, 16, 16, 3), np.float32)
    frames[2, 1] = frames[2, 0]  # in this pair nothing moves
    return {"frames": frames, "middle_frame": rng.random((ROWS, 16, 16, 3), np.float32),
            "flow": rng.normal(size=(ROWS, 4, 4, 2)).astype(np.float32)}  # fmt: skip


@functools.cache
def output(name):
    """(losses of each pair {name: f32 [B]}, {loss: largest gradient {part of the model: value}})."""
    model, variables = small(name)
    batch = batch_of()

    def losses(params):
        state = {key: value for key, value in variables.items() if key != "params"}
        given, _ = model.apply({"params": params, **state}, batch, train=True, mutable=list(state),
                               rngs={"noise": jax.random.key(1)})  # fmt: skip
        return jnp.stack([given.losses[each] for each in LOSSES])

    values = jax.jit(losses)(variables["params"])
    jacobian = jax.jit(jax.jacrev(lambda params: losses(params).sum(1)))(variables["params"])
    reached = {loss: {part: max(float(jnp.abs(x[i]).max()) for x in jax.tree.leaves(of_part))
                      for part, of_part in jacobian.items()} for i, loss in enumerate(LOSSES)}  # fmt: skip
    return dict(zip(LOSSES, np.asarray(values))), reached


def test_vectors_are_alike_by_the_angle_and_the_lengths():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 2, 3)).astype(np.float32)
    assert np.asarray(similarity(a, a)) == pytest.approx(np.ones(5))
    assert (np.asarray(similarity(a, -a)) == 0).all()
    b = rng.normal(size=(5, 2, 3)).astype(np.float32)
    x, y = a.reshape(5, -1), b.reshape(5, -1)
    by_distance = 1 - np.sum((x - y) ** 2, 1) / (np.sum(x**2, 1) + np.sum(y**2, 1))
    assert np.asarray(similarity(a, b)) == pytest.approx(np.maximum(by_distance, 0), abs=1e-6)
    zero = np.zeros((1, 2, 3), np.float32)
    assert float(similarity(zero, zero)[0]) == 0 and np.isfinite(jax.grad(lambda v: similarity(v, v).sum())(zero)).all()


@EACH
def test_each_loss_reaches_what_it_is_about(name):
    values, reached = output(name)
    assert all(np.isfinite(value).all() and value.shape == (ROWS,) for value in values.values())
    assert values["reversal"][2] == 0, "a pair in which nothing moves is its own reverse"
    decoder_free = {"reversal", "composition"}
    for loss in LOSSES:
        assert reached[loss]["encoder"] > 0 or loss == "reversal"
        assert (reached[loss]["decoder"] == 0) == (loss in decoder_free), loss
        assert (reached[loss]["horizon_heads"] > 0) == (loss in ("composition", "midway")), loss


@EACH
@pytest.mark.parametrize("delta_norm", ["running_per_position", "whitened"])
def test_a_pair_and_its_reverse_are_scaled_alike(name, delta_norm):
    model = config.build("lapa_jax.models", {**MODELS[name], "horizons": True, "delta_norm": delta_norm})
    batch = batch_of()
    variables = jax.jit(Task(model, {}).init)(jax.random.key(0), batch)
    other = {key: 3 * value + 0.1 for key, value in variables["codebook"]["normalizer"].items()}
    variables["codebook"]["normalizer"] = other  # of an earlier network, as far from the batch's as can be
    run = jax.jit(lambda v: model.apply(v, batch, train=True, mutable=list(v), rngs={"noise": jax.random.key(1)}))
    given, after = run(variables)
    vectors = lambda frames: model.apply(after, frames, method=lambda m, x: m._rounded(m.encode(x)["delta"]))  # noqa: E731
    ahead, back = (jax.jit(vectors)(frames) for frames in (batch["frames"], batch["frames"][:, ::-1]))
    expected = np.where(np.arange(ROWS) == 2, 0, similarity(ahead, back))
    assert np.asarray(given.losses["reversal"]) == pytest.approx(expected, abs=1e-4) and expected.max() > 0


@EACH
def test_flow_losses_are_those_of_numpy(name):
    model, variables = small(name)
    batch = batch_of()
    run = jax.jit(lambda batch: model.apply(variables, batch, train=False, method=_decoded))
    raw = np.asarray(run(batch), np.float64)
    given = jax.jit(lambda batch: model.apply(variables, batch, train=False))(batch).losses
    cells = np.array([[[raw[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 3:].mean((0, 1)) for j in range(4)]
                       for i in range(4)] for b in range(ROWS)])  # fmt: skip
    assert np.asarray(given["flow"]) == pytest.approx(((cells - batch["flow"]) ** 2).mean((1, 2, 3)), rel=1e-4)
    weight = np.kron(np.hypot(batch["flow"][..., 0], batch["flow"][..., 1]), np.ones((1, 4, 4)))
    error = ((raw[..., :3] - batch["frames"][:, 1]) ** 2).mean(-1)
    by_hand = (weight * error).sum((1, 2)) / weight.sum((1, 2))
    assert np.asarray(given["flow_weighted"]) == pytest.approx(by_hand, rel=1e-4)


def _decoded(model, batch, *, train):
    frames = model._frames(batch["frames"])
    view = model._encode(frames, train=train)
    return model.pixels(view, model.quantization.lookup(model.quantization.nearest(view["delta"])))


@EACH
def test_without_such_fields_nothing_is_traced(name):
    plain = config.build("lapa_jax.models", MODELS[name])
    names, more = (set(tree.flatten(expected_variables(m)["params"])) for m in (plain, small(name)[0]))
    assert {n.split("/")[0] for n in more - names} == {"horizon_heads"}
    batch = plain.example(2)
    variables = jax.eval_shape(Task(plain, {}).init, jax.random.key(0), batch)
    off = Task(plain, {"reconstruction": 1.0, **dict.fromkeys(LOSSES, 0.0)})
    _, (_, metrics) = jax.eval_shape(off.loss, variables, batch, jax.random.key(0))
    assert not {f"loss_{loss}" for loss in LOSSES} & set(metrics)
    for loss, field in (("reversal", "middle_frame"), ("flow", "flow")):
        with pytest.raises(ConfigError, match=f"config.loss.{loss} is 0.1, and the samples have no '{field}': add it"):
            jax.eval_shape(Task(plain, {loss: 0.1}).loss, variables, batch, jax.random.key(0))


def test_features_have_no_flow():
    tower = {"name": "vision.dinov2", "image_size": 16, "patch": 8, "dim": 8, "depth": 1, "heads": 1, "hidden": 8,
             "registers": 0, "layer": -1}  # fmt: skip
    with pytest.raises(UserError, match="flow is predicted beside pixels, and this model predicts features"):
        config.build("lapa_jax.models", {**MODELS["laq"], "target": "features", "tower": tower, "flow": True})

