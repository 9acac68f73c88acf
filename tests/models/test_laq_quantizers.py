"""LAQ with other quantizers than its own: the same calls, losses where there are any, contradictions refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config
from lapa_jax.core.errors import UserError
from lapa_jax.models import pretrained
from lapa_jax.train.task import Task

SMALL = {"name": "tokenizers.laq", "image_size": 16, "patch_size": 4, "dim": 16, "quant_dim": 4, "heads": 2,
         "dim_head": 8, "spatial_depth": 1, "temporal_depth": 1, "decoder_depth": 1,
         "delta_norm": "running"}  # fmt: skip
QUANTIZERS = {
    "vq": {"quantizer": "vq", "replacement": "share"},
    "vq_gradient": {"quantizer": "vq", "codebook_update": "gradient", "replacement": "none"},
    "fsq": {"quantizer": "fsq", "levels": (3, 5), "quant_dim": 2, "codebook_size": 15, "replacement": "none"},
}
UNROUNDED = {"quantizer": "none", "delta_norm": "whitened"}
WEIGHTS = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}


def build(**fields):
    return config.build("lapa_jax.models", {**SMALL, **fields})


def batch_of(count=8, seed=0):
    return {"frames": np.random.default_rng(seed).integers(0, 256, (count, 2, 16, 16, 3), dtype=np.uint8)}


@functools.cache
def trained(name):
    """The model, its variables at the start and after a step, and the metrics of the step."""
    model = build(**{**QUANTIZERS, "none": UNROUNDED}[name])
    task = Task(model, WEIGHTS)
    start = jax.jit(task.init)(jax.random.key(0), batch_of())

    @jax.jit
    def step(variables):
        def loss(params):
            total, (updated, metrics) = task.loss({**variables, "params": params}, batch_of(), jax.random.key(1))
            return total, (updated, metrics)

        grads, (updated, metrics) = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
        return task.after_update({"params": params, **updated}, jnp.int32(1), jax.random.key(2))[0], metrics

    after, metrics = step(start)
    return model, start, after, {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_trains_encodes_and_decodes(name):
    model, start, after, metrics = trained(name)
    assert jax.tree.structure(start) == jax.tree.structure(after)
    moved = np.abs(np.asarray(after["params"]["encoder"]["project"]["kernel"])
                   - np.asarray(start["params"]["encoder"]["project"]["kernel"])).max()  # fmt: skip
    assert moved > 0, "the encoder must learn through the quantizer"

    def both(variables, frames):
        predicted = model.apply(variables, {"frames": frames}, method="predict")
        return predicted, model.apply(variables, frames[:, 0], predicted["codes"], method="decode")

    predicted, decoded = jax.jit(both)(after, batch_of()["frames"])
    codes = np.asarray(predicted["codes"])
    assert codes.shape == (8, 4) and codes.min() >= 0 and codes.max() < model.codebook_size
    assert len(np.unique(codes)) > 2
    np.testing.assert_allclose(decoded, predicted["reconstruction"], rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


def test_without_a_quantizer_the_decoder_gets_the_delta_itself():
    model, start, after, metrics = trained("none")
    assert not model.discrete and "quantizer" not in after["params"] and "quantizer" not in after["codebook"]
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), after["params"], start["params"])
    assert moved["encoder"]["project"]["kernel"] > 0, "the encoder must learn from the decoder's error"
    assert "perplexity" not in metrics and metrics["loss_commitment"] == 0

    def everything(variables, frames):
        encoded = model.apply(variables, frames, method="encode")
        predicted = model.apply(variables, {"frames": frames}, method="predict")
        decoded = model.apply(variables, frames[:, 0], encoded["delta"], method="decode")
        swapped = model.apply(variables, frames[:, 0], jnp.roll(encoded["delta"], 1, axis=0), method="decode")
        return encoded, predicted, decoded, swapped, model.apply(variables, {"frames": frames}, method="evaluate")

    frames = batch_of()["frames"]
    encoded, predicted, decoded, swapped, arrays = jax.device_get(jax.jit(everything)(after, frames))
    assert encoded.keys() == {"delta"} and predicted.keys() == {"delta", "reconstruction"}
    np.testing.assert_array_equal(predicted["delta"], encoded["delta"])
    np.testing.assert_allclose(decoded, predicted["reconstruction"], rtol=1e-4, atol=1e-5)
    second = frames[:, 1] / 255
    np.testing.assert_allclose(arrays["mse_swapped"], np.square(swapped - second).mean((1, 2, 3)), rtol=1e-4)
    rng = np.random.default_rng(0)
    labels = {"net_action": rng.normal(size=(8, 2)), "episode_id": np.arange(8) % 4}
    summary = model.summarize({**arrays, **labels})
    gap = np.mean(arrays["mse_swapped"]) / np.mean(np.square(decoded - second)) - 1
    assert summary["swap_gap"] == pytest.approx(gap, rel=1e-4)
    assert summary["capacity_bits"] == pytest.approx(16 * 0.5 * np.log2(1 + 1 / 0.125**2))
    assert "action_probe_r2_delta" in summary and "cycle_delta_r2" in summary and "psnr_gain" in summary
    assert not {"codes", "cycle", "identical_codes"} & arrays.keys()
    assert not {"action_probe_r2", "perplexity", "cycle_consistency", "collapse"} & summary.keys()


def test_quantizer_losses_are_where_they_belong():
    found = {name: trained(name)[3] for name in QUANTIZERS}
    has = {name: (m["loss_codebook"] > 0, m["loss_commitment"] > 0) for name, m in found.items()}
    assert has == {"vq": (False, True), "vq_gradient": (True, True), "fsq": (False, False)}


def test_codes_are_where_their_update_wants_them():
    for name, (params, state) in {"vq": (False, True), "vq_gradient": (True, False), "fsq": (False, False)}.items():
        _, start, after, _ = trained(name)
        for collection, expected in (("params", params), ("codebook", state)):
            assert ("quantizer" in start[collection]) == expected, (name, collection)
        if name == "vq":
            moved = after["codebook"]["quantizer"]["codes"] - start["codebook"]["quantizer"]["codes"]
            assert np.any(moved) and moved.shape == (1, 8, 4)


@pytest.mark.parametrize("name", ["vq", "fsq"])
def test_saved_models_come_back_to_the_bit(name, tmp_path):
    model, _, variables, _ = trained(name)
    spec = {**SMALL, **QUANTIZERS[name]}
    pretrained.save_pretrained(tmp_path, spec, variables, {})
    _, loaded, _ = pretrained.load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, dict(variables)))


@pytest.mark.parametrize("override", [
    ("quantizer=vq",),
    ("quantizer=vq", "codebook_update=gradient", "replacement=none"),
    ("quantizer=fsq", "levels=(3,3)", "quant_dim=2", "codebook_size=9", "replacement=none"),
    ("quantizer=none", "delta_noise=0.5"),
])  # fmt: skip
def test_the_config_takes_them_from_the_command_line(root, override):
    loaded = config.load(f"{root}/configs/laq.py:small", [f"--config.model.{change}" for change in override])
    config.build("lapa_jax.models", loaded.model)
    assert loaded.loss.commitment > 0 and loaded.loss.codebook > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer": "vqvae"}, "quantizer is 'vqvae'"),
        ({"quantizer": "vq"}, "replacement 'official' is not for quantizer 'vq' with codebook_update 'ema'"),
        ({"quantizer": "vq", "codebook_update": "gradient", "replacement": "share"}, "set it to 'none'"),
        ({"quantizer": "vq", "codebook_update": "both", "replacement": "none"}, "codebook_update is 'both'"),
        ({"quantizer": "vq", "replacement": "share", "replacement_min_share": 0.2}, "give less than 0.125"),
        ({"quantizer": "vq", "replacement": "none", "codebook_decay": 1.0}, "decay of a codebook is 1.0"),
        ({"quantizer": "fsq", "levels": (3, 5), "quant_dim": 2, "codebook_size": 15}, "not for quantizer 'fsq'"),
        ({"quantizer": "fsq", "levels": (3, 5), "quant_dim": 2, "replacement": "none"}, "codebook_size to 15"),
        ({"quantizer": "fsq", "levels": (3, 5), "codebook_size": 15, "replacement": "none"}, "quant_dim to 2"),
        ({"quantizer": "fsq", "levels": (2, 4), "quant_dim": 2, "replacement": "none"}, "at least 3"),
        ({"levels": (3, 5)}, "are for quantizer 'fsq'"),
        ({"codebook_per_position": True}, "needs quantizer 'vq'"),
        ({"quantizer": "none", "delta_norm": "none"}, "needs deltas of a bounded size, and delta_norm is 'none'"),
        ({"quantizer": "none", "delta_noise": -1.0}, "delta_noise is -1.0"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)
