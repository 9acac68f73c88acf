"""The FSQ tokenizer as a whole: masks, gradients, grippers, codes, what the data tell it, refusals."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lapa_jax
from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.statistics import column_statistics
from lapa_jax.models import pretrained
from lapa_jax.models.tokenizers.fsq import from_data
from tests.data.samples.make import write

SMALL = {"name": "tokenizers.fsq", "action_dim": 3, "low": (-1.0, -1.0, -1.0), "high": (1.0, 1.0, 1.0),
         "grippers": (2,), "chunk_length": 6, "tokens": 2, "levels": (5, 4, 3), "patch": 2, "dim": 16,
         "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "dim_head": 8, "error": "absolute"}  # fmt: skip


def build(**fields):
    return config.build("lapa_jax.models", {**SMALL, **fields})


def batch(model, count=4, seed=0, length=None):
    """Chunks of which the first `length` steps exist, all where None; the last dimension is -1 or 1."""
    shape = model.example(count)["action"].shape
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.9, 0.9, shape).astype(np.float32)
    actions[..., -1] = np.sign(actions[..., -1])
    mask = np.float32(np.arange(shape[1]) < (shape[1] if length is None else length))
    return {"action": actions, "action_mask": np.broadcast_to(mask, shape[:2])}


@functools.cache
def small(**fields):
    """A model whose features are spread over the levels, as they are after training."""
    model = build(**fields)
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), model.example(1))
    out = variables["params"]["encoder"]["out"]
    wide = {**variables["params"]["encoder"], "out": {**out, "kernel": out["kernel"] * 3}}
    return model, {"params": {**variables["params"], "encoder": wide}}


@functools.cache
def jitted(model, method):
    return jax.jit(lambda variables, *args: model.apply(variables, *args, method=method))


def run(model, variables, method, *args):
    return jitted(model, method)(variables, *args)


def outputs_of_codes(model, variables, data):
    """What the decoder gives for the codes of the data: actions, and logits of grippers."""
    codes = run(model, variables, "encode", data)["codes"]
    return run(model, variables, lambda m, c: m._outputs(m.quantizer.lookup(c)), codes)


@functools.cache
def jitted_call(model):
    return jax.jit(lambda variables, data: model.apply(variables, data, train=True))


def forward(model, variables, data):
    return jitted_call(model)(variables, data)


@functools.cache
def jitted_gradient(model, name):
    def loss(params, data):
        return model.apply({"params": params}, data, train=True).losses[name].sum()

    return jax.jit(jax.grad(loss))


def gradient(model, variables, data, name):
    return jitted_gradient(model, name)(variables["params"], data)


@pytest.mark.parametrize("fields", [
    {"chunk_length": 1, "tokens": 1, "patch": 1}, {"chunk_length": 9, "tokens": 9, "patch": 3, "levels": (9, 9)},
    {"chunk_length": 7, "tokens": 2, "patch": 7, "action_dim": 1, "low": (0.0,), "high": (1.0,), "grippers": ()},
])  # fmt: skip
def test_shapes_of_every_size(fields):
    model = build(**fields)

    def everything(data):
        variables = model.init(jax.random.key(0), data, train=True)
        codes = model.apply(variables, data, method="encode")["codes"]
        return model.apply(variables, data, train=True), codes, model.apply(variables, codes, method="decode")

    output, codes, actions = jax.eval_shape(everything, batch(model, 3))
    assert output.codes.shape == codes.shape == (3, model.tokens) == (3, len(model.codebook_sizes))
    assert codes.dtype == jnp.int32
    assert {loss.shape for loss in output.losses.values()} == {(3,)}
    assert actions.shape == (3, model.chunk_length, model.action_dim) and actions.dtype == jnp.float32


@pytest.mark.parametrize("length", [1, 3, 4])
@pytest.mark.parametrize("padding", [7.0, -1e30, np.nan])
def test_what_is_masked_influences_nothing(length, padding):
    model, variables = small()
    clean = batch(model, length=length)
    dirty = {**clean, "action": clean["action"].copy()}
    dirty["action"][:, length:] = padding
    a, b = (forward(model, variables, data) for data in (clean, dirty))
    np.testing.assert_array_equal(a.codes, b.codes)
    for name in a.losses:
        np.testing.assert_array_equal(a.losses[name], b.losses[name])
    grads = [gradient(model, variables, data, "reconstruction") for data in (clean, dirty)]
    jax.tree.map(np.testing.assert_array_equal, *grads)


def test_the_mask_itself_is_seen():
    model, variables = small()
    whole, part = batch(model), batch(model, length=3)
    whole["action"][:, 3:] = 0
    part["action"] = whole["action"]
    features = lambda m, d: m._features(*m._chunks(d))  # noqa: E731
    a, b = (run(model, variables, features, data) for data in (whole, part))
    assert np.abs(a - b).max() > 1e-3, "three zero actions are not the end of an episode"


def test_losses_are_masked_sums_over_what_a_whole_chunk_has():
    model, variables = small(levels=(5, 4, 3), high=(1.0, 0.5, 1.0))
    data = batch(model, length=4)
    data["action"][:, :, 1] = np.minimum(data["action"][:, :, 1], 0.5)
    outputs = outputs_of_codes(model, variables, data)
    got, x, y = forward(model, variables, data).losses, np.float64(data["action"]), np.float64(outputs)
    for row in range(len(x)):
        costs, entropies = [], []
        for t in range(4):
            for d, high in ((0, 1.0), (1, 0.5)):
                overshot = x[row, t, d] >= high and y[row, t, d] > x[row, t, d]
                costs.append(0.0 if overshot else abs(y[row, t, d] - x[row, t, d]))
            p = 1 / (1 + np.exp(-y[row, t, 2]))
            entropies.append(-np.log(p if x[row, t, 2] > 0 else 1 - p))
        assert got["reconstruction"][row] == pytest.approx(np.sum(costs) / (6 * 2), rel=1e-4)
        assert got["gripper"][row] == pytest.approx(np.sum(entropies) / 6, rel=1e-4)


def test_each_loss_reaches_its_own_dimensions_and_both_halves():
    model, variables = small()
    data = batch(model)

    reconstruction, gripper = (tree.flatten(gradient(model, variables, data, n)) for n in ("reconstruction", "gripper"))
    for found, own, other in ((reconstruction, (0, 1, 3, 4), (2, 5)), (gripper, (2, 5), (0, 1, 3, 4))):
        bias = np.asarray(found["decoder/out/bias"])
        assert np.all(bias[list(own)] != 0) and not np.any(bias[list(other)])
        assert all(np.any(grad) for name, grad in found.items() if name.startswith("encoder/")), "no gradient arrives"
    dead = {n for n in reconstruction if not (np.any(reconstruction[n]) or np.any(gripper[n]))}
    assert dead == set()


def test_without_grippers_that_loss_is_zero_and_constant_dimensions_count_nowhere():
    model, variables = small(grippers=(), low=(-1.0, -1.0, 0.0), high=(1.0, 1.0, 0.0))
    data = batch(model)
    data["action"][..., 2] = 0
    assert not np.any(forward(model, variables, data).losses["gripper"])
    bias = np.asarray(gradient(model, variables, data, "reconstruction")["decoder"]["out"]["bias"])
    assert not np.any(bias[[2, 5]]) and np.all(bias[[0, 1, 3, 4]] != 0)
    decoded = run(model, variables, "decode", run(model, variables, "encode", data)["codes"])
    assert not np.any(np.asarray(decoded)[..., 2]), "a constant dimension is decoded to its constant"


def test_dimensions_that_a_dataset_lacks_do_not_count():
    model, variables = small(grippers=())
    data = batch(model)
    dims = np.float32([[1, 1, 0]] * 4)
    loss = lambda d: forward(model, variables, {**d, "action_dims": dims}).losses["reconstruction"]  # noqa: E731
    outputs = outputs_of_codes(model, variables, data)
    error = np.abs(np.asarray(outputs) - data["action"])[..., :2]
    np.testing.assert_allclose(loss(data), error.mean((1, 2)), rtol=1e-4)


def test_every_code_decodes_and_comes_back_from_its_index():
    model, variables = small()
    size = model.codebook_sizes[0]
    assert size == 60
    codes = np.stack([np.arange(size), np.arange(size)[::-1]], 1).astype(np.int32)
    back = run(model, variables, lambda m, c: m.quantizer._index(jnp.round(
        m.quantizer.lookup(c) * jnp.asarray([2, 2, 1]))), codes)  # fmt: skip
    np.testing.assert_array_equal(back, codes)
    actions = np.asarray(run(model, variables, "decode", codes))
    assert np.isfinite(actions).all() and np.abs(actions).max() <= 1
    assert len(np.unique(actions.round(5), axis=0)) == size, "codes that decode alike tell nothing"


@pytest.mark.parametrize("error", ["absolute", "squared"])
def test_the_search_is_coordinate_descent_on_what_is_decoded(error):
    """Against a search in numpy, code by code, that knows the decoder by a table of all its outputs."""
    model, variables = small(tokens=1, search=2, error=error)
    data = batch(model, 6, length=4)
    table = np.asarray(run(model, variables, "decode", np.arange(60, dtype=np.int32)[:, None]))
    start = run(*small(tokens=1), "encode", data)["codes"]
    cost = (np.abs if error == "absolute" else np.square)(table - data["action"][:, None])[:, :, :4].mean((2, 3))
    expected = []
    for row, code in enumerate(np.asarray(start)[:, 0]):
        for i in range(2 * 3):
            size, basis = ((5, 1), (4, 5), (3, 20))[i % 3]
            for step in (-1, 1):
                level = code // basis % size + step
                other = code + step * basis
                if 0 <= level < size and cost[row, other] < cost[row, code]:
                    code = other
        expected.append(code)
    got = run(model, variables, "encode", data)["codes"]
    np.testing.assert_array_equal(got[:, 0], expected)
    assert np.any(got != start), "nothing was left to improve: the test tests nothing"
    dirty = {**data, "action": np.where(data["action_mask"][..., None] > 0, data["action"], np.nan)}
    np.testing.assert_array_equal(run(model, variables, "encode", dirty)["codes"], got)


def test_several_sweeps_over_several_codes_never_cost_more():
    model, variables = small(search=3)
    data = batch(model, 8)
    error = lambda m: np.abs(run(m, variables, "predict", data)["actions"] - data["action"]).mean((1, 2))  # noqa: E731
    plain, once, thrice = (error(small(search=n)[0]) for n in (0, 1, 3))
    assert np.all(once <= plain + 1e-6) and np.all(thrice <= once + 1e-6) and thrice.mean() < plain.mean()
    codes = np.asarray(run(model, variables, "encode", data)["codes"])
    assert codes.min() >= 0 and codes.max() < 60


def test_encode_decode_predict_evaluate_and_the_loss_agree():
    model, variables = small()
    data = {**batch(model, 5, length=5), "episode_id": np.arange(5, dtype=np.int32)}
    codes = run(model, variables, "encode", data)["codes"]
    np.testing.assert_array_equal(codes, forward(model, variables, data).codes)
    np.testing.assert_array_equal(codes, run(model, variables, "encode", data)["codes"], "encoding draws nothing")
    arrays = {k: np.asarray(v) for k, v in run(model, variables, "evaluate", data).items()}
    np.testing.assert_array_equal(arrays["codes"], codes)
    decoded = run(model, variables, "decode", codes)
    np.testing.assert_array_equal(arrays["reconstruction"], decoded)
    np.testing.assert_array_equal(run(model, variables, "predict", data)["actions"], decoded)
    assert {len(v) for v in arrays.values()} == {5} and {"episode_id", "action_mask"} <= arrays.keys()


def test_the_summary_is_what_numpy_finds():
    model, variables = small()
    data = {**batch(model, 8, length=5), "episode_id": np.arange(8, dtype=np.int32)}
    arrays = {k: np.asarray(v) for k, v in run(model, variables, "evaluate", data).items()}
    summary = model.summarize(arrays)
    x, y = (np.float64(arrays[name])[:, :5].reshape(-1, 3) for name in ("action", "reconstruction"))
    assert summary["action_mse"] == pytest.approx(((x - y) ** 2).mean(), rel=1e-5)
    assert summary["action_mae_1"] == pytest.approx(np.abs(x - y)[:, 1].mean(), rel=1e-5)
    assert summary["action_p99_error"] == pytest.approx(np.quantile(np.abs(x - y), 0.99), rel=1e-5)
    assert summary["action_max_error"] == pytest.approx(np.abs(x - y).max(), rel=1e-5)
    assert summary["action_p99_error_1"] == pytest.approx(np.quantile(np.abs(x - y)[:, 1], 0.99), rel=1e-5)
    assert summary["action_max_error_2"] == pytest.approx(np.abs(x - y)[:, 2].max(), rel=1e-5)
    r2 = 1 - ((x - y) ** 2).mean(0) / x.var(0)
    assert summary["action_r2_0"] == pytest.approx(r2[0], rel=1e-5)
    assert summary["action_r2"] == pytest.approx(r2.mean(), rel=1e-5)
    assert summary["gripper_accuracy"] == pytest.approx(((x > 0) == (y > 0))[:, 2].mean())
    digits = arrays["codes"][..., None] // [1, 5, 20] % [5, 4, 3]
    used = np.mean([len(np.unique(digits[..., i])) / n for i, n in enumerate((5, 4, 3))])
    assert summary["level_utilization"] == pytest.approx(used)
    used = np.mean([len(np.unique(position)) / 60 for position in arrays["codes"].T])
    assert summary["codebook_utilization"] == pytest.approx(used)
    assert summary["bits_per_chunk"] == pytest.approx(2 * np.log2(60)) and summary["tokens_per_chunk"] == 2


def test_bfloat16_computes_in_half_and_quantises_in_single_precision():
    model, variables = small()
    half = build(dtype="bfloat16")
    exact, got = (run(m, variables, lambda m, d: m._features(*m._chunks(d)), batch(m)) for m in (model, half))
    assert got.dtype == jnp.float32 and np.abs(got - exact).max() < 0.25 * np.abs(exact).max()
    steps = np.asarray(got) / np.float32(np.asarray(got).astype(jnp.bfloat16))
    assert np.any(steps != 1), "the features were rounded to bfloat16 before they were quantised"
    init = jax.eval_shape(functools.partial(half.init, train=True), jax.random.key(0), half.example(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    assert forward(half, variables, batch(half)).losses["reconstruction"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": (5, 2)}, "feature of 2 levels; give at least 3: .* slope has vanished"),
        ({"levels": ()}, "levels is"),
        ({"tokens": 7}, "tokens is 7 for chunks of 6 steps"),
        ({"tokens": 0}, "tokens is 0"),
        ({"patch": 4}, "patch 4 does not divide chunk_length 6"),
        ({"action_dim": None}, "action_dim is None; the data tell it"),
        ({"low": None}, "low has 0 numbers for 3"),
        ({"high": (1.0,)}, "high has 1 numbers for 3"),
        ({"grippers": (3,)}, "gripper dimension 3 does not exist"),
        ({"search": -1}, "search is -1"),
        ({"error": "absolut"}, "did you mean 'absolute'"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"level": (5,)}, "did you mean 'levels'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_compiles(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


def test_chunks_of_another_length_or_width_are_refused():
    model, variables = small()
    for shape in ((2, 5, 3), (2, 7, 3), (2, 6, 2)):
        with pytest.raises(UserError, match="a shorter chunk is filled up and masked, a longer one cut"):
            run(model, variables, "encode", {"action": np.zeros(shape), "action_mask": np.ones(shape[:2])})
    with pytest.raises(UserError, match=r"codes have shape \(2, 3\)"):
        run(model, variables, "decode", np.zeros((2, 3), np.int32))


def test_a_saved_model_gives_the_same_codes_and_actions(tmp_path):
    model, variables = small()
    pretrained.save_pretrained(tmp_path / "x", SMALL, variables, {"config": {"model": SMALL}, "datasets": {}})
    loaded = lapa_jax.load(tmp_path / "x")
    codes = run(model, variables, "encode", batch(model))["codes"]
    np.testing.assert_array_equal(run(loaded.model, loaded.variables, "encode", batch(model))["codes"], codes)
    np.testing.assert_array_equal(run(loaded.model, loaded.variables, "decode", codes),
                                  run(model, variables, "decode", codes))  # fmt: skip


def dataset(rows, names=None, mode="q01_q99"):
    """What `from_data` sees of a source of chunks."""
    feature = {"shape": [rows.shape[1]], **({"names": names} if names else {})}
    return types.SimpleNamespace(statistics={"action": column_statistics([np.float32(rows)])},
                                 shards=types.SimpleNamespace(features={"action": feature}),
                                 options=types.SimpleNamespace(normalize=mode))  # fmt: skip


def rows(seed=0):
    """Continuous; two-valued; constant; continuous."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(500, 4)).astype(np.float32)
    values[:, 1], values[:, 2] = 10.0 * (values[:, 1] > 0.3), 7.0
    return values


