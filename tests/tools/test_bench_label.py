"""tools/bench_label.py: steps and labels of a small model in turns, and what it refuses."""

import json

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.escape import table
from tools import bench_label
from tools.benchmarks import records


def test_labels_beside_training_steps(one_device, tmp_path, capsys):
    bench_label.main(["--config", "configs/laq.py:test", "--pairs", "2", "--seconds", "0.05", "--json",
                      str(tmp_path / "labels.json")])  # fmt: skip
    (row,) = json.loads((tmp_path / "labels.json").read_text())["rows"]
    assert row["cpu"]["pairs"] == 2 and row["cpu"]["median"] > 0 and row["clock"]["median"] > 0
    assert "| `configs/laq.py:test` |" in capsys.readouterr().out


def test_the_page_has_the_figures_of_the_record(root):
    record = records.read(root / "docs/results/benchmarks/labels.json")
    page = (root / "docs/results/benchmarks.md").read_text()
    lines = table(bench_label.HEAD, [bench_label.cells(row) for row in record["rows"]])
    assert "\n".join(lines) in page and f"`{record['command']}`" in page


def test_refusals_are_one_line():
    with pytest.raises(UserError, match="--pairs 0 is 1 or more"):
        bench_label.main(["--pairs", "0"])
