"""From a stage-1 run to a stage-2 run: codes are labelled, joined with their steps, learned from, never mixed up."""

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.label.labeller import Labeller
from lapa_jax.train.loop import train
from tests.inference import small_run
from tests.inference.test_latent_policy import SMALL

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def tokenizer(root, tmp_path_factory):
    """A LAQ as a run leaves it, with a gap of 3 frames."""
    return lapa_jax.load(small_run.write(tmp_path_factory.mktemp("laq") / "run", root, "sample", steps=(1,)))


@pytest.fixture(scope="module")
def labels(tokenizer, tmp_path_factory):
    """What launch/label.py writes of the sample."""
    folder = tmp_path_factory.mktemp("labels") / "labels"
    Labeller(tokenizer, "sample", folder).run(progress=False)
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