def test_the_data_tell_width_ends_and_grippers():
    values = rows()
    found = from_data({**SMALL, "action_dim": None, "low": None, "high": None, "grippers": None},
                      dataset(values, ["x", "y", "gripper_2", "Gripper"]), 0)  # fmt: skip
    assert found["action_dim"] == 4 and found["grippers"] == [1, 3], "by values, by name; not what never moves"
    q01, q99 = np.quantile(np.float64(values[:, 0]), [0.01, 0.99])
    ends = 2 * (np.array([values[:, 0].min(), values[:, 0].max()]) - q01) / (q99 - q01) - 1
    np.testing.assert_allclose([found["low"][0], found["high"][0]], ends, rtol=1e-5)
    assert (found["low"][1], found["high"][1]) == (-1, 1) and found["low"][2] == found["high"][2] == 0
    assert found["tokens"] == SMALL["tokens"]
    config.build("lapa_jax.models", json.loads(json.dumps(found))).check()
    assert from_data({"grippers": []}, dataset(values), 0)["grippers"] == [], "what the config says goes first"
    with pytest.raises(UserError, match="model.action_dim is 3 and the data's actions have 4"):
        from_data({"action_dim": 3}, dataset(values), 0)


def test_of_several_datasets_a_gripper_is_one_in_all_that_move_it():
    a, b, c = rows(0), rows(1)[:, :3] * 2, rows(2)
    c[:, 1] = 5.0
    parts = {"a": dataset(a, ["x", "y", "z", "gripper"]), "b": dataset(b, mode="none"), "c": dataset(c)}
    found = from_data({}, types.SimpleNamespace(sources=parts), 0)
    assert found["action_dim"] == 4 and found["grippers"] == [1], "3 is a gripper in a, and none in c"
    assert found["high"][0] == pytest.approx(b[:, 0].max()) and found["low"][1] == -1 and found["high"][1] == 20


