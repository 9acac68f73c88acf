"""tools/bench_growth.py: laws and turns, a step and the data against their size, and a part that fails."""

import json

import pytest

from lapa_jax.core.errors import UserError
from tools import bench_growth
from tools.benchmarks import growth


def test_a_part_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nothing")  # which data do without
    with pytest.raises(UserError, match="not measured: batch"):
        bench_growth.main(["--part", "batch", "--part", "data", "--sizes", "2", "--out", str(tmp_path)])
    assert "batch failed with exit code 2" in (said := capsys.readouterr()).err and "nothing" in said.err
    record = json.loads((tmp_path / "growth_data.json").read_text())
    assert [row["size"] for row in record["rows"]] == [10_000, 100_000]
    assert {path.name for path in tmp_path.iterdir()} == {"growth_data.json", "growth_data.png"}
    assert record["laws"]["MiB sent to a worker"] == "linear" and record["command"].endswith("--part data --sizes 2")
    # The law goes through the largest size.
    small, large = (row["CPU s to open"] for row in record["rows"])
    assert large["measured"] == large["expected"] == pytest.approx(10 * small["expected"], rel=0.01)
    lines = [line for line in said.out.splitlines() if line.startswith("| `data` | steps of the data |")]
    assert len(lines) == len(record["laws"]) and "| 10,000 to 100,000 |" in lines[0]


def test_a_step_against_the_batch(one_device):
    measured = growth.steps("rows", (16, 256), "linear", "configs/feature_vq.py:test", "train.batch_size={}")
    time, memory = measured.series[growth.CPU], measured.series[growth.MEMORY]
    assert time.law == "linear" and time.measured[1] > 0
    # Activations are linear in the batch; gradients beside them are not.
    assert 2 < memory.measured[1] / memory.measured[0] < 16 and memory.expected[0] == memory.measured[1] / 16


def test_rounds_go_forwards_and_backwards():
    order: list[str] = []
    functions = [lambda name=name: order.append(name) or len(order) for name in "ABC"]
    assert len(growth.in_rounds(functions)) == 3 and "".join(order) == "ABCCBAABCCBAABC"


def test_growth_begins_where_something_is_measured():
    rows = [{"size": size, "sent": {"measured": measured, "expected": measured}}
            for size, measured in ((1, 0.0), (2, 3.0), (4, 4.5))]  # fmt: skip
    (row,) = bench_growth.cells("devices", {"against": "devices", "laws": {"sent": "3 w (n - 1) / n"}, "rows": rows})
    assert row == ("`devices`", "devices", "2 to 4", "sent: 3 to 4.5", "1.5", "3 w (n - 1) / n", "1.5")


def test_refusals_are_one_line():
    with pytest.raises(UserError, match="--part dept is no part; did you mean 'depth'"):
        bench_growth.main(["--part", "dept"])
    with pytest.raises(UserError, match="--sizes 1: growth is seen from two sizes on"):
        bench_growth.main(["--sizes", "1"])
    with pytest.raises(UserError, match="test_bench_growth.py cannot be written"):
        bench_growth.main(["--out", __file__])
