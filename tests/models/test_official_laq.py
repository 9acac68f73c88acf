"""Agreement with the official LAQ, by a small model with random weights and its recorded inputs and outputs."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from lapa_jax.core import config
from lapa_jax.core.errors import UserError
from lapa_jax.models import official_laq


@pytest.fixture(scope="module")
def state(shared):
    return safetensors.numpy.load_file(shared / "golden" / "laq_seq4.safetensors")


def test_every_stage_agrees_with_the_official_code(shared, state):
    golden = np.load(shared / "golden" / "laq_seq4.npz")
    frames = golden["video"].transpose(0, 2, 3, 4, 1)
    spec, variables, dropped = official_laq.convert(state, 64)
    model = config.build("lapa_jax.models", spec)
    assert model.layout == "official" and any("null keys of size 0" in line for line in dropped)

    def stages(m, frames):
        view = m._encode(frames, train=False)
        mixed = m.encoder.mix(m.encoder.embed(frames), m.encoder.bias())
        codes = m.quantization.nearest(view["delta"])
        reconstruction = m._decode(view, m.quantization.lookup(codes))
        return mixed[:, 0], mixed[:, 1], view["delta"], codes, reconstruction.transpose(0, 3, 1, 2)

    got = jax.jit(lambda v, f: model.apply(v, f, method=stages))(variables, frames)
    for name, value in zip(("first_tokens", "last_tokens", "delta", "indices", "reconstruction"), got, strict=True):
        if name == "indices":
            np.testing.assert_array_equal(value, golden[name])
            assert len(np.unique(golden[name])) > 2, "a single code would agree by chance"
        else:
            assert np.abs(value - golden[name]).max() <= 1e-4 * np.abs(golden[name]).max(), name


def test_each_quirk_of_the_layout_matters(shared, state):
    golden = np.load(shared / "golden" / "laq_seq4.npz")
    frames = golden["video"].transpose(0, 2, 3, 4, 1)
    spec, variables, _ = official_laq.convert(state, 64)
    positions = np.zeros((4, spec["dim"]), np.float32)
    params = {**variables["params"], "decoder": {**variables["params"]["decoder"], "positions": positions}}
    fixed = config.build("lapa_jax.models", {**spec, "layout": "fixed"})
    encode = jax.jit(lambda v, f: fixed.apply(v, f, method="encode"))
    delta = encode({**variables, "params": params}, frames)["delta"]
    assert np.abs(delta - golden["delta"]).max() > 0.01 * np.abs(golden["delta"]).max()


def test_missing_and_extra_names_are_listed_together(state):
    wrong = {name: value for name, value in state.items() if name != "vq.project_in.bias"}
    wrong["decoder.surplus"] = np.zeros(3)
    with pytest.raises(UserError, match=r"missing \(1\): vq.project_in.bias; extra \(1\): decoder.surplus"):
        official_laq.convert(wrong, 64)


def test_something_else_altogether_is_refused():
    with pytest.raises(UserError, match=r"no official LAQ .*vq.codebooks.*extra \(1\): weight"):
        official_laq.convert({"weight": np.zeros((2, 2))}, 64)


def test_a_learned_bias_where_the_official_code_has_none_is_refused(state):
    wrong = {**state, "enc_temporal_transformer.norm_out.beta": np.full(64, 0.1, np.float32)}
    with pytest.raises(UserError, match=r"norm_out.beta' is not zero"):
        official_laq.convert(wrong, 64)


def test_a_tensor_of_another_shape_is_refused(state):
    name = "dec_spatial_transformer.layers.1.3.4.weight"
    with pytest.raises(UserError, match="decoder/stack/layers/feedforward/down/kernel|shape"):
        official_laq.convert({**state, name: state[name][:, :-1]}, 64)


def test_an_image_size_that_the_convolutions_do_not_fit_names_those_that_do(state):
    with pytest.raises(UserError, match=r"image_size 256 does not fit .* 56 \(4 codes\), 64 \(4 codes\)"):
        official_laq.convert(state, 256)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": s, "optim": {}, "steps": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "steps": 3},
        lambda s: {f"ema_model.{k}": v for k, v in s.items()} | {"step": 1}
        | {f"online_model.{k}": v + 1 for k, v in s.items()},
        lambda s: {f"online_model.module.{k}": v for k, v in s.items()},
        lambda s: s,
    ],
    ids=["ddp", "trainer", "trainer-ddp", "ema", "online-ddp", "plain"],
)  # fmt: skip
def test_wrappings_of_training_scripts_are_taken_off(wrap):
    plain = {"vq.codebooks": np.ones((2, 3)), "vq.project_in.bias": np.zeros(3)}
    got, notes = official_laq.unwrap(wrap(plain))
    assert got.keys() == plain.keys() and all(np.array_equal(got[k], plain[k]) for k in plain)
    assert bool(notes) == (wrap(plain).keys() != plain.keys())