def test_it_trains_on_two_datasets_through_the_pipeline(tmp_path):
    parts = tuple({"path": str(write(tmp_path / name, {"train": [[9, 8]], "val": [[7]]}, cameras=(),
                                     widths={"action": width})), "name": name, "weight": 1.0}
                  for name, width in (("a", 3), ("b", 2)))  # fmt: skip
    source = pipeline.build({"samples": "chunks", "fields": ("action",), "chunk_length": 6, "normalize": "q01_q99",
                             "mixture": parts}, "train")  # fmt: skip
    model = config.build("lapa_jax.models", from_data({**SMALL, "low": None, "high": None}, source, 0))
    data = source.batch(range(len(source)))
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), data)
    arrays = {k: np.asarray(v) for k, v in run(model, variables, "evaluate", data).items()}
    summary = model.summarize(arrays)
    counts = np.float64(data["action_mask"][..., None] * data["action_dims"][:, None])
    error = (arrays["reconstruction"] - data["action"]) ** 2
    assert summary["action_mse"] == pytest.approx((error * counts).sum() / counts.sum(), rel=1e-5)
    losses = forward(model, variables, data).losses["reconstruction"]
    assert np.isfinite(losses).all() and (losses > 0).all()


def test_training_brings_the_error_down_far_below_the_mean_predictor():
    """Chunks on a curve of two dimensions: two tokens of 60 codes can tell them apart."""
    rng = np.random.default_rng(0)
    phase, size = rng.uniform(0, 2 * np.pi, (256, 1)), rng.uniform(0.3, 0.9, (256, 1))
    steps = phase + np.arange(6) * 0.4
    actions = np.stack([size * np.sin(steps), size * np.cos(steps), np.sign(np.sin(steps))], -1).astype(np.float32)
    data = {"action": actions, "action_mask": np.ones((256, 6), np.float32)}
    model = build(dim=32)
    params = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), data)["params"]
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        loss = lambda p: sum(x.mean() for x in model.apply({"params": p}, data, train=True).losses.values())  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(300):
        params, state = step(params, state)
    summary = model.summarize({k: np.asarray(v) for k, v in run(model, {"params": params}, "evaluate", data).items()})
    assert summary["action_r2"] > 0.85 and summary["gripper_accuracy"] > 0.95
    assert summary["level_utilization"] == 1 and summary["codebook_utilization"] > 0.25
