"""tools/write_benchmarks.py: the page is what the records give, and no record is left out."""

import pytest

from lapa_jax.core.errors import UserError
from tools import write_benchmarks

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


def test_refusals_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no figures of .*checkpoints.json"):
        write_benchmarks.written("no comments")
    with pytest.raises(UserError, match="'figures: label' is no benchmark; did you mean 'labels'"):
        write_benchmarks.written(MARKED.format("label"))
    monkeypatch.setattr(write_benchmarks, "RECORDS", tmp_path)
    with pytest.raises(UserError, match="there is no record .*start.json; run the benchmark with --json"):
        write_benchmarks.written(MARKED.format("start"))
