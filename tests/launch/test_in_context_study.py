"""The study of in-context policies, without its trainings: what it would train, and what its tables say."""

import json

import common
import pytest

from lapa_jax.core.errors import UserError
from launch.studies import in_context as study

TASKS = [f"task {letter}" for letter in "abcde"]


def result(name, errors, metrics, left_out=()):
    """metrics.json of a policy; errors: {task: (right, wrong, none)}."""
    tasks = [{"name": task, "status": "held out" if task in left_out else "seen",
              **{kind: {"action_mse": value} for kind, value in zip(study.PROMPTS, values, strict=True)}}
             for task, values in errors.items()]  # fmt: skip
    return {"run": name, "tasks": tasks, "metrics": metrics}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Studies that train nothing: what they would, and made up results."""
    calls = []

    def train(run, config, settings):
        calls.append((run.name, config, settings))
        (run / "eval").mkdir(parents=True)
        left_out = [task for task in TASKS if any(s.startswith("data.held_out_tasks=") and task in s for s in settings)]
        errors = {task: (0.2 if task in left_out else 0.1, 0.3, 0.15) for task in TASKS}
        seed = int(settings[0].removeprefix("seed="))
        metrics = {"action_mse": 0.1 + 0.1 * seed, "action_mse_wrong_prompt": 0.3, "action_mse_no_prompt": 0.15,
                   "action_r2": 0.9, "prompt_wins": 1.0}  # fmt: skip
        (run / "eval" / "metrics.json").write_text(json.dumps(result(run.name, errors, metrics, left_out)))
        return run

    monkeypatch.setattr(common, "train", train)
    monkeypatch.setattr(study, "StepShards", lambda folder, split: None)
    monkeypatch.setattr(study, "task_names", lambda shards: TASKS * 2)
    return calls


def test_it_trains_a_tokenizer_a_seed_and_leaves_every_task_out_once(trained, tmp_path, capsys):
    study.main(["--data", "d", "--out", str(tmp_path), "--seeds", "2", "--folds", "2", "--jobs", "1",
                "--overrides", "train.steps=3"])  # fmt: skip
    names = [name for name, _, _ in trained]
    assert names[:2] == ["tokenizer_0", "tokenizer_1"]
    assert names[2:10] == [f"{how}_{seed}" for seed in range(2) for how in ("raw", "z", "q", "zq")]
    by_name = {name: (config, settings) for name, config, settings in trained}
    assert by_name["tokenizer_1"][0] == "mstcn.py:small" and "model.causal=True" in by_name["tokenizer_1"][1]
    assert f"init_from.tokenizer={tmp_path}/runs/tokenizer_1" in by_name["q_1"][1]
    assert not any("init_from" in setting for setting in by_name["raw_0"][1])
    assert all("train.steps=3" in settings for _, config, settings in trained if config.startswith("icl.py:small"))
    held_out = [s for *_, settings in trained for s in settings if s.startswith("data.held_out_tasks=")]
    assert held_out == [f"data.held_out_tasks={tuple(TASKS[start::2])}" for start in range(2)]
    text = capsys.readouterr().out
    assert "| raw | 2 | 0.1500 (0.1000–0.2000) | 0.3000 (0.3000–0.3000) |" in text
    assert "| task a | 0.1000 | 0.3000 | 0.1500 | 0.2000 | 0.3000 | 0.1500 |" in text
    assert "seen 5 of 5; unseen 0 of 5 tasks" in text, "the right prompt must beat both others"
    assert (tmp_path / "tables.md").read_text() in text


def test_no_folds_and_raw_actions_need_no_tokenizer(trained, tmp_path, capsys):
    study.main(["--data", "d", "--out", str(tmp_path), "--seeds", "1", "--folds", "0", "--actions", "raw"])
    assert [name for name, _, _ in trained] == ["raw_0"]
    assert "| task a | 0.1000 | 0.3000 | 0.1500 |  |  |  |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--actions", "zq"], "did you mean 'z\\+q'"), (["--folds", "1"], "at least 2"),
     (["--folds", "-1"], "at least 2"), (["--folds", "6"], "of 5 tasks")],
)  # fmt: skip
def test_wrong_input_is_one_line(trained, tmp_path, arguments, told):
    with pytest.raises(UserError, match=told):
        study.main(["--data", "d", "--out", str(tmp_path / "out"), *arguments])
    assert trained == []
