"""The report and the replay of stage-3 policies: figures as in training, in the units of the data, and mismatches."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.evaluate import evaluation_of
from lapa_jax.evaluate.replay import Difference, Replay
from lapa_jax.inference import load
from lapa_jax.train.loop import train
from tests.data.samples import make

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = ("train.steps=2", "train.batch_size=8", "train.eval_batch_size=8", "train.eval_every=2", "train.save_every=2",
         "train.trackers=()", "data.eval_examples=24", "data.image_size=28", "data.chunk_length=2",
         "data.fields=('image','text','action','state')", "model.siglip.depth=1", "model.siglip.layer=-1",
         "model.dinov2.depth=1", "model.dinov2.layer=-1", "model.siglip.dim=16", "model.dinov2.dim=16",
         "model.llm.dim=32", "model.llm.depth=1", "model.llm.hidden=32", "model.head.bins=16")  # fmt: skip
LENGTHS = {"train": [[9, 8]], "val": [[7, 9, 6]]}
CONSTANT, GRIPPER = 1, 2


def changed(column, row):
    """Actions with a constant and a gripper among them."""
    if column == "action":
        row = (0.05 * row + 0.2).astype(np.float32)
        row[CONSTANT], row[GRIPPER] = 0.5, float(row[GRIPPER] > 0.2)
    return row


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "arm"
    return make.write(folder, LENGTHS, size=40, texts=[f"push block {i}" for i in range(5)], change=changed)


@pytest.fixture(scope="module")
def run(root, data, tmp_path_factory):
    config = config_lib.load(f"{root}/configs/vla_action.py:tiny",
                             [f"--config.{o}" for o in (*SMALL, f"data.path={data}")])  # fmt: skip
    folder = tmp_path_factory.mktemp("vla") / "run"
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def policy(run):
    return load.load(run)


@pytest.fixture(scope="module")
def report(policy, run, tmp_path_factory):
    """(result, folder)."""
    out = tmp_path_factory.mktemp("eval")
    return evaluation_of(policy)(policy, run=run, out=out, pairs=24).write(), out


def test_the_report_tells_what_training_told(report, run):
    result, out = report
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    told = {name.removeprefix("val/"): value for name, value in last.items() if name.startswith("val/")}
    assert {"loss", "action_mse", "action_r2_0", "action_distance", "gripper_accuracy", "bin_accuracy"} <= set(told)
    assert result["metrics"].keys() == told.keys()
    for name, value in told.items():
        assert result["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    page = (out / "report.html").read_text()
    for picture in ("episodes.png", "spread.png", "worst.png", "curves.png"):
        assert picture in page and (out / picture).stat().st_size > 1000


def test_the_page_holds_in_a_browser(browser, report):
    page = browser.check(report[1] / "report.html")
    assert page.run("document.querySelectorAll('.uplot').length") > 3


def test_errors_are_in_the_units_of_the_data(report, policy, data):
    """Against every chunk of the held-out episodes, read by other means, through the policy's own call."""
    true, guess = [], []
    for episode in make.decoded(data, "val"):
        for t in range(len(episode) - 1):
            seen = [episode[t][name] for name in ("image.jpg", "txt", "state.npy")]
            chunk = policy.chunk(*seen)
            for ahead in range(min(2, len(episode) - 1 - t)):
                true.append(episode[t + ahead]["action.npy"])
                guess.append(chunk[ahead])
    true, guess = np.array(true, np.float64), np.array(guess, np.float64)
    assert result_of(report)["samples"] == 19
    (entries,) = result_of(report)["datasets"].values()
    assert [entry["kind"] for entry in entries] == ["continuous", "constant", "binary"]
    # bins of another reading of the JPEG may be others for a few samples
    for i, entry in enumerate(entries):
        assert entry["mae"] == pytest.approx(np.abs(true - guess)[:, i].mean(), rel=0.05, abs=1e-7)
        assert entry["mse"] == pytest.approx(np.square(true - guess)[:, i].mean(), rel=0.1, abs=1e-7)
    scale = policy.normalizer().scale
    metrics = result_of(report)["metrics"]
    for i in (0, GRIPPER):
        for key in ("mae", "p99_error", "max_error"):
            assert entries[i][key] / scale[i] == pytest.approx(metrics[f"action_{key}_{i}"], rel=1e-4)
        assert entries[i]["mse_normalized"] == pytest.approx(metrics[f"action_mse_{i}"], rel=1e-4)
        assert entries[i]["distance"] == pytest.approx(metrics[f"action_distance_{i}"], rel=1e-4)
    assert entries[CONSTANT]["mae"] == 0 and entries[GRIPPER]["accuracy"] == pytest.approx(metrics["gripper_accuracy"])


def result_of(report):
    return report[0]


def test_a_constant_that_moves_elsewhere_is_an_error_there(policy, run, tmp_path):
    other = make.write(tmp_path / "other", {"val": [[6, 5]]}, size=40, texts=["push", "pull"])
    result = evaluation_of(policy)(policy, run=run, out=tmp_path / "eval", data=other, pairs=9).write()
    (entries,) = result["datasets"].values()
    assert entries[CONSTANT]["mae"] > 0.1, "what is recorded counts, not what the policy's scaling makes of it"


def test_what_training_and_the_policy_see_is_the_same(policy, data):
    found = Replay(policy, data, "train").differences()
    assert {difference.name: difference.wrong for difference in found} == {
        "image": False, "text": False, "state": False, "action": False}  # fmt: skip
    assert Difference("state", float("nan"), 1e-4, "normalised", "dimension 0").wrong, "no number is no match"


@pytest.mark.parametrize("column", ["state", "action"])
def test_a_wrong_statistic_shows(policy, data, column):
    wrong = copy.copy(policy)
    wrong.datasets, wrong._normalizers = copy.deepcopy(policy.datasets), {}
    wrong.datasets["arm"]["statistics"][column]["q99"][0] *= 1.2
    replay = Replay(wrong, data, "train")
    found = replay.differences()
    assert [difference.name for difference in found if difference.wrong] == [column]
    with pytest.raises(UserError, match=rf"'{column}' by up to .* \(dimension 0\)"):
        replay.check(found)


def test_the_command_replays_and_ends_with_an_error_where_they_differ(root, run, data, tmp_path):
    statistics = json.loads((data / "statistics.json").read_text())
    for entry in data.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "statistics.json").unlink()
    statistics["state"]["q01"][1] -= 0.5
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    command = [sys.executable, str(root / "tools" / "inspect_data.py"), str(tmp_path), "--run", str(run), "--out",
               str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and "'state' by up to" in done.stderr, done.stderr
    assert "| state |" in done.stdout and "MISMATCH at dimension 1" in done.stdout
    assert "| image | 0 of 255 | same |" in done.stdout
    assert (tmp_path / "out" / "replay.png").stat().st_size > 1000
