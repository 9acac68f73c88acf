"""The convolutional LAQ: layers by hand, shapes, what may reach the decoder, gradients, learning, devices, refusals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers.laq_conv import PairEncoder
from lapa_jax.nn.residual import Down, Norm, ResBlock
from lapa_jax.train.sharding import make_mesh, shard_batch
from lapa_jax.train.task import Task

SMALL = {"name": "tokenizers.laq_conv", "image_size": 16, "channels": (8, 16), "blocks": 1, "groups": 4, "embed": 16,
         "quant_dim": 4, "delta_norm": "running", "codebook_init": "normal"}  # fmt: skip
WEIGHTS = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}


def build(**fields):
    return config.build("lapa_jax.models", {**SMALL, **fields})


def frames(model, count=8, seed=0):
    shape = model.example(count)["frames"].shape
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def init(model, batch=None):
    batch = {"frames": frames(model)} if batch is None else batch
    return jax.jit(Task(model, WEIGHTS).init)(jax.random.key(0), batch)


@functools.cache
def small(**fields):
    model = build(**fields)
    return model, init(model)


@functools.cache
def method_of(model, method):
    return jax.jit(lambda variables, *args: model.apply(variables, *args, method=method))


def run(model, variables, method, *args):
    return method_of(model, method)(variables, *args)


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, groups, scale, bias):
    batch, height, width, channels = x.shape
    y = x.reshape(batch, height * width, groups, channels // groups)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
    return y.reshape(x.shape) * scale + bias


def convolve(x, kernel, bias, stride=1):
    size = kernel.shape[0]
    pad = (size - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i, j in itertools.product(range(rows), range(columns)):
        patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
        out[:, i, j] = np.einsum("bhwc,hwcd->bd", patch, kernel) + bias
    return out


def randomly(params, seed=0):
    """Parameters with random biases and scales too: zeros and ones would hide where they enter."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(p + 0.3 * rng.normal(size=p.shape)), params)


def test_a_residual_block_follows_the_specification_step_by_step():
    x = np.float32(np.random.default_rng(0).normal(size=(2, 5, 4, 8)))
    condition = np.float32(np.random.default_rng(1).normal(size=(2, 3)))
    block = ResBlock(4, jnp.float32)
    params = randomly(jax.jit(block.init)(jax.random.key(0), x, condition)["params"])
    p = tree.flatten(params)
    y = silu(group_norm(x, 4, p["norm_0/norm/scale"], p["norm_0/norm/bias"]))
    y = convolve(y, p["conv_0/kernel"], p["conv_0/bias"])
    y = group_norm(y, 4, p["norm_1/norm/scale"], p["norm_1/norm/bias"])
    scale, shift = np.split(condition @ p["norm_1/condition/kernel"] + p["norm_1/condition/bias"], 2, axis=-1)
    y = silu(y * (1 + scale[:, None, None]) + shift[:, None, None])
    y = x + convolve(y, p["conv_1/kernel"], p["conv_1/bias"])
    np.testing.assert_allclose(jax.jit(block.apply)({"params": params}, x, condition), y, rtol=1e-3, atol=1e-3)


def test_the_way_down_halves_by_strided_convolutions():
    x = np.float32(np.random.default_rng(0).normal(size=(1, 8, 12, 3)))
    down = Down((8, 16), 1, 4, jnp.float32)
    params = randomly(jax.jit(down.init)(jax.random.key(0), x)["params"])
    first, second = jax.jit(down.apply)({"params": params}, x)
    assert first.shape == (1, 4, 6, 8) and second.shape == (1, 2, 3, 16)
    halved = convolve(x, params["down_0"]["kernel"], params["down_0"]["bias"], stride=2)
    expected = jax.jit(ResBlock(4, jnp.float32).apply)({"params": params["block_0_0"]}, np.float32(halved))
    np.testing.assert_allclose(first, expected, rtol=1e-3, atol=1e-3)


