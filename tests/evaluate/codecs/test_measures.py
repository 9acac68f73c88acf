"""Figures of a comparison, recomputed by hand on sets small enough for it."""

import dataclasses

import numpy as np
import pytest

from lapa_jax.data.statistics import column_statistics
from lapa_jax.evaluate.codecs import measures, report
from lapa_jax.evaluate.codecs.bins import Bins
from lapa_jax.evaluate.codecs.chunks import read_chunks
from lapa_jax.evaluate.codecs.fast import Fast
from tests.evaluate.codecs.action_shards import episodes, write


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("walks") / "s"
    return read_chunks("walks", write(folder, episodes(rng, [40] * 8), episodes(rng, [24] * 3), fps=5.0), length=8)


def test_the_figures_of_bins_by_hand(walks):
    codec = Bins("uniform_min_max", 4).fit(walks.train, walks.summary)
    found = measures.measure(codec, walks)
    low, high = np.min(walks.summary["min"][0]), walks.summary["max"][0]
    true = walks.val.astype(np.float64)
    bins = np.clip(np.floor((true[..., 0] - low) / (high - low) * 4), 0, 3)
    said = low + (bins + 0.5) * (high - low) / 4
    error = said - true[..., 0]
    assert found["tokens"] == 16 and found["bits_per_step"] == pytest.approx(2 + 1)
    assert found["bits_per_second"] == pytest.approx(5 * 3)
    assert found["rmse"] == pytest.approx([np.sqrt(np.mean(error**2)), 0, 0], rel=1e-5)
    assert found["mae"] == pytest.approx([np.mean(np.abs(error)), 0, 0], rel=1e-5)
    assert found["p99_error"] == pytest.approx([np.quantile(np.abs(error), 0.99), 0, 0], rel=1e-5)
    assert found["max_error"] == pytest.approx([np.max(np.abs(error)), 0, 0], rel=1e-5)
    half_range = (walks.summary["q99"][0] - walks.summary["q01"][0]) / 2
    by_hand = np.sqrt((np.mean((error / half_range) ** 2) + 0) / 2)
    assert found["normalized_rmse"] == pytest.approx(by_hand, rel=1e-5), "the constant dimension does not count"
    assert found["gripper_accuracy"] == 1 and found["gripper_accuracies"] == {"2": 1.0}
    assert found["failures"] == 0 and found["failures_damaged"] == 0
    assert all(value > 0 for way in found["microseconds"].values() for value in way.values())


def test_gripper_accuracy_counts_the_nearest_levels():
    levels = {1: np.array([-1.0, 0.0, 1.0])}
    true = np.array([[[9, -1.0], [9, 0.0], [9, 1.0], [9, 0.9]]])
    said = np.array([[[0, -0.6], [0, 0.6], [0, 0.51], [0, 3.0]]])
    assert measures.gripper_accuracies(said, true, levels) == {1: 0.75}
    assert measures.gripper_accuracies(said, true, {}) == {}


def test_coded_bits_are_the_code_lengths_of_training_frequencies(walks):
    for codec in (Bins("uniform_min_max", 8), Fast(3, 64)):
        codec.fit(walks.train, walks.summary)
        training, tokens = codec.encode(walks.train_apart), codec.encode(walks.val)
        counts, seen, total = {}, {}, 0.0
        for sequence in training:
            sizes, groups = codec.alphabets(sequence)
            for token, group in zip(sequence.tolist(), groups.tolist(), strict=True):
                counts[group, token] = counts.get((group, token), 0) + 1
                seen[group] = seen.get(group, 0) + 1
        for sequence in tokens:
            for token, group, size in zip(sequence.tolist(), *codec.alphabets(sequence)[::-1], strict=True):
                total -= np.log2((counts.get((group, token), 0) + 0.5) / (seen[group] + size / 2))
        assert measures.coded_bits(codec, tokens, training) == pytest.approx(total, rel=1e-9)


