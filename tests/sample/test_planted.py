"""Planted features: what is said of them is true, and the embedded ones are what the tool makes."""

import json
import pathlib
import runpy

import numpy as np
import pytest

from lapa_jax import sample
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.sample.planted import planted_features


def test_the_truth_is_true():
    rows, truth = planted_features(5000, 3, categories=5)
    assert rows.dtype == np.float32 and len(truth["categories"]) == rows.shape[1]
    owner = np.array(truth["categories"])
    assert set(owner) == {-1, 0, 1, 2, 3, 4}
    assert not np.ptp(rows[:, truth["constants"]], axis=0).any()
    ranks = np.argsort(np.argsort(rows, axis=0), axis=0).astype(float)  # outliers do not count
    ranks[:, truth["constants"]] = np.random.default_rng(0).random((len(rows), 2))
    correlation = np.abs(np.corrcoef(ranks.T))
    same = (owner[:, None] == owner) & (owner[:, None] >= 0)
    assert correlation[same].min() > 0.6
    assert correlation[~same & ~np.eye(len(owner), dtype=bool)].max() < 0.25
    for first, second in truth["duplicates"]:
        a, b = (rows[:, [first, second]].astype(np.float64) - rows[:, [first, second]].mean(0)).T
        assert abs(a @ b) / np.sqrt((a @ a) * (b @ b)) == pytest.approx(1, abs=1e-5)


def test_the_seed_decides_everything():
    first, second, other = (planted_features(100, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_the_embedded_ones_are_made_again_to_the_bit(root, tmp_path):
    tool = runpy.run_path(str(root / "tools/make_planted_features.py"))
    tool["main"]([str(tmp_path / "made"), "--rows", "640", "--categories", "4", "--val_fraction", "0.2"])
    folder = pathlib.Path(sample.path("sample_features"))
    assert json.loads((folder / "planted.json").read_text()) == json.loads((tmp_path / "made/planted.json").read_text())
    for split, steps in (("train", 500), ("val", 140)):
        embedded, made = StepShards("sample_features", split), StepShards(tmp_path / "made", split)
        assert len(embedded) == len(made) == steps
        for i in range(0, steps, 7):
            # sine and logarithm may differ in the last bit from one processor to another
            np.testing.assert_allclose(embedded.array(i, "feature"), made.array(i, "feature"), rtol=1e-5)


def test_too_few_rows_are_refused(root, tmp_path):
    tool = runpy.run_path(str(root / "tools/make_planted_features.py"))
    with pytest.raises(Exception, match="--rows must be 64 or more"):
        tool["main"]([str(tmp_path / "x"), "--rows", "10"])
