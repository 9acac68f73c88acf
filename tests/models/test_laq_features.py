"""LAQ on features of a tower: what reaches the tower, training, figures, pictures and labels of such a run."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.evaluate.latent_actions import reference
from lapa_jax.evaluate.latent_actions.evaluation import Evaluation
from lapa_jax.evaluate.latent_actions.feature_colors import Coloured
from lapa_jax.explore.latent_actions import LatentActions
from lapa_jax.explore.options import Options
from lapa_jax.inference.load import load
from lapa_jax.label.labeller import Labeller
from lapa_jax.models.tokenizers import inverse_dynamics
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from lapa_jax.train.task import Task
from tests import jitted
from tests.explore.serving import ask, refused, serving
from tests.golden.imported import TOWERS
from tests.inference import step_shards
from tools import import_weights

pytestmark = pytest.mark.usefixtures("one_device")

TOWER = {"name": "vision.dinov2", "image_size": 28, "patch": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 16}
SMALL = {"name": "tokenizers.laq", "image_size": (28, 56), "patch_size": 14, "dim": 16, "quant_dim": 4, "heads": 2,
         "dim_head": 8, "spatial_depth": 1, "temporal_depth": 1, "decoder_depth": 1, "code_seq_len": 2,
         "target": "features", "output": "residual", "tower": TOWER}  # fmt: skip
RNGS = {name: jax.random.key(i) for i, name in enumerate(("params", "noise", "dropout"))}


def build(**fields):
    return config_lib.build("lapa_jax.models", {**SMALL, **fields})


@pytest.fixture(scope="module")
def small():
    model = build()
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 28, 56, 3), np.uint8)
    return model, jax.jit(functools.partial(model.init, train=True))(RNGS, {"frames": frames}), frames


def test_features_are_those_of_the_tower_standardised(small):
    model, variables, frames = small
    got = jitted.apply(model, variables, frames[:, 0] / np.float32(255), method="observe")
    assert got.shape == (4, 2, 4, 8)
    raw = np.asarray(jitted.apply(model.tower, {"params": variables["params"]["tower"]}, frames[:, 0]), np.float64)
    want = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got.reshape(4, 8, 8), want, atol=1e-4)


def test_the_loss_is_of_features_and_none_of_it_reaches_the_tower(small):
    model, variables, frames = small
    rest = {name: x for name, x in variables.items() if name != "params"}

    @jax.jit
    def gradients(params):
        def loss(params):
            out, _ = model.apply({"params": params, **rest}, {"frames": frames}, train=True, rngs=RNGS,
                                 mutable=["codebook"])  # fmt: skip
            return out.losses["reconstruction"].mean()

        return jax.grad(loss)(params)

    found = tree.flatten(gradients(variables["params"]))
    assert {name.split("/")[0] for name, g in found.items() if not np.any(g)} >= {"tower"}
    assert not [name for name, g in found.items() if name.startswith("tower/") and np.any(g)]
    assert np.any(found["decoder/to_pixels/kernel"]) and found["decoder/to_pixels/kernel"].shape == (16, 8)
    arrays = jitted.apply(model, variables, {"frames": frames}, method="evaluate")
    features = jitted.apply(model, variables, frames / np.float32(255), method="observe")
    np.testing.assert_allclose(arrays["mse_copy"], ((features[:, 1] - features[:, 0]) ** 2).mean((1, 2, 3)), rtol=1e-4)
    codes = arrays["codes"]
    predicted = jitted.apply(model, variables, frames[:, 0], codes, method="decode")
    np.testing.assert_allclose(arrays["mse"], ((predicted - features[:, 1]) ** 2).mean((1, 2, 3)), rtol=1e-3)
    found = model.summarize(jax.device_get(arrays))
    gain = 10 * np.log10(np.mean(arrays["mse_copy"]) / np.mean(arrays["mse"]))
    np.testing.assert_allclose(found["feature_gain"], gain, atol=1e-4)
    assert "swap_gap" in found and not {"psnr", "psnr_gain", "ssim", "identical_frame_psnr"} & found.keys()


def test_frames_that_the_patch_does_not_divide_have_features_of_the_whole_patches(small):
    """31 x 60 pixels are 2 x 4 patches of 14, and a border: only what predicts pixels must fill the image."""
    model, variables, frames = small
    wide = build(image_size=(31, 60))
    bordered = np.pad(frames, ((0, 0), (0, 0), (0, 3), (0, 4), (0, 0)), constant_values=99)
    got, expected = (jax.jit(functools.partial(m.apply, method="encode"))(variables, f)
                     for m, f in ((wide, bordered), (model, frames)))  # fmt: skip
    np.testing.assert_allclose(got["delta"], expected["delta"], atol=1e-5)
    Tokenizer = collections.namedtuple("Tokenizer", "model image_size observe codebook_size code_length")
    observe = jax.jit(functools.partial(wide.apply, variables, method="observe"))
    tokenizer = Tokenizer(wide, (31, 60), lambda x: np.asarray(observe(x / np.float32(255))), 8, 2)
    colours = Coloured(tokenizer, bordered[:, 0]).observe(bordered[:, 0])
    assert colours.shape == (4, 31, 60, 3) and not colours[:, 28:].any() and not colours[:, :, 56:].any()
    assert (colours[:, :14, :14] == colours[:, :1, :1]).all(), "a cell covers its patch"
    with pytest.raises(UserError, match="patch_size 14 does not divide the image of 31x60"):
        build(image_size=(31, 60), target="pixels", tower=None)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tower": None}, "target 'features' and a tower go together"),
        ({"target": "pixels"}, "go together"),
        ({"target": "feature"}, "did you mean 'features'"),
        ({"tower": {**TOWER, "patch": 7}}, "patch_size is 14, the tower's patch 7"),
        ({"normalization": "imagenet"}, "normalization is 'imagenet', which is for pixels"),
        ({"output": "tanh"}, "cannot reach features"),
    ],
)
def test_what_cannot_work_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        build(**fields)


# A run from `configs/laq.py:features`, with an imported tower of two blocks.

OVERRIDES = [
    "model.image_size=56", "model.dim=16", "model.heads=2", "model.dim_head=8", "model.quant_dim=8",
    "model.spatial_depth=1", "model.temporal_depth=1", "model.decoder_depth=1", "model.tower.image_size=56",
    "model.tower.dim=16", "model.tower.depth=2", "model.tower.heads=2", "model.tower.hidden=32",
    "model.tower.registers=0", "model.dtype=float32", "model.tower.dtype=float32", "data.gap_frames=3",
    "data.eval_examples=16", "data.threads=1",
    "optim.learning_rate=0.003", "train.steps=30", "train.batch_size=16", "train.eval_batch_size=16",
    "train.log_every=5", "train.eval_every=30", "train.save_every=30", "train.trackers=()",
]  # fmt: skip


def square(episode: int, step: int) -> np.ndarray:
    """A bright square that moves by the step, from where the episode says."""
    picture, row = np.full((32, 32, 3), (40, 90, 160), np.uint8), 4 * ((step + 2 * episode) % 6)
    picture[row : row + 10, 8:20] = 255
    return picture


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """(run folder, data, tower)."""
    base = tmp_path_factory.mktemp("features")
    data = step_shards.write(base / "data", lengths={"train": [[9, 9, 9]], "val": [[9, 9]]}, draw=square)
    import_weights.main(["dinov2", "--input", str(TOWERS / "dinov2"), "--out", str(base / "tower")])
    overrides = [*OVERRIDES, f"data.path={data}", f"init_from.tower={base / 'tower'}"]
    config = config_lib.load(f"{root}/configs/laq.py:features", [f"--config.{o}" for o in overrides])
    train(config, base / "run")
    return base / "run", data, base / "tower"


def test_it_trains_and_the_tower_stays_what_it_was(run):
    folder, _, tower = run
    losses = [line["train/loss"] for line in read_metrics(folder) if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    got, want = (load_for_inference(place).variables["params"] for place in (folder, tower))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), got["tower"], want)
    evaluated = [line for line in read_metrics(folder) if "val/feature_gain" in line]
    assert [line["step"] for line in evaluated] == [0, 30] and "val/swap_gap" in evaluated[0]
    assert evaluated[1]["val/mse"] < evaluated[0]["val/mse"]


def test_report_and_labels_of_such_a_run(run, tmp_path):
    folder, data, _ = run
    laq = load(folder)
    evaluation = Evaluation(laq, run=folder, out=tmp_path / "eval")
    result = evaluation.write(reference_steps=0)
    assert {"feature_gain", "swap_gap", "action_probe_r2", "action_probe_r2_untrained"} <= result["metrics"].keys()
    assert any(verdict.metric == "feature_gain" and "features" in verdict.words for verdict in evaluation.judge(result))
    for name in ("reconstructions", "gallery", "gallery_change", "gallery_positions", "overview"):
        with Image.open(tmp_path / "eval" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    assert "three principal components" in (tmp_path / "eval" / "report.html").read_text()
    Labeller(laq, data, tmp_path / "labels").run(progress=False)
    labels = StepShards(tmp_path / "labels", "val")
    assert len(labels) == 18 and not (tmp_path / "labels" / "val-00000.tar.tmp").exists()


def test_the_reference_of_such_a_run_keeps_the_tower_as_it_is(run, tmp_path):
    laq = load(run[0])
    evaluation = Evaluation(laq, run=run[0], out=tmp_path / "eval")
    tower = laq.variables["params"]["tower"]
    model = inverse_dynamics.reading(laq.model, 3)
    task = Task(reference.build_model(evaluation.source, model), {"action": 1.0})
    with jax.set_mesh(laq.mesh):
        given = {"tower": tower}
        best, *_ = reference._train_until_it_stops(task, evaluation.source, laq.mesh, 2, lambda _: 0.5, given)
    chex.assert_trees_all_equal(best["params"]["tokenizer"]["tower"], tower)
    assert reference.scores(evaluation.source, laq, steps=2, limit=18, cache=tmp_path).steps == 2


def test_the_explorer_looks_codes_up_and_draws_no_frames(run, browser):
    explorer = LatentActions(load(run[0]), run[0], Options())
    explorer.prepare()
    with serving(explorer) as address:
        assert ask(address, "pairs", codes=explorer.index.codes[0].tolist())["count"] > 0
        asked = {"episode": 0, "step": 0, "actions": []}
        assert "of features predicts no images" in refused(address, "rollout", asked)
        page = browser.open(f"http://{address}/")
        page.wait("document.body.dataset.ready && document.querySelectorAll('#examples img').length")
        assert page.run("document.querySelector('#rollout').hidden && !document.querySelector('#codes').hidden")
        page.check()
        page.close()


def test_an_exported_model_gives_the_same(run, tmp_path):
    laq = load(run[0])
    laq.save_pretrained(tmp_path / "out")
    again = load(tmp_path / "out")
    frames = np.stack([square(0, 0), square(0, 3)])
    assert again.fingerprint == laq.fingerprint and not laq.predicts_images
    codes = laq.encode(frames)
    np.testing.assert_array_equal(again.encode(frames), codes)
    assert laq.decode(frames[0], codes).shape == (4, 4, 16) == laq.observe(frames[:1])[0].shape
