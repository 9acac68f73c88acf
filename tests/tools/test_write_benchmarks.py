"""tools/write_benchmarks.py: the page is what the records give, and no record is left out."""

import importlib

import pytest

from lapa_jax.core.errors import UserError
from tools import write_benchmarks
from tools.benchmarks import records

MARKED = "before\n<!-- figures: {} -->\nold\n<!-- end of figures -->\nafter\n"


def test_the_page_has_the_figures_of_all_records():
    page = write_benchmarks.PAGE.read_text()
    assert page == write_benchmarks.written(page), "run tools/write_benchmarks.py"


def test_what_stands_between_the_comments_is_written_anew(tmp_path, monkeypatch):
    (tmp_path / "labels.json").write_bytes((write_benchmarks.RECORDS / "labels.json").read_bytes())
    monkeypatch.setattr(write_benchmarks, "RECORDS", tmp_path)
    page = write_benchmarks.written(MARKED.format("labels"))
    assert page.startswith("before\n<!-- figures: labels -->\n\n`python tools/bench_label.py") and "old" not in page
    assert "| `configs/laq.py:small` |" in page and page.endswith("|\n\n<!-- end of figures -->\nafter\n")
    assert write_benchmarks.written(page) == page


ROWS = {
    "bench_guard": [{"config": "c", "rate": "step", "cpu": {"median": 2.0, "low": 1.5, "high": 2.5, "pairs": 8},
                     "clock": {"median": 3.0, "low": 1.0, "high": 4.0, "pairs": 8}, "old": 10.0, "new": 20.0,
                     "slower": False}],
    "bench_train": [{"device": "1 × cpu", "model": "m", "batch": 4, "alone": 20.0, "loaded": 16.0, "wait": 0.25,
                     "memory": 2**30, "flops": 3e9}],
    "bench_policy": [{"batch": size, "what": what, "p50": 1.0, "p95": 2.0, "p99": 3.0} for size in (1, 8)
                     for what in ("vision", "sum of these", "policy as a whole")],
}  # fmt: skip
TABLES = {
    "bench_guard": "| `c` | step | 2.000 (1.500 to 2.500) | 3.000 (1.000 to 4.000) | 8 | 10 | 20 |  |",
    "bench_train": "| 1 × cpu | m | 4 | 20.0 | 16.0 | 25% | 1.00 GiB | 3.0 |",
    "bench_policy": "| vision | 1.00 | 2.00 | 3.00 |",
}


@pytest.mark.parametrize("script", ROWS)
def test_a_record_has_the_table_of_the_benchmark_that_its_command_names(script, tmp_path, monkeypatch):
    records.write(tmp_path / "mine.json", f"tools/{script}.py", ["--config", "c:d"], ROWS[script])
    monkeypatch.setattr(write_benchmarks, "RECORDS", tmp_path)
    page = write_benchmarks.written(MARKED.format("mine"))
    assert f"\n\n`python tools/{script}.py --config c:d` on " in page and f"\n{TABLES[script]}\n" in page
    assert write_benchmarks.written(page) == page


def test_every_benchmark_leaves_a_record_and_says_at_once_where_it_cannot_be_written(root, tmp_path):
    scripts = {path.stem for path in (root / "tools").glob("bench_*.py")} - {"bench_growth"}  # a folder of records
    assert len(scripts) >= 8
    for script in scripts:
        with pytest.raises(UserError, match=f"{tmp_path} is a folder; name a file in it"):
            importlib.import_module(f"tools.{script}").main(["--json", str(tmp_path)])


def test_refusals_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no figures of .*checkpoints.json"):
        write_benchmarks.written("no comments")
    with pytest.raises(UserError, match="'figures: label' has no record .*label.json; .*; did you mean 'labels'"):
        write_benchmarks.written(MARKED.format("label"))
    monkeypatch.setattr(write_benchmarks, "RECORDS", tmp_path)
    with pytest.raises(UserError, match="'figures: start' has no record .*start.json; run the benchmark with --json"):
        write_benchmarks.written(MARKED.format("start"))
    with pytest.raises(UserError, match="has no record .*growth_batch.json"):
        write_benchmarks.written(MARKED.format("growth"))
