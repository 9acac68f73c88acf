"""Consistency: its losses, whom their gradient reaches, the averaged parameters of the target, the views of a pair, and
runs on several devices that are interrupted."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config, tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.models.tokenizers.laq.consistency import draw_views
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task
from tests.models.test_few_actions import EACH, MODELS

ROWS, DECAY = 4, 0.75
LOSSES = ("consistency", "variance", "covariance")
OTHER_LOSSES = ("reconstruction", "motion", "coarse", "flow", "midway")


@functools.cache
def small(name, consistency="instead", **fields):
    """(model, its variables, whose target has other parameters than the encoder)."""
    spec = {**MODELS[name], "consistency": consistency, "consistency_decay": DECAY, **fields}
    model = config.build("lapa_jax.models", spec)
    variables = jax.jit(Task(model, {}).init)(jax.random.key(0), model.example(ROWS) | batch_of())
    moved = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return model, {**variables, "target": jax.tree.map(moved, variables["target"])}


def batch_of(seed=0, rows=ROWS):
    return {"frames": np.random.default_rng(seed).random((rows, 2, 16, 16, 3), np.float32)}


def standardized(x):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def frame_features(model, variables):
    """What the encoder itself makes of the frames on its way to deltas, [B, 2, rows, columns, C]."""
    run = lambda v: model.apply(v, batch_of()["frames"], method="encode", capture_intermediates=True)[1]  # noqa: E731
    (made,) = jax.jit(run)(variables)["intermediates"]["encoder"][model.frame_encoder]["__call__"]
    last = made[-1] if isinstance(made, list) else made
    side = model.grid[0]
    return standardized(np.asarray(last).reshape(ROWS, 2, side, side, -1))


@EACH
def test_the_losses_are_those_of_numpy(name):
    model, variables = small(name)
    run = lambda v: model.apply(v, batch_of(), train=False, capture_intermediates=True)  # noqa: E731
    output, made = jax.jit(run)(variables)
    prediction = made["intermediates"]["consistency_head"]["block_1"]["__call__"][0]
    seen = frame_features(model, variables)[:, 0]
    averaged = {model.frame_encoder: variables["target"]["consistency_head"]["encoder"]}
    params = {**variables["params"], "encoder": {**variables["params"]["encoder"], **averaged}}
    target = frame_features(model, {**variables, "params": params})[:, 1]
    error = ((np.asarray(prediction, np.float64) - target) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(output.losses["consistency"], error, rtol=1e-4)

    # Of each cell over the examples; all cells have as many.
    cells = seen.reshape(ROWS, -1, seen.shape[-1]).swapaxes(0, 1)
    covariance = np.mean([np.cov(cell, rowvar=False, bias=True) for cell in cells], 0)
    below = np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
    pairs = ~np.eye(len(covariance), dtype=bool)
    np.testing.assert_allclose(output.losses["variance"], np.full(ROWS, below), rtol=1e-4)
    np.testing.assert_allclose(output.losses["covariance"], np.full(ROWS, (covariance[pairs] ** 2).sum()
                                                                    / len(covariance)), rtol=1e-3)  # fmt: skip


@functools.cache
def reached(name, consistency):
    """{loss: {a parameter, or a part of the target: largest gradient}}."""
    model, variables = small(name, consistency, horizons=True, flow=True)
    batch = batch_of() | {"middle_frame": batch_of(1)["frames"][:, 0], "flow": np.ones((ROWS, 4, 4, 2), np.float32)}
    state = {key: value for key, value in variables.items() if key not in ("params", "target")}

    def losses(trees):
        everything = {**state, **trees}
        given, _ = model.apply(everything, batch, train=True, mutable=[*state, "target"],
                               rngs={"noise": jax.random.key(1)})  # fmt: skip
        return jnp.stack([given.losses[each].sum() for each in (*LOSSES, *OTHER_LOSSES)])

    jacobian = jax.jit(jax.jacrev(losses))({key: variables[key] for key in ("params", "target")})
    return {loss: {part: float(jnp.abs(x[i]).max()) for part, x in tree.flatten(jacobian).items()}
            for i, loss in enumerate((*LOSSES, *OTHER_LOSSES))}  # fmt: skip


def largest(gradients, start):
    return max(value for name, value in gradients.items() if name.startswith(start))


@EACH
@pytest.mark.parametrize("consistency", ["beside", "instead"])
def test_gradients_reach_the_codes_and_never_the_target(name, consistency):
    gradients = reached(name, consistency)
    assert all(largest(of_loss, "target/") == 0 for of_loss in gradients.values())
    behind = {"laq": "project", "laq_conv": "out"}[name]  # the encoder's way from features of frames to deltas
    assert largest(gradients["consistency"], f"params/encoder/{behind}") > 0
    assert largest(gradients["consistency"], "params/consistency_head") > 0
    assert largest(gradients["consistency"], "params/decoder") == 0
    for loss in ("variance", "covariance"):
        assert largest(gradients[loss], "params/encoder/") > 0 and largest(gradients[loss], "params/decoder") == 0
        assert largest(gradients[loss], "params/consistency_head") == 0
    for loss in OTHER_LOSSES:
        assert largest(gradients[loss], "params/decoder") > 0
        assert (largest(gradients[loss], "params/encoder") == 0) == (consistency == "instead"), loss


def trained(task, batches, learning_rate, **how):
    """(state, metrics) after each step of a run on these batches."""
    optim = {"learning_rate": learning_rate, "clip_norm": 1.0, "groups": ((".*", {}),)}
    start = lambda batch: init_state(task, lambda params: make_optimizer(optim, 9, params), 0, batch)  # noqa: E731
    state = jax.jit(start)(batches[0])
    step = jax.jit(make_train_step(task, make_optimizer(optim, 9, state.variables["params"]), seed=0, **how))
    yield state, {}
    for batch in batches:
        state, metrics = step(state, batch)
        yield state, metrics


@pytest.mark.parametrize(("name", "micro_batches"), [("laq", 1), ("laq_conv", 2)])
def test_the_target_is_the_exponential_average_of_the_encoder(name, micro_batches):
    model, _ = small(name)
    task = Task(model, {"consistency": 1.0, "reconstruction": 1.0})
    run = trained(task, [batch_of(seed) for seed in range(7)], 0.02, micro_batches=micro_batches)
    states = [jax.device_get(state.variables) for state, _ in run]
    encoders = [variables["params"]["encoder"][model.frame_encoder] for variables in states]
    targets = [variables["target"]["consistency_head"]["encoder"] for variables in states]
    jax.tree.map(np.testing.assert_array_equal, targets[0], encoders[0])
    # After seven updates: the mean of the first 1 / (1 - decay) = 4, and of the following ones a quarter each.
    weights = [*([DECAY**3 / 4] * 4), *(0.25 * DECAY**n for n in (2, 1, 0))]
    assert sum(weights) == pytest.approx(1)
    expected = jax.tree.map(lambda *each: sum(w * x.astype(np.float64) for w, x in zip(weights, each)), *encoders[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), targets[-1], expected)
    away = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), targets[-1], encoders[-1])
    assert max(jax.tree.leaves(away)) > 1e-3


def test_views_share_where_things_are_and_nothing_else():
    rng = np.random.default_rng(0)
    clips = jnp.asarray(0.4 + 0.2 * rng.random((6, 2, 16, 16, 3), np.float32))
    draw = lambda *kinds: [np.asarray(view) for view in draw_views(clips, jax.random.key(0), kinds, 0.5)]  # noqa: E731
    for view in draw():
        np.testing.assert_array_equal(view, clips)
    one, two = draw("shift")
    np.testing.assert_array_equal(one, two)
    assert sum(np.array_equal(a, b) for a, b in zip(one, clips)) < 3
    one, two = draw("colour")
    assert (np.abs(one - two).max((1, 2, 3, 4)) > 0.01).all() and (np.abs(one - clips).max((1, 2, 3, 4)) > 0.01).all()
    # No pixel of these changes by 0.5, so that all of it is background.
    for number, view in enumerate(draw("background"), 1):
        for frame in range(2):
            np.testing.assert_array_equal(view[:, frame], np.roll(clips[:, 0], -number, 0))


def moving_squares(rng, rows):
    """A batch of squares that move by 4 pixels, each in one of four directions, over a ground of coloured cells."""
    ground = rng.random((rows, 1, 4, 4, 3), np.float32).repeat(4, 2).repeat(4, 3)
    frames = np.repeat(0.1 + 0.4 * ground, 2, axis=1)
    for pair in frames:
        row, column = rng.integers(4, 8, 2)
        down, right = ((0, 4), (0, -4), (4, 0), (-4, 0))[rng.integers(4)]
        pair[0, row : row + 4, column : column + 4] = 0.9
        pair[1, row + down : row + down + 4, column + right : column + right + 4] = 0.9
    return {"frames": frames}


def test_features_become_predictable_and_do_not_collapse_and_the_decoder_learns_what_the_codes_mean():
    spec = {**MODELS["laq_conv"], "output": "residual", "delta_norm": "whitened", "quant_dim": 1,
            "codebook_init": "data", "consistency": "instead", "consistency_views": ("shift",)}  # fmt: skip
    model = config.build("lapa_jax.models", spec)
    weights = {"reconstruction": 1.0, "coarse": 0.1, "consistency": 1.0, "variance": 1.0, "covariance": 0.04}
    rng = np.random.default_rng(0)
    _, *run = trained(Task(model, weights), [moving_squares(rng, 32) for _ in range(100)], 3e-3)
    values = {loss: [float(metrics[f"loss_{loss}"]) for _, metrics in run] for loss in LOSSES}
    # Half of what it is before anything is learned: the codes tell where the square goes.
    assert np.mean(values["consistency"][-10:]) < 0.5 * values["consistency"][0]
    assert values["variance"][-1] < 0.5
    evaluate = jax.jit(lambda variables, batch: model.apply(variables, batch, method="evaluate"))
    arrays = jax.device_get(evaluate(run[-1][0].variables, moving_squares(rng, 256)))
    assert arrays["mse_swapped"].mean() > 1.3 * arrays["mse"].mean()


@EACH
def test_without_it_nothing_of_it_exists(name):
    plain = config.build("lapa_jax.models", MODELS[name])
    names, more = (set(tree.flatten(expected_variables(m))) for m in (plain, small(name)[0]))
    assert {n.split("/")[1] for n in more - names} == {"consistency_head"} and names < more
    assert not any(n.startswith("target/") for n in names)
    variables = jax.eval_shape(Task(plain, {}).init, jax.random.key(0), plain.example(2))
    off = Task(plain, {"reconstruction": 1.0, **dict.fromkeys(LOSSES, 0.0)})
    _, (_, metrics) = jax.eval_shape(off.loss, variables, plain.example(2), jax.random.key(0))
    assert not {f"loss_{loss}" for loss in LOSSES} & set(metrics)
    for loss in LOSSES:
        with pytest.raises(ConfigError, match=f"config.loss.{loss} is 1, and no features are predicted: set"):
            jax.eval_shape(Task(plain, {loss: 1.0}).loss, variables, plain.example(2), jax.random.key(0))


def test_what_cannot_work_is_refused():
    tower = {"name": "vision.dinov2", "image_size": 16, "patch": 8, "dim": 8, "depth": 1, "heads": 1, "hidden": 8,
             "registers": 0, "layer": -1}  # fmt: skip
    refused = [
        ({"target": "features", "tower": tower}, "consistency 'instead' is for models of pixels, and this model"),
        ({"decoder_context": "encoder"}, "consistency 'instead' needs decoder_context 'patch_embedding' or 'own'"),
        ({"consistency_views": ("shift", "color")}, r"consistency_views\[1\] is 'color'; did you mean 'colour'"),
        ({"consistency_decay": 1.0}, "consistency_decay is 1.0; give at least 0 and less than 1"),
    ]
    for fields, message in refused:
        with pytest.raises(UserError, match=message):
            config.build("lapa_jax.models", {**MODELS["laq"], "consistency": "instead", **fields})


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """(config of a run on eight devices that share parameters and batch, its folder)."""
    given = config.load(f"{root}/configs/laq_conv.py:test+consistency", ["--config.mesh.fsdp=2"])
    folder = tmp_path_factory.mktemp("run") / "run"
    train(given, folder)
    return given, folder


def losses_of(folder):
    return [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]


def test_an_interrupted_run_goes_on_with_the_same_target(run, tmp_path):
    given, folder = run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "4")
    train(given, again)
    ours, theirs = (tree.flatten(load_for_inference(each, 4).variables) for each in (folder, again))
    assert any(name.startswith("target/") for name in ours) and ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert lapa_jax.load(again).encode(np.zeros((3, 2, 32, 32, 3), np.uint8)).shape == (3, 4)


def test_eight_devices_learn_what_one_does(run, one_device, tmp_path):
    given, folder = run
    alone = given.copy_and_resolve_references()
    alone.mesh.fsdp = 1
    train(alone, tmp_path / "run")
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(folder), rtol=1e-3)
