"""The masked autoencoder: what is hidden and what counts, training, its report, and its tower in a tokenizer."""

import jax
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.evaluate.image_encoder import Evaluation
from lapa_jax.inference.load import load
from lapa_jax.train.loop import train
from lapa_jax.train.setup import prepare
from lapa_jax.train.sharding import shard_batch
from tests import jitted

pytestmark = pytest.mark.usefixtures("one_device")

TOWER = {"name": "vision.siglip", "image_size": 24, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "hidden": 32}
SMALL = {"name": "vision.mae", "image_size": 24, "tower": TOWER, "mask_ratio": 0.75, "decoder_dim": 16,
         "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip
PATCHES = 36


def build(**fields):
    return config_lib.build("lapa_jax.models", {**SMALL, **fields})


@pytest.fixture(scope="module")
def small():
    """A model, its variables with every parameter at random, and frames."""
    model = build()
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 24, 24, 3), np.uint8)
    frames[0, 0, :8] = 77  # flat patches
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "noise"))}
    variables = jitted.init(model, rngs, {"frames": frames}, train=True)
    draw = np.random.default_rng(1)
    return model, jax.tree.map(lambda x: x + 0.1 * draw.normal(size=x.shape).astype(np.float32), variables), frames


def patches_of(images: np.ndarray) -> np.ndarray:
    """[..., 24, 24, C] -> [..., 36, 4 * 4 * C], by loops."""
    cells = [images[..., 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, :] for i in range(6) for j in range(6)]
    return np.stack([cell.reshape(*images.shape[:-3], -1) for cell in cells], axis=-2)


def loss_of(model, variables, frames, key=0) -> np.ndarray:
    output = jitted.apply(model, variables, {"frames": frames}, train=True, rngs={"noise": jax.random.key(key)})
    return np.asarray(output.losses["reconstruction"])


@pytest.mark.parametrize("ratio, hidden", [(0.75, 27), (0.5, 18), (0.9, 32)])
def test_as_many_patches_are_hidden_as_asked_for_and_not_always_the_same(small, ratio, hidden):
    _, variables, frames = small
    got = jitted.apply(build(mask_ratio=ratio), variables, {"frames": frames}, method="predict")["hidden"]
    assert got.shape == (4, 2, 6, 6) and (got.sum((2, 3)) == hidden).all()
    assert len(np.unique(got.reshape(8, -1), axis=0)) == 8, "each image hides others"


def test_the_error_is_that_of_the_hidden_patches_each_in_its_own_scale(small):
    model, variables, frames = small
    predicted = jax.device_get(jitted.apply(model, variables, {"frames": frames}, method="predict"))
    arrays = jax.device_get(jitted.apply(model, variables, {"frames": frames}, method="evaluate"))
    true, made = (patches_of(x.astype(np.float64)) for x in (frames / 255, predicted["reconstruction"]))
    hidden = predicted["hidden"].reshape(4, 2, PATCHES)
    np.testing.assert_allclose(made[~hidden], true[~hidden], atol=1e-6, err_msg="what is seen stays")
    # each colour has its mean, all three one scale, which 0.02 bounds where a patch is flat
    mean = np.tile(true.reshape(4, 2, PATCHES, 16, 3).mean(-2), 16)
    scale = np.sqrt(np.square(true - mean).mean(-1, keepdims=True) + 0.02**2)
    mean_of_hidden = lambda x: np.stack([[x[i, j][hidden[i, j]].mean() for j in range(2)] for i in range(4)]).mean(1)  # noqa: E731
    np.testing.assert_allclose(arrays["mse"], mean_of_hidden(((made - true) / scale) ** 2), rtol=1e-4)
    np.testing.assert_allclose(arrays["mse_flat"], mean_of_hidden(((true - mean) / scale) ** 2), rtol=1e-4)
    got = model.summarize(arrays)
    np.testing.assert_allclose(got["masked_r2"], 1 - arrays["mse"].mean() / arrays["mse_flat"].mean(), rtol=1e-5)


