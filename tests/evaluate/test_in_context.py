"""Evaluation of in-context policies: figures against NumPy, what counts as seen, replayed episodes, files and words."""

import importlib.util
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.evaluate import evaluation_of, replay
from lapa_jax.evaluate.in_context import HELD_OUT, OTHER, SEEN, Evaluation
from lapa_jax.evaluate.report import GOOD, POOR
from tests.data.samples import make
from tests.inference import random_policy
from tests.inference.random_policy import A, L, T

LENGTHS = {"train": [[9, 8, 7, 9]], "val": [[15, 9, 12, 8, 10]]}
TASKS = ["lift", "push", "lift", "push", "lift", "lift", "push", "push", "pull"]


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """Most of the time goes to compiling small programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def write(folder, **how):
    return make.write(folder, LENGTHS, tasks=TASKS, **{"cameras": (), "drop": [(6, 8, "state.npy")], **how})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def policy(data):
    options = {"path": str(data), "samples": "sequences", "fields": ("state", "action"), "length": T, "prompts": 2,
               "prompt_length": L, "alone": "empty", "held_out_tasks": ("push",), "tasks_val": "all",
               "normalize": "min_max", "stride": 2, "split_train": "train", "split_val": "val"}  # fmt: skip
    about = pipeline.build(options, "train").meta()["datasets"]
    return random_policy.make(data=options, about=about, state_dim=make.WIDTHS["state"])


@pytest.fixture(scope="module")
def evaluated(policy, tmp_path_factory):
    """(the evaluation, its result, the folder)."""
    out = tmp_path_factory.mktemp("evaluated")
    evaluation = evaluation_of(policy)(policy, run=out, out=out)
    assert type(evaluation) is Evaluation
    return evaluation, evaluation.write(), out


def test_files_are_there(evaluated):
    _, result, out = evaluated
    assert json.loads((out / "metrics.json").read_text()) == result
    assert {p.name for p in out.iterdir()} == {"metrics.json", "report.html", "tasks.png", "episodes.png"}
    page = (out / "report.html").read_text()
    for name in ("tasks.png", "episodes.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100 and np.asarray(picture.convert("L")).std() > 5
        assert f">{name}<" in page
    assert not re.search(r'class="value">[^<]*</td><td></td>', page), "each metric has its sentence"
    assert "push (held out)" in page and "hard codes" not in page and "This folder keeps no metrics" in page


def test_the_page_holds_in_a_browser(browser, evaluated):
    browser.check(evaluated[2] / "report.html")


def test_tasks_have_their_status_and_count(evaluated, policy):
    evaluation, result, _ = evaluated
    found = {task["name"]: task for task in result["tasks"]}
    assert {name: task["status"] for name, task in found.items()} == {"lift": SEEN, "pull": SEEN, "push": HELD_OUT}
    assert {name: task["episodes"] for name, task in found.items()} == {"lift": 2, "pull": 1, "push": 2}
    assert sum(task["windows"] for task in found.values()) == len(evaluation.source) == result["windows"]
    for status, names in ((SEEN, ["lift", "pull"]), (HELD_OUT, ["push"])):
        group, own = result["groups"][status], [found[name] for name in names]
        assert group["tasks"] == group["tasks_with_wrong"] == group["tasks_with_none"] == len(names)
        for kind in ("none", "wrong"):
            assert group[f"beats_{kind}"] == sum(task[f"beats_{kind}"] for task in own)
            assert group[f"action_mse_{kind}"] == pytest.approx(np.mean([task[kind]["action_mse"] for task in own]))
    assert OTHER not in result["groups"] and result["policy"] == policy.fingerprint and "tokenizer" not in result


def test_figures_are_those_of_the_predictions(evaluated, policy):
    evaluation, result, _ = evaluated
    predict, source = random_policy.predictor(policy), evaluation.source
    scale = random_policy.normalizers(policy, next(iter(policy.datasets)))["action"]
    batch = source.batch(range(len(source)))
    known = {name: batch[name] for name in policy.model.example(1)}
    empty = {**known, "prompt_step_mask": 0 * known["prompt_step_mask"],
             "prompt_action_mask": 0 * known["prompt_action_mask"]}  # fmt: skip
    for task in result["tasks"]:
        rows = batch["task_id"] == source.tasks.index(task["name"])
        mask = known["action_mask"][rows] > 0
        true = known["action"][rows][mask]
        for kind, given in (("right", known), ("none", empty)):
            guess = np.asarray(predict(given))[rows, :, 0][mask]
            assert task[kind]["action_mse"] == pytest.approx(np.mean((guess - true) ** 2), rel=1e-4)
            assert task[kind]["action_r2"] == pytest.approx(
                1 - np.mean((guess - true) ** 2) / np.mean(true.var(0)), rel=1e-4)  # fmt: skip
            units = np.abs(scale.unnormalize(guess) - scale.unnormalize(true))
            np.testing.assert_allclose(task[kind]["mae"], units.mean(0), rtol=1e-4)
            np.testing.assert_allclose(task[kind]["p99_error"], np.quantile(units, 0.99, axis=0), rtol=1e-4)
            np.testing.assert_allclose(task[kind]["max_error"], units.max(0), rtol=1e-4)
        assert task["wrong"]["action_mse"] != task["right"]["action_mse"]
        assert task["beats_wrong"] == (task["right"]["action_mse"] < task["wrong"]["action_mse"])
    pulled = next(task for task in result["tasks"] if task["name"] == "pull")
    assert pulled["right"]["action_mse"] == pulled["none"]["action_mse"] and not pulled["beats_none"]


def test_windows_without_a_wrong_prompt_are_not_compared(evaluated, policy):
    evaluation, _, _ = evaluated
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(4, T, A)).astype(np.float32)
              for name in ("action", "prediction_none", "prediction_wrong")}  # fmt: skip
    arrays |= {"prediction": arrays["action"].copy(), "action_mask": np.ones((4, T), np.float32),
               "task_id": np.array([0, 0, 1, 1]), "episode_id": np.arange(4), "step": np.zeros(4, int),
               "has_wrong": np.array([1.0, 0, 0, 0])}  # fmt: skip
    arrays["prediction"][1] += 100
    first, second = evaluation.tasks(arrays)
    assert first["beats_wrong"] and not first["beats_none"] and first["wrong"]["windows"] == 1
    assert second["wrong"] is None and second["beats_wrong"] is None and second["beats_none"]
    del arrays["prediction_wrong"], arrays["prediction_none"], arrays["has_wrong"]
    assert all(entry["beats_none"] is None and "none" not in entry for entry in evaluation.tasks(arrays))


def test_grippers_are_counted_by_the_nearer_of_two_values():
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.tokenizer = random_policy.make(prompts=0)
    true = np.zeros((1, 4, A), np.float32)
    true[0, :, 1] = [1, 1, -1, -1]
    guess = true.copy()
    guess[0, :, 1] = [0.1, -0.1, -0.3, -2]
    arrays = {"action": true, "prediction": guess, "action_mask": np.ones((1, 4), np.float32)}
    assert evaluation.errors(arrays, "prediction", "table", None)["gripper_accuracy"] == 0.75


def test_replays_act_on_what_was_recorded(evaluated, policy, data):
    evaluation, _, _ = evaluated
    name, (raw,) = next(iter(policy.datasets)), evaluation._raw
    episode = make.decoded(data, "val")[0]
    action, state = (np.stack([step[f"{field}.npy"] for step in episode[:14]]) for field in ("action", "state"))
    recorded, predicted = replay.replay(policy, raw, 0, name)
    np.testing.assert_array_equal(recorded, action)
    shown = make.decoded(data, "val")[1]
    prompt = {field: np.stack([step[f"{field}.npy"] for step in shown[:8]]) for field in ("action", "state")}
    policy.reset([prompt, prompt])
    ours = [policy.act({"state": state[t]}, action[t - 1] if t else None) for t in range(14)]
    np.testing.assert_allclose(predicted, ours, rtol=1e-5, atol=1e-5)
    # up to the step that has no state
    assert len(replay.replay(policy, raw, 2, name)[0]) == 8
    assert replay.replay(policy, raw, 99, name) is None


def test_verdicts(evaluated):
    evaluation, _, _ = evaluated
    group = {"tasks": 10, "tasks_with_wrong": 10, "beats_wrong": 8, "tasks_with_none": 10, "beats_none": 7}
    held = {"tasks": 2, "tasks_with_wrong": 0, "beats_wrong": 0, "tasks_with_none": 2, "beats_none": 2}
    lines = evaluation.judge({"groups": {SEEN: group, HELD_OUT: held}, "metrics": {"action_r2": -0.1, "other": None}})
    assert [(v.metric, v.shown, v.level) for v in lines] == [
        ("beats_wrong", "8 of 10", GOOD), ("beats_none", "7 of 10", POOR), ("beats_none", "2 of 2", GOOD),
        ("action_r2", "-0.1", POOR)]  # fmt: skip
    assert lines[0].words.startswith("seen tasks") and lines[2].words.startswith("held out tasks")


def test_other_data_and_those_that_do_not_fit(policy, data, tmp_path):
    same = write(tmp_path / "same", seed=3)
    evaluation = Evaluation(policy, run=tmp_path, out=tmp_path, data=same)
    assert [evaluation._status(task) for task in ("lift", "push")] == [OTHER, HELD_OUT]
    assert Evaluation(policy, run=tmp_path, out=tmp_path, data=data)._status("lift") == SEEN
    wide = write(tmp_path / "wide", widths={"action": A, "state": 7})
    with pytest.raises(UserError, match="'state' has 7 numbers in .*, and 2 in the data that the run was trained on"):
        Evaluation(policy, run=tmp_path, out=tmp_path, data=wide)
    unscaled = random_policy.make(data={**policy.config.data.to_dict(), "normalize": "none"}, state_dim=2)
    with pytest.raises(UserError, match=r"takes 'state' of shape \(6, 2\), these data give \(6, 7\)"):
        Evaluation(unscaled, run=tmp_path, out=tmp_path, data=wide)
    with pytest.raises(UserError, match="--pairs 2 or more"):
        Evaluation(policy, run=tmp_path, out=tmp_path, pairs=1)


def test_the_launcher_evaluates_a_policy(policy, root, tmp_path, capsys):
    policy.save_pretrained(tmp_path / "run")
    spec = importlib.util.spec_from_file_location("launch_eval", root / "launch" / "eval.py")
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    launcher.main(["--run", str(tmp_path / "run"), "--pairs", "5"])
    told = capsys.readouterr().out
    assert "beats_wrong" in told and "held out tasks on which" in told
    assert json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())["windows"] == 5
