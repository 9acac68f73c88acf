"""Which samples an evaluation reads: those of training, or other data with what the run did with them."""

import ml_collections
import numpy as np
import pytest

from lapa_jax.data import pipeline
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.evaluate.base import data_config
from tests.data.samples import make


@pytest.fixture
def run(tmp_path):
    """(config, datasets) of a run of frame pairs on a mixture of two folders, and the folders, a third among them."""
    folders = []
    for seed in range(3):
        (tmp_path / f"d{seed}").mkdir()
        lengths = {"train": [[5]], "val": [[6, 9]]}
        folders.append(make.write(tmp_path / f"d{seed}", lengths, cameras=("image", "image_wrist"), seed=seed))
    parts = ({"path": str(folders[0]), "weight": 1.0},
             {"path": str(folders[1]), "weight": 2.0, "name": "mine", "camera": "image_wrist", "gap_seconds": 0.3,
              "split_val": None})  # fmt: skip
    data = {"samples": "pairs", "mixture": parts, "camera": "image", "gap_frames": 1, "split_train": "train",
            "split_val": "val", "val_path": None}  # fmt: skip
    datasets = {"d0": {"fingerprint": StepShards(folders[0], "val").fingerprint},
                "mine": {"fingerprint": StepShards(folders[1], "val").fingerprint}}  # fmt: skip
    return ml_collections.ConfigDict({"data": data}), datasets, folders


@pytest.mark.parametrize(("number", "camera", "gap"), [(0, "image", 1), (1, "image_wrist", 3), (2, "image", 1)])
def test_data_of_a_mixture_are_read_as_their_part_was(run, number, camera, gap):
    """The camera and the gap of that part; those of the run where the data were no part of it."""
    config, datasets, folders = run
    chosen = data_config(config, folders[number], None, datasets)
    source = pipeline.build(chosen, "val")
    assert source.gaps.tolist() == [gap, gap]
    steps = make.decoded(folders[number], "val")[1]
    first = next(i for i in range(len(source)) if source.locate(i) == (1, 2, gap))
    expected = np.stack([steps[2][f"{camera}.jpg"], steps[2 + gap][f"{camera}.jpg"]])
    assert make.close(source[first]["frames"], expected)


def test_without_other_data_the_run_s_own_are_read(run):
    config, datasets, _ = run
    assert data_config(config, None, None, datasets) == {**config.data, "split_val": "val"}
    assert data_config(config, None, "train", datasets)["split_val"] == "train"
