"""Images that are not square become so at inference as they did in training: by the mode that the data name."""

import json
import types
import warnings

import numpy as np
import pytest
from PIL import Image

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.data import images, pipeline
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.inference import observations
from lapa_jax.label import codes
from lapa_jax.serve import service
from lapa_jax.serve.messages import Reader
from tests.inference import small_policy, small_run

SIDE = small_policy.SIDE
MODES = ("squash", "center_crop")


def bar() -> np.ndarray:
    """What a camera of 640 x 480 sees: a white bar of a tenth of the height."""
    image = np.full((480, 640, 3), 40, np.uint8)
    image[:, 296:344] = 255
    return image


def thickness(image: np.ndarray) -> float:
    """How wide the bar is, as a share of the height."""
    return float(image[image.shape[0] // 2].mean() - 40) / 215


def expected(mode: str) -> float:
    """A square crop keeps the tenth; squashing takes a quarter of it."""
    return 0.1 if mode == "center_crop" else 0.075


@pytest.fixture(scope="module", params=[(mode, size) for mode in MODES for size in (64, None)], ids=str)
def data(request, tmp_path_factory):
    """(mode, shards) of a camera of 640 x 480, at a size of 64 or as they are."""
    mode, size = request.param
    folder = tmp_path_factory.mktemp("data")
    (folder / "in/clip").mkdir(parents=True)
    for step in range(3):
        Image.fromarray(bar()).save(folder / f"in/clip/{step}.png")
    convert(folder / "in", folder / "out", Options(resize=mode, size=size, split="train"))
    return mode, folder / "out"


def entry(shards, features=None) -> dict:
    """What a checkpoint keeps of shards, with the numbers that the random policy needs."""
    (about,) = pipeline.build({"path": str(shards), "gap_frames": 1}, "train").meta()["datasets"].values()
    return {**about, "features": {**about["features"], **(features or {})}}


@pytest.fixture(scope="module")
def policy(root):
    """A function of {dataset: its entry in a checkpoint} to a policy that was trained on them."""
    made = small_policy.make(root, state=0)
    (about,) = made.datasets.values()

    def trained_on(**entries):
        made.datasets = {name: {**about, **own, "statistics": about["statistics"]} for name, own in entries.items()}
        return made

    return trained_on


def test_training_policy_and_server_see_the_same(data, policy):
    mode, shards = data
    assert json.loads((shards / "dataset.json").read_text())["features"]["image"]["resize"] == mode
    source = pipeline.build({"path": str(shards), "samples": "steps", "fields": ("image",)}, "train", image_size=SIDE)
    trained = source[0]["image"]
    assert thickness(trained) == pytest.approx(expected(mode), abs=0.012)
    policy = policy(table=entry(shards))
    batch, _ = policy.prepare(bar(), "go", dataset="table")
    reader = Reader(service.contract_of(policy, service.Options()))
    served = reader.read({"image": bar(), "instruction": "go"}).image[None]
    for seen in (batch["image"][0], served[0]):
        # the data were scaled down twice and went through a JPEG
        assert np.abs(seen.astype(int) - trained).mean() < 2
        assert thickness(seen) == pytest.approx(expected(mode), abs=0.012)
    labeller = types.SimpleNamespace(camera="image", tokenizer=types.SimpleNamespace(side=SIDE))
    labelled = codes.PairCodes._frame(labeller, StepShards(shards), 0)
    np.testing.assert_array_equal(labelled, trained)


@pytest.fixture(scope="module")
def tokenizer(root, tmp_path_factory):
    return lapa_jax.load(small_run.write(tmp_path_factory.mktemp("laq") / "run", root, "sample", steps=(1,)))


def test_a_tokenizer_encodes_what_it_was_trained_on(tokenizer, data):
    mode, shards = data
    tokenizer.datasets = {"table": entry(shards)}
    frames = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    box = (8, 0, 56, 48) if mode == "center_crop" else (0, 0, 64, 48)
    by_hand = Image.fromarray(frames).resize((32, 32), Image.Resampling.BILINEAR, box=box)
    seen, shown = tokenizer.observe(frames[None]), tokenizer.observe(np.asarray(by_hand)[None])
    np.testing.assert_allclose(seen, shown, atol=1e-6)


def test_data_that_name_no_mode_are_told_of(policy):
    policy = policy(table={"features": {"image": {"shape": [64, 64, 3], "codec": "jpeg"}}})
    with pytest.warns(UserWarning, match=r"image is 640 x 480 pixels and is squashed .* do not say"):
        batch, _ = policy.prepare(bar(), "go")
    np.testing.assert_array_equal(batch["image"][0], images.resize(bar(), SIDE, "squash"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.prepare(bar()[:, :480], "go")


def test_datasets_of_two_modes_need_a_name(policy):
    features = {mode: {"image": {"shape": [64, 64, 3], "codec": "jpeg", "resize": mode}} for mode in MODES}
    entries = {mode: {"features": features[mode]} for mode in MODES}
    policy = policy(**entries)
    for mode in MODES:
        batch, _ = policy.prepare(bar(), "go", dataset=mode)
        np.testing.assert_array_equal(batch["image"][0], images.resize(bar(), SIDE, mode))
    with pytest.raises(UserError, match="squash: squash, center_crop: center_crop.*dataset="):
        observations.resized(bar(), "image", SIDE, policy)
    with pytest.raises(UserError, match="unknown dataset 'other'"):
        observations.resized(bar(), "image", SIDE, policy, "other")
    square = observations.resized(bar()[:, :480], "image", SIDE, policy)
    np.testing.assert_array_equal(square, images.resize(bar()[:, :480], SIDE))


def test_the_mode_of_a_run_comes_after_the_crop_of_its_data():
    """`data.resize="lapa"` over data that were cropped: what a camera gives is cropped too."""
    for stored in (bar(), bar()[:, 80:560]):
        seen = images.to_side(stored, SIDE, "center_crop", "lapa")
        np.testing.assert_array_equal(seen, images.resize(bar()[:, 80:560], SIDE, "lapa"))
    np.testing.assert_array_equal(images.to_side(bar(), SIDE, "squash", "lapa"), images.resize(bar(), SIDE, "lapa"))
    np.testing.assert_array_equal(images.to_side(bar(), SIDE, None, None), images.resize(bar(), SIDE, "squash"))
