"""Labels of the embedded sample dealt to other steps, or drawn at random: they fit the data and say nothing."""

import common_settings
import numpy as np
import pytest

from lapa_jax import sample
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.shards.labels import read_label_info
from lapa_jax.data.shards.step_shards import DATASET, StepShards
from launch.studies import scramble_labels

LABELS = sample.path("sample_latents")


def codes_of(folder, split="train"):
    return np.concatenate(list(StepShards(folder, split).column("latent")))


@pytest.mark.parametrize("how", common_settings.SCRAMBLED)
def test_they_fit_the_data_and_say_nothing(tmp_path, how):
    command = ["--labels", LABELS, "--how", how, "--out", str(tmp_path / "out")]
    scramble_labels.main(command)
    true, scrambled = codes_of(LABELS), codes_of(tmp_path / "out")
    assert scrambled.shape == true.shape and scrambled.dtype == true.dtype
    rows = lambda codes: sorted(map(tuple, codes.tolist()))  # noqa: E731
    assert (rows(scrambled) == rows(true)) is (how == "shuffled")
    # Of the sequences one in 20 is right by chance, at most, where all occur equally often.
    assert (scrambled == true).all(1).mean() < 0.3
    one, other = read_label_info(LABELS), read_label_info(tmp_path / "out")
    assert one["tokenizer"] != other["tokenizer"] and one["source"] == other["source"]
    # Trained on as any labels are, step by step those of the data.
    data = {"path": "sample", "samples": "steps", "fields": ("latent",), "labels": str(tmp_path / "out")}
    assert (pipeline.build(data, "train").batch([3, 4])["latent"] == scrambled[[3, 4]]).all()
    written = (tmp_path / "out" / DATASET).stat().st_mtime_ns
    scramble_labels.main(command)
    assert (tmp_path / "out" / DATASET).stat().st_mtime_ns == written, "what is there is not made again"
    scramble_labels.main([*command[:-1], str(tmp_path / "again")])
    assert (codes_of(tmp_path / "again") == scrambled).all()
    scramble_labels.main([*command[:-1], str(tmp_path / "seed"), "--seed", "1"])
    assert (codes_of(tmp_path / "seed") != scrambled).any()


def test_what_are_no_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no latent labels"):
        scramble_labels.main(["--labels", sample.path("sample"), "--how", "random", "--out", str(tmp_path)])
