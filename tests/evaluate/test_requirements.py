"""`--require`: bars are read, names are checked before anything is evaluated, and what is not reached is named."""

import json
import subprocess
import sys

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.evaluate import requirements
from lapa_jax.evaluate.requirements import Requirement


def test_bars_and_sets_are_read():
    read = requirements.parse(["swap_gap>=0.15", " mse < 1e-3", "bridge/psnr>22", "val-x<=-2", "spec-laq"])
    assert read[:4] == [Requirement("swap_gap", ">=", 0.15), Requirement("mse", "<", 1e-3),
                        Requirement("bridge/psnr", ">", 22.0), Requirement("val-x", "<=", -2.0)]  # fmt: skip
    assert read[4:] == [Requirement("psnr", ">", 22.0), Requirement("codebook_utilization", ">", 0.7)]
    assert str(read[0]) == "swap_gap>=0.15"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("swap_gap", "not of the form METRIC>=NUMBER"),
        ("swap_gap=0.15", "not of the form"),
        ("swap_gap==0.15", "not of the form"),
        ("swap_gap>=high", "'high' is no number"),
        ("swap_gap>=nan", "'nan' is no number"),
        ("spec-lag", "did you mean 'spec-laq"),
        ("", "not of the form"),
    ],
)
def test_what_is_no_bar_is_refused(text, words):
    with pytest.raises(UserError) as error:
        requirements.parse([text])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("sign", "value", "reached"),
    [(">=", 0.15, True), (">", 0.15, False), ("<=", 0.15, True), ("<", 0.15, False), (">=", 0.1, False),
     (">", 0.2, True), ("<=", 0.2, False), ("<", 0.1, True)],
)  # fmt: skip
def test_signs(sign, value, reached):
    lines = requirements.failures([Requirement("gap", sign, 0.15)], {"gap": value})
    assert lines == ([] if reached else [f"gap{sign}0.15: gap is {value:g}"])


def test_missing_and_infinite_metrics_reach_nothing_and_are_named():
    wanted = requirements.parse(["a>0", "b<9", "psnr>1", "d>1"])
    lines = requirements.failures(wanted, {"a": None, "b": float("inf"), "psnr_gain": 3.0, "d": float("nan")})
    assert lines == ["a>0: a is not finite", "b<9: b is not finite",
                     "psnr>1: this evaluation has no psnr; did you mean 'psnr_gain'?", "d>1: d is not finite"]


def test_a_misspelt_metric_is_refused_before_jax_is_imported(root, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "val/swap_gap": 0.1, "train/loss": 1}) + "\n")
    script = ("import sys; from launch import eval\n"
              "try: eval.main(['--run', sys.argv[1], '--require', 'swap_gab>=0.15'])\n"
              "finally: assert 'jax' not in sys.modules")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert "UserError: --require swap_gab>=0.15: this evaluation has no metric 'swap_gab'; did you mean 'swap_gap'?" \
        in done.stderr  # fmt: skip


def test_names_come_from_the_run_and_from_what_evaluations_add(tmp_path):
    assert requirements.names_of_run(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val/psnr": 1.0}\n{"step": 1, "train/loss": 2.0}\n')
    names = requirements.names_of_run(tmp_path / "checkpoints" / "best")
    assert {"psnr", "action_probe_r2_reference", "text_use"} <= names and "loss" not in names
    requirements.check_names(requirements.parse(["bridge/psnr>2"]), names)
    with pytest.raises(UserError, match="did you mean 'success_rate'"):
        requirements.check_names(requirements.parse(["sucess_rate>0.5"]), requirements.CLOSED_LOOP)
