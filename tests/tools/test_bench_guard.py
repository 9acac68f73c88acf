"""tools/bench_guard.py: a planted slowdown is told from none, in a repository of two revisions; and its statistics."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from tools import bench_guard
from tools.benchmarks import pairs

# Far more than what other work on the machine takes from one of three short turns.
SLOW = """
_decode = decode_into
def decode_into(data, out):
    for _ in range(12):
        _decode(data, out)
"""
FEW = ("--config", "configs/laq.py:test", "--rate", "loader", "--pairs", "3", "--most", "3", "--seconds", "0.1",
       "--config.model.image_size=64", "--config.data.augment=None")  # fmt: skip


@pytest.fixture(scope="module")
def repository(root, tmp_path_factory):
    """Two revisions: the package as it is, and one that decodes every image twelve times and lacks a config."""
    folder = tmp_path_factory.mktemp("repository")
    for name in bench_guard.NEEDED:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    git = lambda *command: subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)  # noqa: E731
    git("init", "-q")
    commit = ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all", "-a")
    for tag in ("fast", "slow"):
        git("add", "-A")
        git(*commit)
        git("tag", tag)
        with (folder / "lapa_jax/data/images.py").open("a") as file:
            file.write(SLOW)
        (folder / "configs/laq_conv.py").unlink(missing_ok=True)
    git("reset", "-q", "--hard", "fast")
    return folder


def test_a_planted_slowdown_fails(repository, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(repository)
    with pytest.raises(SystemExit) as end:
        bench_guard.main(["fast", "slow", *FEW, "--json", str(tmp_path / "slower.json")])
    assert end.value.code == 1 and "slower by more than 5%: configs/laq.py:test loader" in capsys.readouterr().err
    (row,) = json.loads((tmp_path / "slower.json").read_text())["rows"]
    assert row["slower"] and row["cpu"]["high"] < 0.8 and row["cpu"]["pairs"] == 3
    # The other way round it is faster: no failure. A folder stands for a revision.
    bench_guard.main(["slow", str(repository), *FEW])
    assert "slower" not in capsys.readouterr().out


def test_what_a_revision_lacks_is_one_line(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=r"NEW \(slow\) cannot measure loader of .*: it has no configs"):
        bench_guard.main(["fast", "slow", "--config", "configs/laq_conv.py:test", *FEW[2:]])
    with pytest.raises(UserError, match="'nowhere' is no revision"):
        bench_guard.main(["nowhere", "fast", *FEW])
    with pytest.raises(UserError, match="--limit 2 between 0 and 1"):
        bench_guard.main(["fast", "slow", "--limit", "2"])


def test_revisions_from_before_the_guard_are_measured(root, tmp_path, monkeypatch):
    """They lack what the package has today; how far each got is told by what it refuses."""
    monkeypatch.chdir(root)
    try:
        bench_guard.checkout("2e7f5da", tmp_path / "old")
    except UserError:
        pytest.skip("the history of this clone does not reach back to 2e7f5da")
    args, overrides = bench_guard.parse(["2e7f5da", "new"])
    with pytest.raises(UserError, match=r"OLD \(2e7f5da\) cannot measure step of configs/none.py: it has no configs"):
        list(bench_guard.compare([tmp_path / "old"] * 2, "configs/none.py", ["step"], args, overrides))


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for count in (6, 8, 15, 24):
        intervals = [pairs.ratio(rng.standard_cauchy(count)) for _ in range(2000)]
        held = [interval.low <= 0 <= interval.high for interval in intervals]
        assert np.mean(held) > 0.94
    assert pairs.ratio([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3)


def test_turns_change_sides_and_go_on_while_undecided():
    order: list[str] = []
    first, second = (lambda name=name: order.append(name) or name for name in "AB")
    taken = pairs.in_turns(first, second, 2, 5, lambda pairs: len(pairs) == 3)
    assert taken == [("A", "B")] * 3 and order == list("ABBAAB")
