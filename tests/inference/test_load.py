"""`lapa_jax.load`: what it gives equals the model applied by hand, round-trips, and refuses what it cannot use."""

import jax
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core import integrity
from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.inference.load import load
from lapa_jax.train.checkpoint import load_for_inference
from tests import jitted
from tests.inference import small_run, step_shards

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 2, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    data = step_shards.write(tmp_path_factory.mktemp("data"))
    return small_run.write(tmp_path_factory.mktemp("run") / "laq", root, data, best=1)


@pytest.fixture(scope="module")
def laq(run):
    return lapa_jax.load(run)


@pytest.fixture(scope="module")
def apply(run):
    """`apply(method, *arguments)` of the model, without the inference floor."""
    saved = load_for_inference(run)
    model = config_lib.build("lapa_jax.models", saved.config.model)
    return lambda method, *args: jitted.apply(model, saved.variables, *args, method=method)


def test_encode_and_decode_are_those_of_the_model(laq, apply):
    codes = laq.encode(FRAMES)
    np.testing.assert_array_equal(codes, apply("encode", FRAMES)["codes"])
    assert codes.dtype == np.int32 and codes.shape == (5, 4) and len(np.unique(codes)) > 2
    decoded = laq.decode(FRAMES[:, 0], codes)
    expected = apply("decode", FRAMES[:, 0], codes)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)
    assert decoded.dtype == np.float32 and decoded.shape == (5, 32, 32, 3)


def test_single_pairs_floats_and_other_sizes(laq):
    codes = laq.encode(FRAMES)
    np.testing.assert_array_equal(laq.encode(FRAMES[1]), codes[1])
    np.testing.assert_array_equal(laq.encode(FRAMES.astype(np.float32) / 255), codes)
    large = RNG.integers(0, 256, (2, 48, 64, 3), np.uint8)
    small = np.stack([images.resize(frame, 32) for frame in large])
    np.testing.assert_array_equal(laq.encode(large), laq.encode(small))
    assert laq.decode(large[0], codes[0]).shape == (32, 32, 3)


def test_one_frame_serves_many_codes_and_the_reverse(laq):
    codes = laq.encode(FRAMES)
    many = laq.decode(FRAMES[0, 0], codes)
    np.testing.assert_allclose(many[3], laq.decode(FRAMES[0, 0], codes[3]), atol=1e-5)
    np.testing.assert_allclose(laq.decode(FRAMES[:, 0], codes[3])[0], many[3], atol=1e-5)


def test_batch_size_does_not_matter_and_hardly_compiles(laq):
    many = RNG.integers(0, 256, (40, 2, 32, 32, 3), np.uint8)
    whole = laq.encode(many)
    for size in (1, 3, 7, 13):
        parts = [laq.encode(many[i : i + size]) for i in range(0, 40, size)]
        assert (np.concatenate(parts) == whole).mean() > 0.99  # rounding may flip a near tie
    assert laq._encode._cache_size() <= 4


def test_one_device_and_eight_agree(run, laq):
    one = load(run, devices=jax.devices()[:1])
    many = RNG.integers(0, 256, (64, 2, 32, 32, 3), np.uint8)
    assert laq.mesh.size == 8 and one.mesh.size == 1
    np.testing.assert_array_equal(one.encode(many), laq.encode(many))


def test_export_round_trips_exactly(laq, tmp_path):
    laq.save_pretrained(tmp_path / "exported")
    again = lapa_jax.load(tmp_path / "exported")
    assert again.fingerprint == laq.fingerprint
    assert again.config.to_dict() == laq.config.to_dict()
    assert again.datasets == laq.datasets == small_run.DATASETS and again.step == laq.step == 2
    np.testing.assert_array_equal(again.encode(FRAMES), laq.encode(FRAMES))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), again.variables, laq.variables))


def test_fingerprint_tells_weights_apart(run, laq):
    first = lapa_jax.load(run, step=1)
    assert first.step == 1 and first.fingerprint != laq.fingerprint
    assert lapa_jax.load(run / "checkpoints" / "1").fingerprint == first.fingerprint
    assert len(laq.fingerprint) == 64


@pytest.mark.parametrize(
    "frames, words",
    [
        (FRAMES[:, :1], "a pair is"),
        (FRAMES[0, 0], "4 or 5 axes"),
        (FRAMES[..., :2], "axes ending in 3"),
        (FRAMES.astype(np.int32), "int32"),
        (FRAMES.astype(np.float32), "divide by 255"),
        (np.full((2, 32, 32, 3), np.nan), "nan"),
        (FRAMES[:0], "axes ending in 3"),
    ],
)
def test_bad_frames_are_refused(laq, frames, words):
    with pytest.raises(UserError, match=words):
        laq.encode(frames)


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.zeros((5, 3), np.int32), r"\[B, 4\]"),
        (np.zeros((5, 4)), "float64"),
        (np.full(4, 8), "0..7"),
        (np.full(4, -1), "0..7"),
        (np.zeros((4, 4), np.int32), "5 first frames and 4 latent actions"),
    ],
)
def test_bad_codes_are_refused(laq, codes, words):
    with pytest.raises(UserError, match=words):
        laq.decode(FRAMES[:, 0], codes)


def test_the_best_checkpoint_can_be_loaded(run, laq):
    best = lapa_jax.load(run, step="best")
    assert best.step == 1 and laq.step == 2
    for again in (lapa_jax.load(run, step=1), lapa_jax.load(run / "checkpoints/best")):
        assert again.fingerprint == best.fingerprint


def test_folders_that_hold_no_model_are_refused(run, laq, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        lapa_jax.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="no run folder"):
        lapa_jax.load(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has \[1, 2\]"):
        lapa_jax.load(run, step=7)
    laq.save_pretrained(tmp_path / "exported")
    with pytest.raises(UserError, match="leave out the step"):
        lapa_jax.load(tmp_path / "exported", step=1)


def test_weights_of_another_model_are_refused(root, tmp_path):
    run = small_run.write(tmp_path / "laq", root, "nowhere", steps=(1,))
    meta = next(run.glob("checkpoints/1/meta/*"))
    changed = meta.read_text().replace('"dim": 16', '"dim": 24')
    assert changed != meta.read_text()
    meta.write_text(changed)
    with pytest.raises(UserError, match="meta/data.json has another checksum"):
        lapa_jax.load(run)
    integrity.seal(run / "checkpoints/1")
    with pytest.raises(UserError, match="do not fit its config: .*has shape"):
        lapa_jax.load(run)
