"""Tables of studies: metrics that are absent or not finite, and their command lines."""

import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import common
import pytest

from lapa_jax.core.errors import UserError

COLUMNS = {"R²": ("r2", "{:.2f}"), "right": ("accuracy", "{:.0%}")}


def test_what_diverged_is_nan_in_the_table_and_not_the_end_of_it():
    group = [{"r2": 0.5, "accuracy": 0.25}, {"r2": None, "accuracy": 0.75}]
    assert common.cells(group[1], COLUMNS) == ["nan", "75%"] and common.cells({}, COLUMNS) == ["", ""]
    assert common.ranges(group, COLUMNS)[0].startswith("nan")
    assert common.ranges(group, COLUMNS)[1] == "50% (25% to 75%)"
    assert common.cells(common.mean(group, COLUMNS), COLUMNS) == ["nan", "50%"]


def test_recipes_train_at_least_one_seed():
    assert common.recipe_and_seeds("a=3", "ab") == ("a", 3) and common.recipe_and_seeds("b", "ab", 2) == ("b", 2)
    for text, words in (("a=0", "1 seed at least"), ("a=", "1 seed at least"), ("c", "unknown recipe 'c'")):
        with pytest.raises(UserError, match=words):
            common.recipe_and_seeds(text, "ab")


@pytest.mark.parametrize("arguments", [("--jobs", "0"), ("--jobs", "-1"), ("--seeds", "0"), ("--seeds", "two")])
def test_numbers_of_jobs_and_seeds_are_checked_on_the_command_line(arguments):
    parser = common.command_line("what it does", 2)
    with pytest.raises(UserError, match=f"{arguments[0]}: {arguments[1]} is no number of at least 1"):
        parser.parse_args(["--out", "y", *arguments])


class Shards(NamedTuple):
    name: str
    path: str
    frames: int = 1


def shards(name: str, path: str, frames: str = "1") -> Shards:
    return Shards(name, path, int(frames))


def test_data_sets_have_the_form_that_is_told():
    read = lambda *entries: common.data_sets(entries, "NAME=PATH[,FRAMES]", shards)  # noqa: E731
    assert read("a=x", "b=gs://x=y,3") == [("a", "x", 1), ("b", "gs://x=y", 3)]
    for entry in ("a", "a=", "=x", "a=x,", "a=x,2,3", "a=x,two"):
        with pytest.raises(UserError, match=re.escape(f"--data {entry} is not of the form NAME=PATH[,FRAMES]")):
            read("b=y", entry)
    with pytest.raises(UserError, match="2 data sets of the name a"):
        read("a=x", "b=x", "a=y")


def test_a_grid_is_data_sets_by_recipes_by_seeds():
    parser = common.grid_command_line("what it does", "NAME=PATH", ["fsq", "vq"], ["vq"], 2)
    args = parser.parse_args(["--data", "a=x", "b=y", "--out", "z", "--recipes", "vq", "fsq=1",
                              "--overrides", "seed=7", "b:seed=8"])  # fmt: skip
    runs = common.grid(args, [Shards("a", "x"), Shards("b", "y")], ["fsq", "vq"])
    assert [(run.data.name, run.recipe, run.seed) for run in runs] == [
        (name, *rest) for name in "ab" for rest in (("vq", 0), ("vq", 1), ("fsq", 0))]  # fmt: skip
    assert {run.overrides for run in runs if run.data.name == "a"} == {("seed=7",)}
    assert {run.overrides for run in runs if run.data.name == "b"} == {("seed=7", "seed=8")}


MISTAKE = """
import sys
sys.path.insert(0, sys.argv[2])
from lapa_jax.core.errors import UserError, run_main

def main(argv):
    raise UserError("there is no task 'sepparate'; did you mean 'separate'?") if argv[0] == "mend" else ValueError

run_main(main)
"""


def test_what_a_command_of_a_study_ends_with_is_said(monkeypatch, tmp_path, root):
    """A mistake in one line; of what nobody expects the log has the traceback."""
    (tmp_path / "stage.py").write_text(MISTAKE)
    monkeypatch.setattr(common, "ROOT", tmp_path)
    log = tmp_path / "logs" / "videos.log"
    with pytest.raises(common.UserError, match=r"exit 2\) for videos: there is no task 'sepparate'; did .*; see .*log"):
        common.call(log, "stage.py", "mend", str(root))
    with pytest.raises(common.UserError, match=r"exit 1\) for videos; see .*videos.log"):
        common.call(log, "stage.py", "crash", str(root))


def test_overrides_are_checked_with_every_config_that_gets_them():
    configs = ["icl.py:small", "vla_action.py:tiny+chunk"]
    common.check_overrides(configs, ["train.steps=3"])
    with pytest.raises(common.UserError, match="no key 'model.prompts'"):
        common.check_overrides(configs, ["model.prompts=3"])


STUDY = """
import pathlib, signal, sys
sys.path.insert(0, sys.argv[2])
import common
from lapa_jax.core.errors import run_main

def main(argv):
    folder = pathlib.Path(argv[0])
    common.ROOT = folder
    with common.side_by_side(1) as pool:
        list(pool.map(lambda n: common.call(folder / "log", "stage.py", str(folder / f"begun{n}")), range(3)))

run_main(main)
"""
STAGE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_a_study_that_is_killed_ends_what_runs_and_begins_nothing_more(tmp_path, root):
    (tmp_path / "stage.py").write_text(STAGE)
    command = [sys.executable, "-c", STUDY, str(tmp_path), str(root / "launch" / "studies")]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun0").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, "ended by SIGTERM; the same command resumes\n")
    assert not (tmp_path / "begun1").exists()