def test_what_is_hidden_is_not_known_to_the_prediction_and_what_is_seen_is(small):
    model, variables, frames = small
    predict = lambda frames: jax.device_get(jitted.apply(model, variables, {"frames": frames}, method="predict"))  # noqa: E731
    before = predict(frames)
    pixels = before["hidden"].repeat(4, axis=2).repeat(4, axis=3)[..., None]
    # Turned upside down, each patch by itself, it keeps its mean and contrast.
    turned = frames.reshape(4, 2, 6, 4, 24, 3)[:, :, :, ::-1].reshape(frames.shape)
    hidden_changed, seen_changed = np.where(pixels, turned, frames), np.where(pixels, frames, turned)
    after = predict(hidden_changed)
    np.testing.assert_array_equal(after["hidden"], before["hidden"], err_msg="evaluation hides the same every time")
    np.testing.assert_allclose(after["reconstruction"], before["reconstruction"], atol=1e-5)
    moved = np.abs(predict(seen_changed)["reconstruction"] - before["reconstruction"])
    assert moved[pixels.repeat(3, -1)].max() > 1e-3


def test_training_hides_others_every_time_and_by_its_key(small):
    model, variables, frames = small
    first, again, other = (loss_of(model, variables, frames, key) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4,) and (first != other).all()


@pytest.mark.parametrize("tower", [TOWER, {**TOWER, "name": "vision.dinov2", "registers": 2}])
def test_a_tower_knows_of_the_patches_that_it_sees_alone(tower):
    tower = config_lib.build("lapa_jax.models", tower)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 24, 24, 3), np.uint8)
    variables = jitted.init(tower, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables)
    order = np.stack([rng.permutation(PATCHES) for _ in range(2)])
    whole = np.asarray(jitted.apply(tower, variables, images))
    shuffled = jitted.apply(tower, variables, images, order)
    np.testing.assert_allclose(shuffled, np.take_along_axis(whole, order[..., None], axis=1), atol=1e-4)
    seen = order[:, :9]
    few = np.asarray(jitted.apply(tower, variables, images, seen))
    assert few.shape == (2, 9, 16) and np.abs(few - np.asarray(shuffled)[:, :9]).max() > 1e-2
    other = images.copy()
    for i in range(2):
        for patch in order[i, 9:]:
            row, column = 4 * (patch // 6), 4 * (patch % 6)
            other[i, row : row + 4, column : column + 4] = 0
    np.testing.assert_allclose(jitted.apply(tower, variables, other, seen), few, atol=1e-5)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tower": None}, "tower is None; give the vision transformer"),
        ({"tower": {**TOWER, "patch": 5}}, "patch_size 5 does not divide the image of 24x24 pixels"),
        ({"tower": {**TOWER, "image_size": 48}}, "image_size is 24 and tower.image_size 48; .*give both the same"),
        ({"mask_ratio": 0.01}, "mask_ratio 0.01 of 36 patches hides none of them"),
        ({"mask_ratio": 0.99}, "mask_ratio 0.99 of 36 patches hides all of them"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"decoder_heads": 3}, "decoder_dim 16 is not a multiple of decoder_heads 3"),
        ({"tower": {"name": "vision.film_conv"}}, "tower is film_conv; give the vision transformer"),
    ],
)
def test_what_cannot_work_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        build(**fields)


# A run on the embedded sample.


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    overrides = ["train.steps=60", "train.log_every=10", "train.eval_every=60", "train.save_every=60",
                 "data.eval_examples=128", "optim.learning_rate=0.003", "optim.ema_decay=0.9"]  # fmt: skip
    config = config_lib.load(f"{root}/configs/mae.py:test", [f"--config.{o}" for o in overrides])
    folder = tmp_path_factory.mktemp("mae") / "run"
    train(config, folder)
    return folder


