import numpy as np
import pytest

from lapa_jax.nn.quantizers import usage


def test_known_histograms():
    assert usage.perplexity(np.array([5, 0, 0])) == pytest.approx(1)
    assert usage.perplexity(np.array([3, 3, 3, 0])) == pytest.approx(3)


def test_batch_and_data_set_agree():
    codes = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(np.int32)
    batch, whole = usage.batch_usage(codes, 8), usage.dataset_usage(codes, 8)
    assert float(batch["perplexity"]) == pytest.approx(whole["perplexity"], rel=1e-4)
    assert float(batch["codebook_utilization"]) == whole["codebook_utilization"] == 5 / 8


def test_positions_are_told_apart():
    codes = np.stack([np.zeros(8, int), np.arange(8)], 1)
    found = usage.dataset_usage(codes, 8)
    assert found["perplexity_position_0"] == pytest.approx(1)
    assert found["perplexity_position_1"] == pytest.approx(8)
    assert found["perplexity"] == pytest.approx(4.5)
    assert found["sequences_used"] == 8 and found["sequence_perplexity"] == pytest.approx(8)


def test_collapse_is_named_when_one_code_takes_over_nine_tenths():
    codes = np.zeros((100, 2), int)
    codes[:19, 0] = 1
    assert usage.dataset_usage(codes, 8)["collapse"] == 1
    codes[:21, 0] = 1
    assert usage.dataset_usage(codes, 8)["collapse"] == 0