def test_poolings_reduce_the_grid_as_they_say():
    pair = np.float32(np.random.default_rng(0).random((2, 2, 16, 16, 3)))
    common = {"channels": (8, 16), "blocks": 1, "groups": 4, "count": 4, "width": 5, "dtype": jnp.float32}
    for pooling in ("average", "projection"):
        encoder = PairEncoder(pooling=pooling, **common)
        params = randomly(jax.jit(encoder.init)(jax.random.key(0), pair)["params"])
        grid = jax.jit(Down((8, 16), 1, 4, jnp.float32).apply)({"params": params["down"]}, pair.reshape(4, 16, 16, 3))
        grid = jax.jit(Norm(4, jnp.float32).apply)({"params": params["norm"]}, grid[-1])
        cells = convolve(np.asarray(grid), params["out"]["kernel"], params["out"]["bias"])  # [4, 4, 4, 5]
        if pooling == "average":
            pooled = np.stack([cells[:, r : r + 2, c : c + 2].mean((1, 2)) for r in (0, 2) for c in (0, 2)], 1)
        else:
            pooled = np.einsum("bcd,kcd->bkd", cells.reshape(4, 16, 5), params["maps"]["maps"])
        expected = pooled[1::2] - pooled[::2]
        np.testing.assert_allclose(jax.jit(encoder.apply)({"params": params}, pair), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pooling", ["projection", "average", "attention"])
def test_the_delta_of_equal_frames_is_zero_and_that_of_swapped_ones_its_negative(pooling):
    """A delta that says what a picture looks like, and not what changes in it, left the codes unused in training."""
    encoder = PairEncoder((8,), 1, 4, 2, 5, pooling, jnp.float32)
    pair = np.float32(np.random.default_rng(0).random((1, 2, 8, 8, 3)))
    params = jax.jit(encoder.init)(jax.random.key(0), pair)
    still, there, back = (np.asarray(jax.jit(encoder.apply)(params, frames))
                          for frames in (pair[:, [0, 0]], pair, pair[:, ::-1]))  # fmt: skip
    np.testing.assert_allclose(still, 0, atol=1e-6)
    np.testing.assert_allclose(there, -back, rtol=1e-5, atol=1e-6)
    assert np.abs(there).max() > 0.01


def test_attention_pooling_sees_where_things_are():
    encoder = PairEncoder((8,), 1, 4, 2, 5, "attention", jnp.float32)
    pair = np.zeros((1, 2, 8, 8, 3), np.float32)
    pair[0, 1, :2, :2] = 1
    params = jax.jit(encoder.init)(jax.random.key(0), pair)
    corner = jax.jit(encoder.apply)(params, pair)
    other = jax.jit(encoder.apply)(params, np.ascontiguousarray(pair[:, :, ::-1, ::-1]))
    assert corner.shape == (1, 2, 5)
    assert np.abs(corner - other).max() > 1e-3 and np.abs(corner[:, 0] - corner[:, 1]).max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": (8, 20), "code_seq_len": 3, "pooling": "attention"},
        {"image_size": (24, 12), "code_seq_len": 6, "pooling": "average"},
        {"image_size": 20, "code_seq_len": 5, "codebook_per_position": True, "codebook_size": 6},
        {"channels": (16, 16, 32), "image_size": 8, "blocks": 2},
        {"quantizer": "fsq", "levels": (3, 4, 5, 3), "codebook_size": 180, "replacement": "none"},
        {"quantizer": "nsvq", "replacement": "residual"},
        {"codebook_update": "gradient", "replacement": "none", "dtype": "bfloat16"},
    ],
    ids=lambda fields: "-".join(str(v) for v in fields.values()) or "default",
)
def test_shapes_of_every_size_that_divides(fields):
    model = build(**fields)
    height, width = model.example(1)["frames"].shape[2:4]

    def everything(batch):
        rngs = {"params": jax.random.key(0), "noise": jax.random.key(1)}
        variables = model.init(rngs, batch, train=True)
        output, _ = model.apply(variables, batch, train=True, mutable=["codebook"], rngs=rngs)
        encoded = model.apply(variables, batch["frames"], method="encode")
        decoded = model.apply(variables, batch["frames"][:, 0], encoded["codes"], method="decode")
        return variables, output, encoded, decoded, model.apply(variables, batch, method="evaluate")

    variables, output, encoded, decoded, arrays = jax.eval_shape(everything, model.example(3))
    length = fields.get("code_seq_len", 4)
    assert output.codes.shape == encoded["codes"].shape == (3, length) and output.codes.dtype == jnp.int32
    names = {"reconstruction", "motion", "coarse", "codebook", "commitment"}
    assert {name: loss.shape for name, loss in output.losses.items()} == dict.fromkeys(names, (3,))
    assert encoded["delta"].shape == (3, length, 4) and encoded["delta"].dtype == jnp.float32
    assert decoded.shape == (3, height, width, 3) and decoded.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert {value.shape[0] for value in arrays.values()} == {3}


