"""tools/gpu_report.py: parts measure at the smallest sizes on a CPU, and one that fails does not stop the others."""

import json
import math

import pytest

from lapa_jax.core.errors import UserError
from tools.gpu import command, parts


def test_parts_are_measured_and_told_in_a_table(tmp_path, capsys):
    out = tmp_path / "report.json"
    command.main(["--tiny", "--part", "products", "--part", "program", "--out", str(out)])
    results = json.loads(out.read_text())
    assert list(results["parts"]) == ["products", "program"] and results["machine"]["jax"]
    rows = {row["what"]: row["figures"] for part in results["parts"].values() for row in part["rows"]}
    assert {part["status"] for part in results["parts"].values()} == {"measured"}
    assert all(math.isfinite(value) for figures in rows.values() for value in figures.values())
    assert rows["vla_action_test on cpu, 2 rows"]["largest difference from the model"] < 1e-4
    assert all(rows[f"128 x 128, {name}"]["TFLOP/s"] > 0 for name in ("bfloat16", "float32, highest", "int8"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("devices: 1 × cpu; driver: ") and "commit: " in lines[0]
    assert lines[2] == "| part | what | figures | peak memory, GiB | planned, GiB |"
    assert len(lines) == 4 + len(rows) and lines[4].startswith("| products | 128 x 128, bfloat16 | TFLOP/s ")


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nothing")
    monkeypatch.setitem(parts.PARTS, "labels", parts.PARTS["labels"]._replace(seconds=0.01))
    out = tmp_path / "report.json"
    with pytest.raises(SystemExit):  # nothing was measured
        command.main(["--tiny", "--part", "labels", "--part", "products", "--minutes", "1", "--out", str(out)])
    kept = json.loads(out.read_text())["parts"]
    assert kept["labels"]["status"] == "timed out" and kept["products"]["status"] == "failed"
    assert "nothing" in kept["products"]["why"] and kept["products"]["rows"] == []
    table = capsys.readouterr().out
    assert "| labels | timed out: after 0 s" in table and "| products | failed: exit code " in table


def test_what_was_measured_before_a_failure_is_kept(tmp_path, monkeypatch):
    def breaks(tiny):
        yield {"what": "first", "figures": {"ms": 1.0}}
        raise MemoryError("planted")

    monkeypatch.setitem(parts.PARTS, "breaks", parts.Part("", 1, breaks))
    with pytest.raises(MemoryError):
        command.main(["--tiny", "--run_one", "breaks", "--out", str(tmp_path / "rows.json")])
    assert [row["what"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["first"]


def test_full_sizes_are_not_tried_on_a_cpu(tmp_path):
    out = tmp_path / "report.json"
    with pytest.raises(UserError, match="JAX finds no GPU here, .*; --tiny tries all parts"):
        command.main(["--out", str(out)])
    assert not out.exists()


def test_no_time_is_said_and_wrong_names_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--part", "products", "--minutes", "0.001", "--out", str(tmp_path / "report.json")])
    assert "not run: no time was left of --minutes 0.001" in capsys.readouterr().out
    with pytest.raises(UserError, match="--part labls is no part; did you mean 'labels'"):
        command.main(["--part", "labls"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written: .* is no folder"):
        command.main(["--part", "products", "--out", str(tmp_path / "file" / "report.json")])
