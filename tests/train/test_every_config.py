"""The `:test` variant of every config, as a user would run it: trains, evaluates, loads; one of each kind resumes
to the bit."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.metrics import read_metrics
from lapa_jax.evaluate import drawing_of
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("one_device")

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path.name for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture(scope="module", params=CONFIGS)
def run(request, tmp_path_factory):
    """(config, its run of four steps), which the tests of a config share."""
    config = config_lib.load(f"{FOLDER}/{request.param}:test", ["--config.train.images=True"])
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config, folder, drawing_of=drawing_of)
    return config, folder


def losses(folder) -> list[float]:
    return [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]


def test_it_trains_evaluates_and_loads(run):
    config, folder = run
    assert len(losses(folder)) == 4 and np.isfinite(losses(folder)).all()
    evaluated = [row for row in read_metrics(folder) if any(name.startswith("val/") for name in row)]
    assert [row["step"] for row in evaluated] == [0, 2, 4]
    assert config.train.best_metric in evaluated[-1], "the metric that chooses the best checkpoint is one that there is"
    loaded = lapa_jax.load(folder)
    assert loaded.step == 4
    at_two = lapa_jax.load(folder, step=2)
    assert loaded.fingerprint != at_two.fingerprint, "two steps of training change the weights"


def test_its_evaluations_are_drawn(run):
    _, folder = run
    for step in (0, 2, 4):
        with Image.open(folder / f"plots/{step}.png") as image:
            # something is drawn on the white ground
            assert min(image.size) > 200 and np.asarray(image.convert("L")).std() > 5
    assert "could not be made" not in (folder / "log.txt").read_text()


def kind_of_state(config, folder) -> tuple[frozenset[str], bool]:
    """What a resumed run must find again besides parameters: the names of collections' leaves, and whether fields of
    the model come from the data."""
    saved = load_for_inference(folder)
    collections = {name: values for name, values in saved.variables.items() if name != "params"}
    given, filled = (config_lib.to_json(each.model) for each in (config, saved.config))
    return frozenset(name.rpartition("/")[2] for name in tree.flatten(collections)), given != filled


RESUMED: dict[tuple, str] = {}
"""{kind of state: the config that is interrupted for it}, by the tests that have run."""


def test_an_interrupted_run_ends_in_the_same_bits(run, tmp_path):
    """One config of every kind of state."""
    config, folder = run
    chosen = RESUMED.setdefault(kind_of_state(config, folder), config.name)
    if chosen != config.name:
        pytest.skip(f"its state has nothing that {chosen}'s has not")
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "4")
    train(config, again)
    ours, theirs = (tree.flatten(load_for_inference(each, 4).variables) for each in (folder, again))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert losses(again)[-2:] == losses(folder)[-2:]
