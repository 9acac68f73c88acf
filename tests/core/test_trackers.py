"""Trackers: offline runs hold what was logged, a resumed run goes on in the same one, and a failure stops nothing."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import zipfile

import pytest

from lapa_jax.core import trackers
from lapa_jax.core.errors import ConfigError
from lapa_jax.core.metrics import read_metrics
from tests.core.tracked_run import CONFIG, write


def test_tensorboard_has_scalars_and_images(tmp_path):
    write(tmp_path, ("tensorboard",))
    files = [path for path in (tmp_path / "tensorboard").iterdir() if "tfevents" in path.name]
    content = b"".join(path.read_bytes() for path in files)
    assert all(word in content for word in (b"train/loss", b"codes", b"PNG"))
    assert not (tmp_path / trackers.RUNS_FILE).exists()


def interrupted(root, folder, name, **environment) -> str:
    """A run that stops after step 2 and is resumed from a checkpoint of step 1; the name that the tracker gave it.

    In processes of their own: clients of trackers change signals and what happens at the exit."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    names = []
    for numbers in ("0 1 2", "1 2 3"):
        command = [sys.executable, "-B", "-m", "tests.core.tracked_run", str(folder), name, *numbers.split()]
        done = subprocess.run(command, cwd=root, env={**os.environ, **environment}, timeout=600, capture_output=True)
        assert done.returncode == 0, done.stderr
        names.append(json.loads((folder / trackers.RUNS_FILE).read_text())[name])
    assert names[0] == names[1]
    return names[0]


def test_a_resumed_run_goes_on_in_the_same_run_of_weights_and_biases(root, tmp_path):
    name = interrupted(root, tmp_path, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    files = sorted((tmp_path / "wandb").rglob(f"run-{name}.wandb"))
    assert len(files) == 2, "two starts, offline, of one run; `wandb sync` joins them"
    content = b"".join(path.read_bytes() for path in files)
    assert all(word in content for word in (b"train/loss", b"laq_tiny", b"run_folder"))


def test_a_resumed_run_goes_on_in_the_same_task_of_clearml(root, tmp_path):
    cache = tmp_path / "cache"
    name = interrupted(root, tmp_path, "clearml", CLEARML_OFFLINE_MODE="1", CLEARML_CACHE_DIR=str(cache))
    (archive,) = cache.rglob(f"{name}.zip")
    with zipfile.ZipFile(archive) as content:
        logged = b"".join(content.read(file) for file in content.namelist())
    assert all(word in logged for word in (b"loss", b"psnr", b"laq_tiny", b"run_folder"))


def test_a_run_that_begins_anew_is_another_run_of_the_tracker(tmp_path, monkeypatch):
    class Fake(Failing):
        def __init__(self, folder, run, resume_step, config):
            self.run = run or f"new-{config['name']}"
            seen.append(run)

    seen = []
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Fake)
    for resume_step in (0, 5, 0):
        trackers.Trackers(("wandb",), tmp_path, resume_step=resume_step, config=CONFIG)
    assert seen == [None, "new-laq_tiny", None]


class Failing:
    """A tracker whose service is away."""

    run = None
    at = "init"

    def __init__(self, folder, run, resume_step, config):
        self._fail("init")

    def _fail(self, where):
        if where == self.at:
            raise TimeoutError(f"no answer to {where}\nand a long story")

    def scalars(self, step, values):
        self._fail("scalars")

    def image(self, step, name, pixels):
        self._fail("image")

    def close(self):
        self._fail("close")


@pytest.mark.parametrize("at", ["init", "scalars", "image", "close"])
def test_a_failing_tracker_warns_once_and_the_others_go_on(tmp_path, monkeypatch, caplog, at):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", type("Away", (Failing,), {"at": at}))
    monkeypatch.setattr(trackers.LOG, "propagate", True)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, ("wandb", "tensorboard"), steps=(1, 2, 3))
    assert [record.getMessage() for record in caplog.records if record.name == "lapa_jax"] == [
        f"the tracker wandb failed (TimeoutError: no answer to {at}); training goes on without it"
    ]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert b"train/loss" in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("tensorbord",), "did you mean 'tensorboard'"),
        ("wandb", r"give a sequence, \('wandb',\)"),
        (("clearml",), r"not installed: pip install 'lapa_jax\[clearml\]'"),
    ],
)
def test_wrong_trackers_are_refused(monkeypatch, names, words):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=words):
        trackers.check(names)
