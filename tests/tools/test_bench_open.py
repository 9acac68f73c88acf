"""What the command about opening prints, for a split that a test can afford."""

import re

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import StepShards
from tools import bench_open


def test_it_opens_what_it_made_and_prints_a_table(tmp_path, capsys):
    bench_open.main(["--steps", "2500", "--batches", "2", "--workers", "1", "--folder", str(tmp_path)])
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", capsys.readouterr().out, re.MULTILINE))
    assert rows["steps"] == "2,500" and float(rows["opening the shards"].split()[0]) < 10
    in_all, own, mapped = (float(value.split()[0]) for name, value in rows.items() if "resident memory" in name)
    assert in_all == pytest.approx(own + mapped, abs=1.5) and own > 5
    assert list(tmp_path.iterdir()) == [], "nothing stays"


def test_the_split_is_one_that_shards_open(tmp_path):
    bench_open.make(tmp_path, 1030)
    shards = StepShards(tmp_path)
    assert len(shards) == 1030 and len(shards.episodes) == 11 and shards.episodes[10].length == 30
    assert len(shards.instructions()) == 11 and shards.table.present("action.npy").sum() == 1030 - 11
    with pytest.raises(UserError, match="--steps is 1000 or more"):
        bench_open.main(["--steps", "10"])
