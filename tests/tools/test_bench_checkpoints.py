"""tools/bench_checkpoints.py: both levels and the readings of a small state, and what it refuses."""

import json
import logging

import pytest

from lapa_jax.core.errors import UserError
from tools import bench_checkpoints


def test_both_levels_and_their_checksums(one_device, tmp_path, capsys):
    record, level = tmp_path / "checkpoints.json", logging.getLogger("lapa_jax").level
    bench_checkpoints.main(["--megabytes", "2", "--repeats", "2", "--folder", str(tmp_path), "--json", str(record)])
    rows = json.loads(record.read_text())["rows"]
    assert [row["waited"] is not None for row in rows] == [True, True, False, False, False]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    # The run folder's checkpoints are compressed, which saves little of random numbers.
    assert all(1.7e6 < row["bytes"] < 2.1e6 for row in rows)
    assert all(waited <= seconds for row in rows[:2] for waited, seconds in zip(row["waited"], row["seconds"]))
    assert "| compare checksums of files in memory |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [record.name]
    assert logging.getLogger("lapa_jax").level == level, "others still hear what is logged"


def test_a_damaged_checkpoint_is_no_measurement(one_device, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_checkpoints, "_drop", lambda files: files[0].write_bytes(b""))
    with pytest.raises(UserError, match="is damaged"):
        bench_checkpoints.main(["--megabytes", "2", "--repeats", "1", "--folder", str(tmp_path)])


def test_refusals_are_one_line(tmp_path):
    with pytest.raises(UserError, match="--megabytes and --repeats are 1 or more"):
        bench_checkpoints.main(["--repeats", "0"])
    with pytest.raises(UserError, match="will be written, and the disk has room for"):
        bench_checkpoints.main(["--megabytes", "1e9", "--folder", str(tmp_path)])
