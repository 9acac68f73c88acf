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
    assert float(batch["codebook_utilization"]) == pytest.approx(whole["codebook_utilization"]) == 5 / 8
    names = [f"codebook_utilization_position_{i}" for i in range(3)]
    assert [float(batch[name]) for name in names] == [whole[name] for name in names] == [5 / 8] * 3


def test_positions_are_told_apart():
    codes = np.stack([np.zeros(8, int), np.arange(8)], 1)
    found = usage.dataset_usage(codes, 8)
    assert found["perplexity_position_0"] == pytest.approx(1)
    assert found["perplexity_position_1"] == pytest.approx(8)
    assert found["perplexity"] == pytest.approx(4.5) and found["perplexity_least"] == pytest.approx(1)
    assert found["sequences_used"] == 8 and found["sequence_perplexity"] == pytest.approx(8)


def test_each_position_uses_codes_of_its_own():
    """11 of the 32 codes of four codebooks: together the positions use every index, and none uses them all."""
    codes = np.stack([np.arange(40) % 3, 3 + np.arange(40) % 3, 5 + np.arange(40) % 3, np.arange(40) % 2], 1)
    batch, whole = usage.batch_usage(codes.astype(np.int32), 8), usage.dataset_usage(codes, 8)
    assert len(np.unique(codes)) == 8
    assert float(batch["codebook_utilization"]) == whole["codebook_utilization"] == 11 / 32
    assert whole["codebook_utilization_position_3"] == 2 / 8


def test_one_constant_position_is_a_collapse():
    codes = np.random.default_rng(0).integers(0, 8, (100, 4))
    assert usage.dataset_usage(codes, 8)["collapse"] == 0
    codes[:, 2] = 5
    found = usage.dataset_usage(codes, 8)
    assert found["collapse"] == 1 and found["largest_code_share"] == found["largest_code_share_position_2"] == 1
    assert found["largest_code_share_position_1"] < 0.3
    codes[:10, 2] = 1
    assert usage.dataset_usage(codes, 8)["collapse"] == 0, "90 % is not yet more than 90 %"
