"""LAQ as a whole: shapes, what may and may not reach the decoder, counting, evaluation, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.pretrained import expected_variables

SMALL = {"name": "tokenizers.laq", "image_size": 16, "patch_size": 4, "dim": 16, "quant_dim": 4, "heads": 2,
         "dim_head": 8, "spatial_depth": 1, "temporal_depth": 1, "decoder_depth": 1}  # fmt: skip


def build(**fields):
    return config.build("lapa_jax.models", {**SMALL, **fields})


def frames(model, count=4, seed=0):
    shape = model.example(count)["frames"].shape
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def init(model, batch=None):
    batch = {"frames": frames(model)} if batch is None else batch
    rngs = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    return jax.jit(functools.partial(model.init, train=True))(rngs, batch)


@functools.cache
def jitted(model, method):
    return jax.jit(lambda variables, *args: model.apply(variables, *args, method=method))


def run(model, variables, method, *args):
    return jitted(model, method)(variables, *args)


@functools.cache
def small():
    """A model whose codebook is of the size of its deltas, so that several codes are in use."""
    model = build(codebook_init="data", delta_norm="running")
    return model, init(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": 16, "patch_size": 4, "code_seq_len": 1},
        {"image_size": (8, 16), "patch_size": 4, "code_seq_len": 2},
        {"image_size": (24, 12), "patch_size": 3, "code_seq_len": 8},
        {"image_size": 28, "patch_size": 4, "code_seq_len": 4},
        {"image_size": 20, "patch_size": 5, "code_seq_len": 16},
        {"image_size": (12, 20), "patch_size": 4, "code_seq_len": 15, "codebook_size": 5, "layout": "official"},
        {"image_size": 16, "patch_size": 8, "code_seq_len": 4, "pooling": "maps"},
    ],
    ids=lambda fields: "-".join(str(v) for v in fields.values()),
)
def test_shapes_of_every_size_that_divides(fields):
    model = build(**fields)
    height, width = model.example(1)["frames"].shape[2:4]

    def everything(batch):
        rngs = {"params": jax.random.key(0), "noise": jax.random.key(1)}
        variables = model.init(rngs, batch, train=True)
        output, _ = model.apply(variables, batch, train=True, mutable=["codebook"], rngs=rngs)
        encoded = run(model, variables, "encode", batch["frames"])
        decoded = run(model, variables, "decode", batch["frames"][:, 0], encoded["codes"])
        return output, encoded, decoded, run(model, variables, "predict", batch)

    output, encoded, decoded, predicted = jax.eval_shape(everything, model.example(3))
    length = fields["code_seq_len"]
    assert output.codes.shape == encoded["codes"].shape == predicted["codes"].shape == (3, length)
    assert output.codes.dtype == jnp.int32
    assert {loss.shape for loss in output.losses.values()} == {(3,)}
    assert encoded["delta"].shape == (3, length, 4)
    assert decoded.shape == predicted["reconstruction"].shape == (3, height, width, 3)
    assert decoded.dtype == jnp.float32


def test_encode_and_decode_agree_with_predict_and_accept_both_kinds_of_frames():
    model, variables = small()
    batch = {"frames": frames(model)}
    predicted = run(model, variables, "predict", batch)
    as_floats = np.float32(batch["frames"]) / 255
    encoded = run(model, variables, "encode", as_floats)
    np.testing.assert_array_equal(encoded["codes"], predicted["codes"])
    decoded = run(model, variables, "decode", batch["frames"][:, 0], encoded["codes"])
    np.testing.assert_allclose(decoded, predicted["reconstruction"], rtol=1e-4, atol=1e-5)
    output = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)
    mse = np.mean((np.asarray(decoded) - as_floats[:, 1]) ** 2, (1, 2, 3))
    np.testing.assert_allclose(output.losses["reconstruction"], mse, rtol=1e-4)


def test_the_second_frame_reaches_the_decoder_through_the_codes_alone():
    model, variables = small()
    batch = np.float32(frames(model)) / 255
    codes = run(model, variables, "encode", batch)["codes"]

    def reconstruct(m, frames):
        view = m._encode(frames, train=False)
        return jnp.sum(m._decode(view, m.quantization.lookup(codes)))

    def influence(model, variables):
        grad = jax.jit(jax.grad(lambda f: model.apply(variables, f, method=reconstruct)))(jnp.asarray(batch))
        return np.abs(grad[:, 1]).max()

    assert influence(model, variables) == 0
    trap = build(codebook_init="data", delta_norm="running", decoder_context="encoder")
    assert influence(trap, variables) > 0, "the trap's wiring must leak, that is what it is kept for"


def test_the_patch_embedding_learns_through_the_codes_alone():
    model, variables = small()
    batch = {"frames": frames(model)}

    def without_codes(m):
        view = m._encode(m._frames(batch["frames"]), train=False)
        action = m.quantization.lookup(m.quantization.nearest(view["delta"]))
        return jnp.sum(m._decode(view, jax.lax.stop_gradient(action)))

    loss = lambda params: model.apply({**variables, "params": params}, method=without_codes)  # noqa: E731
    grads = tree.flatten(jax.jit(jax.grad(loss))(variables["params"]))
    for name, grad in grads.items():
        if name.startswith("encoder/patch_embedding"):
            assert not np.any(grad), name
    assert np.any(grads["decoder/to_pixels/kernel"])


def test_a_stem_of_convolutions_sees_motion_and_its_decoder_looks_for_itself():
    model = build(stem="conv", decoder_context="own", codebook_init="data", delta_norm="running")
    batch = {"frames": frames(model)}
    variables = init(model, batch)
    names = tree.flatten(variables["params"])
    # Two halvings to patches of four pixels, in the encoder and again in front of the decoder, to widths 4 and 8 of 16.
    for place in ("encoder/patch_embedding", "embedding"):
        assert names[f"{place}/down/down_0/kernel"].shape == (4, 4, 3, 4)
        assert names[f"{place}/project/kernel"].shape == (8, 16)

    def embedded(frames):
        return model.apply(variables, frames, method=lambda m, x: m.encoder.embed(x)).reshape(len(frames), 4, 4, 16)

    # Convolutions: what moves by a whole patch moves its token by a cell, away from the border, whose zeros group norm
    # sees too; a black surround keeps its statistics.
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[:, 4:8, 4:8] = np.random.default_rng(0).random((4, 4, 3))
    here, there = embedded(image), embedded(np.roll(image, 4, axis=2))
    np.testing.assert_allclose(here[:, 1, 1], there[:, 1, 2], atol=0.2)
    assert np.abs(here[:, 1, 1] - here[:, 1, 2]).max() > 0.5

    def reconstruction(params):
        view = model.apply({**variables, "params": params}, jnp.float32(batch["frames"]) / 255,
                           method=lambda m, x: m._decode(m._encode(x, train=False), jnp.zeros((4, 4, 4))))  # fmt: skip
        return jnp.sum(jnp.square(view))

    grads = tree.flatten(jax.jit(jax.grad(reconstruction))(variables["params"]))
    assert np.any(grads["embedding/project/kernel"]), "reconstruction trains what the decoder looks through"
    assert not any(np.any(grad) for name, grad in grads.items() if name.startswith("encoder/patch_embedding"))
    codes = run(model, variables, "encode", batch["frames"])["codes"]
    view = run(model, variables, "predict", batch)["reconstruction"]
    np.testing.assert_allclose(run(model, variables, "decode", batch["frames"][:, 0], codes), view, atol=1e-5)


def test_order_of_the_codes_matters_to_the_decoder():
    model, variables = small()
    first = frames(model)[:, 0]
    a = run(model, variables, "decode", first, np.int32([[0, 1, 2, 3]] * 4))
    b = run(model, variables, "decode", first, np.int32([[3, 2, 1, 0]] * 4))
    assert np.abs(a - b).max(axis=(1, 2, 3)).min() > 1e-5


def test_training_counts_usage_and_its_noise_follows_the_key():
    model, variables = small()
    batch = {"frames": frames(model)}
    step = jax.jit(lambda seed: model.apply(variables, batch, train=True, mutable=["codebook"],
                                            rngs={"noise": jax.random.key(seed)}))  # fmt: skip
    (first, updated), (same, _), (other, _) = step(0), step(0), step(1)
    assert int(updated["codebook"]["quantizer"]["tokens"].sum()) == 4 * 4
    name = "reconstruction"
    np.testing.assert_array_equal(first.losses[name], same.losses[name])
    assert np.abs(first.losses[name] - other.losses[name]).max() > 0
    assert 1 <= float(first.metrics["perplexity"]) <= 8


def test_a_batch_does_not_influence_its_neighbours_codes():
    model, variables = small()
    batch, others = frames(model), frames(model, seed=1)
    others[0] = batch[0]
    among, elsewhere = (run(model, variables, "encode", images)["delta"] for images in (batch, others))
    np.testing.assert_allclose(among[0], elsewhere[0], rtol=1e-4, atol=1e-5)
    assert np.abs(among[1:] - elsewhere[1:]).max() > 1e-3


@pytest.mark.parametrize("output", ["linear", "residual", "tanh"])
def test_outputs_are_what_they_say(output):
    model = build(output=output)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), expected_variables(model))
    zero = jax.tree.map(jnp.zeros_like, variables["params"]["decoder"]["to_pixels"])
    params = {**variables["params"], "decoder": {**variables["params"]["decoder"], "to_pixels": zero}}
    first = frames(model)[:, 0]
    got = run(model, {**variables, "params": params}, "decode", first, np.zeros((4, 4), np.int32))
    expected = {"linear": 0.0, "tanh": 0.5, "residual": np.float32(first) / 255}[output]
    np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-6)


def test_after_update_replaces_dead_codes_and_names_their_rows():
    model, variables = small()
    counts = variables["codebook"]["quantizer"]
    hits = jnp.int32([9, 0, 9, 9, 9, 9, 0, 9])
    variables = {**variables, "codebook": {**variables["codebook"], "quantizer": {**counts, "hits": hits}}}
    update = jax.jit(lambda v, s: model.after_update(v, step=s, rng=jax.random.key(0)))
    after, reset = update(variables, 10)
    assert list(reset) == ["quantizer/codebook"]
    np.testing.assert_array_equal(reset["quantizer/codebook"][:, 0], hits == 0)
    before, now = (tree.flatten(v["params"]) for v in (variables, after))
    changed = {name for name in before if not np.array_equal(before[name], now[name])}
    assert changed == {"quantizer/codebook"}
    assert jax.tree.structure(after) == jax.tree.structure(dict(variables))
    untouched, reset = update(variables, 11)
    assert not np.any(reset["quantizer/codebook"])
    np.testing.assert_array_equal(untouched["params"]["quantizer"]["codebook"], before["quantizer/codebook"])


def test_evaluation_swaps_codes_and_summarises():
    model, variables = small()
    batch = {"frames": frames(model), "net_action": np.random.default_rng(1).random((4, 2), np.float32),
             "episode_id": np.arange(4, dtype=np.int32)}  # fmt: skip
    arrays = {k: np.asarray(v) for k, v in run(model, variables, "evaluate", batch).items()}
    assert {len(v) for v in arrays.values()} == {4}
    unit = np.float32(batch["frames"]) / 255
    np.testing.assert_allclose(arrays["mse_copy"], np.mean((unit[:, 0] - unit[:, 1]) ** 2, (1, 2, 3)), rtol=1e-4)
    rolled = run(model, variables, "decode", batch["frames"][:, 0], np.roll(arrays["codes"], 1, axis=0))
    np.testing.assert_allclose(arrays["mse_swapped"], np.mean((rolled - unit[:, 1]) ** 2, (1, 2, 3)), rtol=1e-4)
    still = run(model, variables, "encode", batch["frames"][:, [0, 0]])["codes"]
    np.testing.assert_array_equal(arrays["identical_codes"], still)
    summary = model.summarize(arrays)
    gain = 10 * np.log10(arrays["mse_copy"].mean() / arrays["mse"].mean())
    assert summary["psnr_gain"] == pytest.approx(gain, rel=1e-4)
    assert summary["swap_gap"] == pytest.approx(arrays["mse_swapped"].mean() / arrays["mse"].mean() - 1, rel=1e-3)
    assert {"perplexity_position_3", "cycle_consistency", "action_probe_r2", "collapse", "ssim"} <= summary.keys()
    assert all(np.isfinite(v) for v in summary.values())


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_deltas():
    model, variables = small()
    half = build(codebook_init="data", delta_norm="running", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(expected_variables(half)["params"])} == {jnp.dtype("float32")}
    exact = run(model, variables, "encode", frames(model))["delta"]
    got = run(half, variables, "encode", frames(model))["delta"]
    assert got.dtype == jnp.float32
    assert np.abs(got - exact).max() < 0.25 * np.abs(exact).max()


def test_the_width_of_the_feed_forward_is_that_of_all_three_stacks():
    model = build(mlp_ratio=3)
    shapes = jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), model.example(1))
    widths = {name: leaf.shape[-1] for name, leaf in tree.flatten(shapes["params"]).items() if "feedforward/up" in name}
    assert len(widths) == 3 and set(widths.values()) == {2 * 2 * 16}, widths


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 15}, "patch_size 4 does not divide"),
        ({"code_seq_len": 7}, "code_seq_len 7 cannot cover the grid of 4x4"),
        ({"layout": "offical"}, "did you mean 'official'"),
        ({"decoder_context": "none"}, "decoder_context is 'none'"),
        ({"output": "tanh", "normalization": "imagenet"}, "tanh ends at 1"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"heads": 0}, "heads is 0"),
        ({"codebook_size": 1}, "codebook_size is 1"),
        ({"temporal_depth": 0}, "temporal_depth is 0"),
        ({"view_shift": 9}, "view_shift is 9"),
        ({"view_shift": 2, "decoder_context": "encoder"}, "view_shift 2 needs"),
        ({"replacement_schedule": ((10, 20), (5, 1))}, "replacement_schedule"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0; give more than 0"),
        ({"mlp_ratio": 0.01}, "mlp_ratio 0.01 leaves no feature"),
        ({"image_sise": 16}, "image_sise"),
        ({"stem": "conv", "image_size": 15, "patch_size": 5}, "patch_size is 5; give 2, 4, 8"),
        ({"stem": "conv", "patch_size": 8, "dim": 12}, "12 is not divisible by 8"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_compiles(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((1, 2, 16, 12, 3), np.uint8), r"shape \(1, 2, 16, 12, 3\)"),
        (np.zeros((1, 16, 16, 3), np.uint8), "shape"),
        (np.zeros((1, 2, 16, 16, 3), np.int32), "dtype int32"),
    ],
)
def test_frames_of_another_kind_are_refused(bad, message):
    model, variables = small()
    with pytest.raises(UserError, match=message):
        run(model, variables, "encode", bad)
