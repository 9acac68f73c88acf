"""tools/bench_train.py: the rates of a small step agree with each other and with the record, and what it refuses."""

import json

import pytest

from lapa_jax.core.errors import UserError
from tools import bench_train


def test_a_step_alone_and_with_the_loader(one_device, tmp_path, capsys):
    bench_train.main(["--config", "configs/laq.py:test", "--steps", "2", "--rounds", "1", "--json",
                      str(tmp_path / "train.json")])  # fmt: skip
    (row,) = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert row["model"] == "laq_test" and row["device"] == "1 × cpu" and 0 <= row["wait"] < 1
    assert row["alone"] > 0 and row["loaded"] > 0 and row["memory"] > 2**27  # jax alone takes as much
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == bench_train.lines([row])[:2] and len(told) == 3
    assert told[2].startswith(f"| 1 × cpu | laq_test | {row['batch']} | ")


def test_refusals_are_one_line():
    with pytest.raises(UserError, match="there is no option --stepz; did you mean '--steps'"):
        bench_train.main(["--config", "configs/laq.py:test", "--stepz", "2"])
    with pytest.raises(UserError, match="--steps 0 and --rounds 3 are 1 or more"):
        bench_train.main(["--config", "configs/laq.py:test", "--steps", "0"])
