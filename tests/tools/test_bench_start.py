"""tools/bench_start.py: the pieces of a small start add up, a warm one compiles less; and the clock's nesting."""

import json
import time

import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from tools import bench_start
from tools.benchmarks import start


def test_the_pieces_of_a_start(tmp_path, capsys):
    bench_start.main(["--config", "configs/feature_vq.py:test", "--json", str(tmp_path / "start.json")])
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert [row["piece"] for row in rows] == [start.IMPORT, *start.PIECES, start.REST, "all"]
    *pieces, whole = rows
    for run in ("cold", "warm"):
        assert whole[run]["cpu"] == pytest.approx(sum(row[run]["cpu"] for row in pieces), rel=0.01)
        assert all(row[run]["clock"] > 0 for row in pieces)
    compiled = next(row for row in pieces if row["piece"] == "compile")
    assert compiled["warm"]["cpu"] < compiled["cold"]["cpu"]
    assert "| compile |" in capsys.readouterr().out


def test_refusals_are_one_line():
    with pytest.raises(ConfigError, match="nowhere"):
        bench_start.main(["--config", "configs/nowhere.py"])
    with pytest.raises(UserError, match="the cold start of configs/laq.py:small failed: config.data.path is not set"):
        bench_start.main(["--config", "configs/laq.py:small"])


def test_a_piece_within_another_counts_for_itself_alone():
    clock = start.Clock(time.time())
    clock.begin_rest()
    with clock.piece("outer"):
        time.sleep(0.02)
        with clock.piece("inner"):
            time.sleep(0.1)
        time.sleep(0.02)
    outer, inner = clock.taken["outer"][0], clock.taken["inner"][0]
    assert 0.04 <= outer < inner and inner >= 0.1
