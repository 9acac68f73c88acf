"""The study of in-context policies that drive, without its trainings: what it would run, and what its table says."""

import json
import pathlib

import common
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.sim.metaworld_tasks import TASKS
from launch.studies import in_context_driving as study

SOLVED = {"right": 6, "wrong": 2, "none": 3}
"""Of 10 episodes in unseen tasks; in seen ones all."""


@pytest.fixture
def calls(monkeypatch):
    told = []

    def call(log, script, *arguments):
        told.append((script, arguments))
        value = {name: arguments[i + 1] for i, name in enumerate(arguments[:-1]) if name.startswith("--")}
        if script == "launch/train.py":
            pathlib.Path(value["--workdir"]).mkdir(parents=True)
        if script == "launch/eval.py":
            out = pathlib.Path(value["--out"])
            for name in ("policy",) if "--run" in value else common.CONTROLS:
                (out / name / "episodes").mkdir(parents=True, exist_ok=True)
                count = SOLVED[value["--prompt"]] if "unseen" in out.name and name == "policy" else 10
                for number in range(min(10, int(value["--episodes"]))):
                    line = {"task": f"task {number % 2}", "success": number < count}
                    (out / name / "episodes" / f"{number:06d}.json").write_text(json.dumps(line))
            (out / "metrics.json").write_text(json.dumps({"episodes": int(value["--episodes"])}))

    monkeypatch.setattr(common, "call", call)
    return told


def tasks_of(arguments):
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == "--task"]


def test_tasks_that_were_left_out_are_driven_with_each_kind_of_prompt(calls, tmp_path, capsys):
    command = ["--out", str(tmp_path), "--seeds", "2", "--prompts", "1", "3", "--jobs", "1", "--variations", "4",
               "--overrides", "model.depth=2"]  # fmt: skip
    study.main(command)
    (script, recorded), *others = calls
    assert script == "tools/record_sim.py" and recorded[recorded.index("--episodes") + 1] == "160"
    seen = tasks_of(recorded)
    trained = {pathlib.Path(a[-1]).name: a for script, a in others if script == "launch/train.py"}
    assert set(trained) == {f"icl_{prompts}_{seed}" for prompts in (1, 3) for seed in range(2)}
    assert {"--config.model.prompts=3", "--config.seed=1", "--config.model.depth=2"} <= set(trained["icl_3_1"])
    drives = [a for script, a in others if script == "launch/eval.py" and "--run" in a]
    assert len(drives) == 4 * 2 * 3
    controls = [a[-1] for script, a in others if script == "launch/eval.py" and "--policy" in a]
    assert {pathlib.Path(folder).name for folder in controls} == {"seen_0", "seen_1", "unseen_0", "unseen_1"}
    assert len(controls) == 4, "once, whatever the policy"
    assert (tmp_path / "runs/icl_1_0/drive_seen_none/random/episodes").is_dir(), "which the policies' tables have too"
    unseen = {task for a in drives if "unseen" in a[-1] for task in tasks_of(a)}
    assert len(unseen) == 10 and unseen | set(seen) == set(TASKS) and not unseen & set(seen)
    assert all(set(tasks_of(a)) <= set(seen) and len(tasks_of(a)) == 10 for a in drives if "drive_seen" in a[-1])
    text = capsys.readouterr().out
    assert "prompts of 1, 3 demonstrations, 2 seeds: about" in text and "Trained on 40 tasks, 10 left out" in text
    assert "| 3 shown | 60% (" in text and "), 20/20 | 3.0 |" in text
    assert "| 3 shown | +40 (" in text.partition("Paired differences")[2] and "[+40, +40]" in text
    assert "Success by task, unseen, right." in text and "2 seeds are few" in text
    assert (tmp_path / "tables.md").read_text() in text
    done = len(calls)
    study.main(command)
    assert [script for script, _ in calls[done:]] == ["tools/record_sim.py"], "which finds all recorded"


def test_a_wrong_prompt_that_never_solves_has_no_ratio(monkeypatch, calls, tmp_path, capsys):
    monkeypatch.setitem(SOLVED, "wrong", 0)
    study.main(["--out", str(tmp_path), "--seeds", "1", "--prompts", "1", "--jobs", "1"])
    assert "undefined (0 successes)" in capsys.readouterr().out


def test_wrong_input_is_one_line(calls, tmp_path):
    with pytest.raises(UserError, match="--unseen 26: there are 50 tasks; leave out 1 to 25"):
        study.main(["--out", str(tmp_path), "--unseen", "26"])
    with pytest.raises(UserError, match="model.deepth"):
        study.main(["--out", str(tmp_path), "--overrides", "model.deepth=3"])
    assert calls == []