def test_encode_and_decode_agree_with_predict():
    model, variables = small(codebook_per_position=True)
    batch = {"frames": frames(model)}
    predicted = run(model, variables, "predict", batch)
    encoded = run(model, variables, "encode", np.float32(batch["frames"]) / 255)
    np.testing.assert_array_equal(encoded["codes"], predicted["codes"])
    decoded = run(model, variables, "decode", batch["frames"][:, 0], encoded["codes"])
    np.testing.assert_allclose(decoded, predicted["reconstruction"], rtol=1e-4, atol=1e-5)


def test_the_second_frame_reaches_the_decoder_through_the_codes_alone():
    model, variables = small()
    batch = jnp.float32(frames(model, 2)) / 255
    codes = run(model, variables, "encode", batch)["codes"]

    def reconstruct(m, frames):
        """From the codes as they are, and through the quantiser."""
        view = m._encode(frames, train=False)
        actions = m.quantization.lookup(codes), m.quantization(view["delta"], train=False)[0]
        return jnp.stack([jnp.sum(m._decode(view, action) ** 2) for action in actions])

    gradients = jax.jit(jax.jacrev(lambda f: model.apply(variables, f, method=reconstruct)))(batch)
    (first, second), (_, through) = np.abs(gradients).max(axis=(1, 3, 4, 5))
    assert first > 0 and second == 0
    assert through > 0, "the gradient must pass the quantiser"


def test_the_first_frame_matters_to_the_decoder_and_so_do_code_and_position():
    model, variables = small()
    first = frames(model, 2)[:, 0]
    decode = lambda codes, frame: np.asarray(run(model, variables, "decode", frame, np.int32([codes])))  # noqa: E731
    base = decode([0, 1, 2, 3], first[:1])
    for other in (decode([0, 1, 2, 3], first[1:]), decode([3, 2, 1, 0], first[:1]), decode([0, 1, 2, 4], first[:1])):
        assert np.abs(base - other).max() > 1e-5


def loss_and_grads(model, variables, batch):
    """The loss, its metrics and gradients, and the deltas that it is of."""

    def loss(params):
        total, (_, metrics) = Task(model, WEIGHTS).loss({**variables, "params": params}, batch, jax.random.key(0))
        return total, metrics

    def everything(params):
        delta, _ = model.apply({**variables, "params": params}, batch["frames"], mutable=["codebook"],
                               method=lambda m, f: m._encode(m._frames(f), train=True)["delta"])  # fmt: skip
        return *jax.value_and_grad(loss, has_aux=True)(params), delta

    (total, metrics), grads, delta = jax.jit(everything)(variables["params"])
    return total, metrics, tree.flatten(grads), np.asarray(delta)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_every_parameter_learns_and_the_commitment_weight_enters_once(update):
    fields = {"codebook_update": update} | ({"replacement": "none"} if update == "gradient" else {})
    model, variables = small(**fields)
    total, metrics, grads, delta = loss_and_grads(model, variables, {"frames": frames(model)})
    assert all(np.any(grad) for grad in grads.values())
    assert ("quantizer/codebook" in grads) == (update == "gradient"), "codes that are averages are no parameters"
    book = variables["params"]["quantizer"]["codebook"][0] if update == "gradient" else (
        variables["codebook"]["quantizer"]["codes"][0])  # fmt: skip
    error = np.min(np.sum((delta[:, :, None] - np.asarray(book)) ** 2, -1), -1).mean() / 4
    assert float(metrics["loss_commitment"]) == pytest.approx(error, rel=1e-3)
    assert float(metrics["loss_codebook"]) == pytest.approx(error if update == "gradient" else 0.0, rel=1e-3)
    expected = metrics["loss_reconstruction"] + metrics["loss_codebook"] + 0.25 * metrics["loss_commitment"]
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


