"""From a stage-1 run to a stage-2 run: codes are labelled, joined with their steps, learned from, never mixed up."""

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data import pipeline
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.evaluate import evaluation_of
from lapa_jax.label.labeller import Labeller
from lapa_jax.train.loop import train
from lapa_jax.train.setup import prepare
from tests.inference import small_run
from tests.inference.test_latent_policy import SMALL

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def tokenizer(root, tmp_path_factory):
    """A LAQ as a run leaves it, with a gap of 3 frames."""
    return lapa_jax.load(small_run.write(tmp_path_factory.mktemp("laq") / "run", root, "sample", steps=(1,)))


@pytest.fixture(scope="module")
def labels(tokenizer, tmp_path_factory):
    """What launch/label.py --continuous writes of the sample: codes and deltas."""
    folder = tmp_path_factory.mktemp("labels") / "labels"
    Labeller(tokenizer, "sample", folder, continuous=True).run(progress=False)
    return folder


def config_of(root, *overrides: str):
    return config_lib.load(f"{root}/configs/vla_latent.py:tiny", [f"--config.{o}" for o in (*SMALL, *overrides)])


def test_every_step_learns_the_codes_that_the_tokenizer_gives_its_pair(root, tokenizer, labels):
    config = config_of(root, f"data.labels={labels}", f"data.labels_tokenizer={tokenizer.fingerprint}")
    source, shards = pipeline.build(config.data, "train"), StepShards("sample", "train")
    rows = [0, 5, 17, 100, 311]
    batch = source.batch(rows)
    for row, codes, mask in zip(rows, batch["latent"], batch["latent_mask"], strict=True):
        episode, step = source.locate(row)
        begin, length = shards.episodes[episode].start, shards.episodes[episode].length
        first, last = begin + step, begin + length - 1
        pair = [shards.image(i, "image") for i in (first, min(first + 3, last))]
        np.testing.assert_array_equal(codes, tokenizer.encode(np.stack(pair)))
        delta = StepShards(labels, "train").array(first, "delta")
        np.testing.assert_allclose(delta, tokenizer.encode_both(np.stack(pair))["delta"], atol=1e-5)
        assert mask == (first + 3 <= last)
    everything = source.batch(range(len(source)))["latent_mask"]
    clipped = sum(min(3, episode.length) for episode in shards.episodes)
    assert (everything == 0).sum() == clipped == source.summary()["samples_with_clipped_latent"] > 0


def test_a_policy_learns_from_them_and_remembers_whose_they_are(root, tokenizer, labels, tmp_path):
    train(config_of(root, f"data.labels={labels}", f"data.labels_tokenizer={tokenizer.fingerprint}"), tmp_path / "run")
    policy = lapa_jax.load(tmp_path / "run")
    assert policy.labels["tokenizer"] == tokenizer.fingerprint and policy.labels["gap_frames"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.labels_tokenizer=" + "1" * 64,), "were made by tokenizer .*, not by 111111111111"),
        (("data.val_path=sample", "data.val_labels=sample_latents"), "held-out latents are of tokenizer"),
        (("model.codebook_size=16",), "codebook_size is 16, the data have 8"),
    ],
)
def test_labels_of_another_tokenizer_are_refused_before_anything_is_written(root, labels, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(config_of(root, f"data.labels={labels}", *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def continuous(root, labels, tmp_path_factory):
    """A run of stage 2 that learned the deltas."""
    overrides = [f"data.labels={labels}", *SMALL, "model.head.width=16"]
    config = config_lib.load(f"{root}/configs/vla_latent.py:tiny+continuous", [f"--config.{o}" for o in overrides])
    run = tmp_path_factory.mktemp("continuous") / "run"
    train(config, run)
    return run


def test_a_policy_learns_the_deltas_in_place_of_codes(continuous, labels, tokenizer, tmp_path):
    line = read_metrics(continuous)[-1]
    assert line["val/latent_mse"] > 0 and line["val/latent_mse_mean"] > 0 and line["val/latent_r2"] < 1
    policy, shards = lapa_jax.load(continuous), StepShards("sample", "val")
    assert policy.labels["tokenizer"] == tokenizer.fingerprint
    deltas = policy.predict(shards.image(0, "image"), shards.text(0))
    assert deltas.shape == tokenizer.delta_shape and deltas.dtype == np.float32
    # R² in the units of the tokenizer is that of normalised deltas: scaling feature by feature leaves it.
    result = evaluation_of(policy)(policy, run=continuous, out=tmp_path / "eval", pairs=60).write()
    metrics = result["metrics"]
    assert {"latent_r2", "latent_mse_mean", "text_use", "image_use"} <= metrics.keys()
    assert (tmp_path / "eval" / "deltas.png").is_file() and (tmp_path / "eval" / "report.html").is_file()
    whole = [i for e in shards.episodes for i in range(e.start, e.start + e.length - 3)]
    true = np.concatenate(list(StepShards(labels, "val").column("delta")))[whole].reshape(len(whole), -1)
    images, texts = np.stack([shards.image(i, "image") for i in whole]), [shards.text(i) for i in whole]
    predicted = policy.predict(images, texts).reshape(len(whole), -1)
    everything = evaluation_of(policy)(policy, run=continuous, out=tmp_path / "all", pairs=len(shards))
    by_hand = 1 - np.square(predicted - true).mean(0) / true.var(0)
    assert everything.measure(policy.variables)[0]["latent_r2"] == pytest.approx(by_hand.mean(), rel=1e-3)


@pytest.mark.parametrize("variant", ["tiny", "tiny+flow"])
def test_stage_three_begins_with_a_continuous_run_as_with_one_of_codes(root, continuous, variant):
    small = [f"--config.{o}" for o in SMALL]
    config = config_lib.load(f"{root}/configs/vla_action.py:{variant}", [*small, f"--config.init_from.={continuous}"])
    setup = prepare(config)
    names = tree.flatten(setup.abstract.variables)
    fresh = {name for name in names if name not in setup.loaded.names}
    assert fresh == {name for name in names if name.startswith(("params/act/", "params/action_queries"))}
    theirs = lapa_jax.load(continuous).variables["params"]["projector"]["out"]["kernel"]
    np.testing.assert_array_equal(setup.loaded.read(names)["params/projector/out/kernel"], theirs)


def test_a_head_of_codes_cannot_begin_with_a_continuous_run(root, continuous):
    small = [f"--config.{o}" for o in SMALL]
    with pytest.raises(UserError, match="queries"):
        prepare(config_lib.load(f"{root}/configs/vla_action.py:tiny+latent",
                                [*small, f"--config.init_from.={continuous}"]))  # fmt: skip
