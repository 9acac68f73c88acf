"""tools/bench_label.py: steps and labels of a small model in turns, and what it refuses."""

import json

import pytest

from lapa_jax.core.errors import UserError
from tools import bench_label


def test_labels_beside_training_steps(one_device, tmp_path, capsys):
    bench_label.main(["--config", "configs/laq.py:test", "--pairs", "2", "--seconds", "0.05", "--json",
                      str(tmp_path / "labels.json")])  # fmt: skip
    (row,) = json.loads((tmp_path / "labels.json").read_text())["rows"]
    assert row["cpu"]["pairs"] == 2 and row["cpu"]["median"] > 0 and row["clock"]["median"] > 0
    assert "| `configs/laq.py:test` |" in capsys.readouterr().out


def test_refusals_are_one_line():
    with pytest.raises(UserError, match="--pairs 0 is 1 or more"):
        bench_label.main(["--pairs", "0"])