def test_even_tokens_cannot_be_coded_shorter_and_a_single_one_nearly_vanishes():
    rows = np.linspace(0, 1, 4096, dtype=np.float32).reshape(-1, 8, 1)
    codec = Bins("uniform_min_max", 16).fit(rows, column_statistics([rows.reshape(-1, 1)]))
    tokens = codec.encode(rows)
    assert measures.coded_bits(codec, tokens, tokens) == pytest.approx(codec.bits(tokens).sum(), rel=1e-3)
    same = codec.encode(np.zeros((512, 8, 1), np.float32))
    assert measures.coded_bits(codec, same, same) < 0.01 * codec.bits(same).sum()


def test_damage_changes_one_token_and_breaks_what_has_no_fixed_length(walks):
    codec = Fast(5, 64).fit(walks.train, walks.summary)
    tokens, seen = codec.encode(walks.val), []

    class Spy:
        alphabets = staticmethod(codec.alphabets)

        @staticmethod
        def decode(damaged):
            seen.extend(damaged)
            return codec.decode(damaged)

    share = measures.damaged_failures(Spy, tokens)
    originals = list(tokens) * (len(seen) // len(tokens))
    assert len(seen) >= measures.DAMAGED - len(tokens)
    assert {int((a != b).sum()) for a, b in zip(seen, originals, strict=True)} == {1}
    wrong = [sum(len(codec._pieces[token]) for token in sequence) != 8 * 2 for sequence in seen]
    assert share == pytest.approx(np.mean(wrong)) and 0 < share < 1
    assert measures.damaged_failures(codec, tokens) == share, "it is the same every time"


def test_curves_keep_what_nothing_beats():
    curve = measures.Curve([(4, 0.5), (1, 2.0), (3, 1.0), (2, 2.5), (8, 0.5), (6, 0.6)])
    np.testing.assert_array_equal(curve.bits, [1, 3, 4])
    np.testing.assert_array_equal(curve.errors, [2, 1, 0.5])
    assert curve.error_at(0.9) is None and curve.error_at(100) == pytest.approx(0.5)
    assert curve.error_at(2) == pytest.approx(np.sqrt(2)) and curve.error_at(3) == pytest.approx(1)
    assert curve.bits_at(0.4) is None and curve.bits_at(0.5) == pytest.approx(4) and curve.bits_at(9) == 1
    assert curve.bits_at(np.sqrt(2)) == pytest.approx(2)


def figures(name, family, bits, error, *, learned=False):
    micro = {way: {"1": 10.0, "64": 1.0} for way in ("encode", "decode")}
    return {"name": name, "family": family, "usual": False, "learned": learned, "tokens": 4.0, "bits_per_step": bits,
            "bits_per_second": None, "coded_bits_per_step": bits, "coded_bits_per_second": None, "rmse": [error],
            "mae": [error], "p99_error": [error], "max_error": [error], "normalized_rmse": error,
            "gripper_accuracy": None, "failures": 0, "failures_damaged": 0.25, "microseconds": micro}  # fmt: skip


def test_the_table_of_equal_bits_names_the_lowest():
    others = [figures("a1", "a", 2, 0.4), figures("a2", "a", 4, 0.1), figures("b1", "b", 5, 0.01)]
    assert report.equal_bits_table(others) == []
    measured = [*others, figures("won", "ours", 3, 0.15, learned=True), figures("lost", "ours", 6, 0.1, learned=True)]
    head, _, won, lost = report.equal_bits_table(measured)
    assert head == "| learned | bits a step | its error | a | b |"
    assert won == "| won | 3.00 | **0.1500** | 0.2000 (3.42) | too few bits (5.00) |"
    assert lost == "| lost | 6.00 | 0.1000 | 0.1000 (4.00) | **0.0100** (5.00) |"


def test_the_page_says_where_bits_are_a_step(walks):
    codec = Bins("uniform_min_max", 256).fit(walks.train, walks.summary)
    one = {**measures.measure(codec, walks), "learned": False}
    page = report.markdown([(walks, [one], "p.png")])
    assert "bits a second" in page and "(p.png)" in page and "45.0" in page
    assert "9 held-out chunks of 8 steps (1.6 s) from 3 episodes; 0 of their 72 steps" in page
    without = dataclasses.replace(walks, seconds=None)
    page = report.markdown([(without, [{**one, "bits_per_second": None}], "p.png")])
    assert "It has no clock: bits are per step" in page and "bits a step" in page and "9.0" in page