def moving_squares(count, rng):
    """Pairs in which a square of its own colour moves by 4 pixels in one of four directions."""
    pairs = np.full((count, 2, 16, 16, 3), 30, np.uint8)
    for pair in pairs:
        row, column = rng.integers(4, 9, 2)
        down, right = [(4, 0), (-4, 0), (0, 4), (0, -4)][rng.integers(4)]
        pair[0, row : row + 4, column : column + 4] = 230
        pair[1, row + down : row + down + 4, column + right : column + right + 4] = 230
    return {"frames": pairs}


def test_training_finds_codes_that_tell_movements_apart():
    import optax

    model = build(output="residual", view_shift=2, quant_dim=2, codebook_init="data")
    task, rng = Task(model, {**WEIGHTS, "coarse": 0.1, "commitment": 0.005}), np.random.default_rng(0)
    variables = jax.jit(task.init)(jax.random.key(0), moving_squares(32, rng))
    adam = optax.adam(3e-3)

    @jax.jit
    def step(variables, moments, batch, key):
        def loss(params):
            total, (updated, _) = task.loss({**variables, "params": params}, batch, key)
            return total, updated

        grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, moments = adam.update(grads, moments)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, moments

    moments = jax.jit(adam.init)(variables["params"])
    for index in range(60):
        variables, moments = step(variables, moments, moving_squares(32, rng), jax.random.key(index))
    held_out = moving_squares(64, np.random.default_rng(9))
    arrays = {name: np.asarray(value) for name, value in run(model, variables, "evaluate", held_out).items()}
    summary = model.summarize(arrays)
    assert summary["psnr_gain"] > 3 and summary["swap_gap"] > 1 and summary["collapse"] == 0
    # The positions share one codebook: every code is in use at one of them, and none has a position to itself.
    assert len(np.unique(arrays["codes"])) == model.codebook_size and summary["codebook_utilization"] > 0.5


def test_eight_devices_train_as_one():
    model = build(channels=(8,), codebook_per_position=True, replacement_min_share=0.1, codebook_init="data")
    task, batch = Task(model, WEIGHTS), {"frames": frames(model, 16)}

    def train(devices):
        mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)
        same = NamedSharding(mesh, PartitionSpec())
        placed = shard_batch(mesh, batch)
        variables = jax.jit(task.init, out_shardings=same)(jax.random.key(0), placed)

        def step(variables, key):
            def loss(params):
                total, (updated, _) = task.loss({**variables, "params": params}, placed, key)
                return total, updated

            grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
            return {"params": jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], grads), **updated}

        step = jax.jit(step, out_shardings=same)
        for index in range(3):
            variables = step(variables, jax.random.key(index))
        return variables

    many, one = train(jax.devices()), train(jax.devices()[:1])
    for leaf in jax.tree.leaves(many["codebook"]):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, one)


def test_bfloat16_computes_near_float32():
    model, variables = small()
    exact = run(model, variables, "encode", frames(model))["delta"]
    got = run(build(dtype="bfloat16"), variables, "encode", frames(model))["delta"]
    assert got.dtype == jnp.float32
    assert np.abs(got - exact).max() < 0.25 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 18}, "image_size 18 is not divisible by 4"),
        ({"channels": (8, 18)}, "multiples of groups, 4"),
        ({"channels": ()}, "multiples of groups"),
        ({"channels": (12, 16)}, "give a multiple of 8"),
        ({"channels": (8, 4), "image_size": 4}, "to one cell"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"pooling": "average", "code_seq_len": 7}, "code_seq_len 7"),
        ({"pooling": "average", "image_size": 20}, "code_seq_len 4 does not divide the grid of 5x5"),
        ({"blocks": 0}, "blocks is 0"),
        ({"code_seq_len": 0}, "code_seq_len is 0"),
        ({"view_shift": 9}, "view_shift is 9"),
        ({"output": "tanh", "normalization": "imagenet"}, "tanh ends at 1"),
        ({"quantizer": "vqq"}, "did you mean 'vq'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_compiles(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)