def test_training_lowers_the_error_on_held_out_images(run):
    evaluated = [line for line in read_metrics(run) if "val/masked_r2" in line]
    assert [line["step"] for line in evaluated] == [0, 60]
    assert evaluated[1]["val/masked_r2"] > max(evaluated[0]["val/masked_r2"], 0.02)
    assert all(np.isfinite(line["val/feature_probe_r2"]) for line in evaluated)


def test_its_report(run, tmp_path):
    evaluation = Evaluation(load(run), run=run, out=tmp_path, pairs=64)
    result = evaluation.write()
    assert {"mse", "masked_r2", "feature_probe_r2", "feature_probe_r2_untrained"} <= result["metrics"].keys()
    probe = next(verdict for verdict in evaluation.judge(result) if verdict.metric == "feature_probe_r2")
    assert "too few to judge by" in probe.words
    with Image.open(tmp_path / "masked.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert "Hidden patches" in (tmp_path / "report.html").read_text()
    # pairs that the run did not evaluate, so that the untrained tower is made anew, as the run made it
    untrained = Evaluation(load(run), run=run, out=tmp_path, pairs=128)
    recorded = untrained.write()["metrics"]["feature_probe_r2_untrained"]
    assert recorded == next(line for line in read_metrics(run) if line["step"] == 0)["val/feature_probe_r2"]


def test_images_of_any_size_have_features(run):
    encoder = load(run)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    features = encoder.encode(images)
    assert features.shape == (3, 4, 4, 16) and features.dtype == np.float32
    np.testing.assert_allclose(encoder.encode(images[1]), features[1], atol=1e-5)
    with pytest.raises(UserError, match="images is int64"):
        encoder.encode(images.astype(int))


def features_config(root, tower, *overrides):
    """`configs/laq.py:own_features`, smaller, with the tower of the run above."""
    sizes = ["model.image_size=32", "model.view_shift=8", "model.dim=16", "model.heads=2", "model.dim_head=8",
             "model.spatial_depth=1", "model.decoder_depth=1", "data.path=sample", "data.gap_frames=3",
             "data.eval_examples=16", "train.steps=1", "train.batch_size=8", "train.eval_batch_size=16",
             "train.trackers=()", "train.images=False", f"init_from.tower={tower}", *overrides]  # fmt: skip
    return config_lib.load(f"{root}/configs/laq.py:own_features+recommended", [f"--config.{o}" for o in sizes])


def test_a_tokenizer_of_features_takes_the_tower(run, root, tmp_path):
    """The features that it encodes and predicts are those of the averaged tower, standardised, and stay so."""
    encoder = load(run)
    train(features_config(root, run, "model.tower=None"), tmp_path / "laq")
    tokenizer = load(tmp_path / "laq")
    assert tokenizer.config.model.tower.to_dict() == encoder.config.model.tower.to_dict()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    raw = encoder.encode(images).astype(np.float64)
    want = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(tokenizer.observe(images), want, atol=1e-4)
    log = (tmp_path / "laq/log.txt").read_text()
    assert "'tower' begins with 21 variables" in log and f"of the tower of {run}/checkpoints/60 (step 60)" in log


@pytest.mark.parametrize("source", ["checkpoint", "exported"])
def test_a_checkpoint_or_an_exported_folder_serves_as_well(run, root, tmp_path, source):
    encoder, place = load(run), run / "checkpoints/60"
    if source == "exported":
        place = tmp_path / "exported"
        encoder.save_pretrained(place)
    setup = prepare(features_config(root, place, "model.tower=None"))
    with jax.set_mesh(setup.mesh):
        state = setup.init(shard_batch(setup.mesh, next(setup.train_batches(0))))
    got, want = (tree.flatten(each["tower"]) for each in (state.variables["params"], encoder.variables["params"]))
    assert got.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_a_tower_of_other_sizes_is_refused(run, root):
    with pytest.raises(UserError, match="model.tower.image_size is 64, the tower of .* has 32; leave config.mod"):
        prepare(features_config(root, run))
