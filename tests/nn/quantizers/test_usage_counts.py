"""Counting codes: against values worked out by hand."""

import numpy as np

from lapa_jax.nn.quantizers import usage

CODES = np.array([[0, 1], [0, 1], [2, 1], [0, 3]], np.int32)


def test_histogram_counts_by_position():
    np.testing.assert_array_equal(usage.histogram(CODES, 4), [[3, 0, 1, 0], [0, 3, 0, 1]])


def test_sequences_come_most_frequent_first():
    found, counts = usage.sequences(CODES)
    np.testing.assert_array_equal(found, [[0, 1], [0, 3], [2, 1]])
    np.testing.assert_array_equal(counts, [2, 1, 1])


def test_summary():
    summary = usage.summarize(CODES, 4)
    assert summary["most_frequent_sequence"] == [0, 1] and summary["most_frequent_share"] == 0.5
    assert summary["codebook_utilization"] == 0.5 and summary["sequences_used"] == 3 and summary["steps"] == 4
    assert summary["histogram"] == [[3, 0, 1, 0], [0, 3, 0, 1]]
    np.testing.assert_allclose(summary["sequence_perplexity"], np.exp(1.5 * np.log(2)))


def test_names_separate_codes_of_several_digits():
    assert usage.name([3, 0, 1, 7]) == "3017"
    assert usage.name([12, 0]) == "12-0"


def test_mean_action_per_code_is_standardised_and_nan_where_unused():
    actions = np.array([[1.0], [3.0], [-4.0], [0.0]], np.float32)
    means = usage.mean_action_per_code(CODES, actions, 4)
    standard = actions[:, 0] / actions[:, 0].std()
    np.testing.assert_allclose(means[0, 0, 0], standard[[0, 1, 3]].mean(), rtol=1e-5)
    np.testing.assert_allclose(means[0, 2, 0], standard[2], rtol=1e-5)
    assert np.isnan(means[0, 1, 0]) and means.shape == (2, 4, 1)


def test_mean_action_per_sequence_keeps_the_unit():
    actions = np.array([[1.0], [3.0], [-4.0], [0.0]], np.float32)
    means = usage.mean_action_per_sequence(CODES, actions, np.array([[0, 1], [2, 1]]))
    np.testing.assert_allclose(means, [[2.0], [-4.0]])
