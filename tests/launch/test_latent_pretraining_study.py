"""The study of latent pretraining, without its trainings: what it would run, and what its tables say."""

import json
import pathlib

import common
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.sim.scores import of_counts
from launch.studies import latent_pretraining as study

RATES = {"scratch": 2, "scratch_long": 3, "lapa": 6, "vpt": 5, "actions": 8}
"""Successes of 20 of each arm; half of them with unseen instructions."""


def driven(arm, split):
    own = of_counts(RATES[arm] // (1 if split == "seen" else 2), 20)
    controls = {"expert": of_counts(20, 20), "random": of_counts(0, 20), "repeat": of_counts(1, 20)}
    policies = {name: {"overall": value, "tasks": {}} for name, value in {"policy": own, **controls}.items()}
    return {"policies": policies, "metrics": {"success_rate": own["success_rate"]}}


@pytest.fixture
def calls(monkeypatch):
    """Commands that are told and not run; what they would leave behind lies there."""
    told = []

    def call(log, script, *arguments):
        told.append((script, arguments))
        value = {name: arguments[i + 1] for i, name in enumerate(arguments[:-1]) if name.startswith("--")}
        if script == "launch/train.py":
            run = pathlib.Path(value["--workdir"])
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text('{"step": 1, "val/action_r2": 0.5}\n')
        elif script == "launch/eval.py":
            run = pathlib.Path(value["--run"])
            out = pathlib.Path(value["--out"]) if "--out" in value else run / "eval"
            out.mkdir()
            probes = {"metrics": {"action_probe_r2": 0.8, "transfer_consistency": 0.7}}
            content = probes
            if "--env" in value:
                content = driven(run.name.rpartition("_")[0], value["--split"])
                (out / "policy" / "episodes").mkdir(parents=True)
                for number in range(20):
                    success = number < content["policies"]["policy"]["overall"]["successes"]
                    line = json.dumps({"success": success})
                    (out / "policy" / "episodes" / f"{number:06d}.json").write_text(line)
            (out / "metrics.json").write_text(json.dumps(content))
        elif script == "tools/pseudo_actions.py":
            out = pathlib.Path(value["--out"])
            out.mkdir(parents=True, exist_ok=True)
            (out / "pseudo_actions.json").write_text('{"action_r2": 0.4}')

    monkeypatch.setattr(common, "call", call)
    monkeypatch.setattr(study, "read_label_info", lambda folder: {"tokenizer": f"of {folder.name}"})
    return told


def test_every_arm_ends_with_the_same_training_and_drives_on_both_splits(calls, tmp_path, capsys):
    command = ["--out", str(tmp_path), "--short", "--seeds", "2", "--jobs", "1", "--overrides", "model.llm.depth=2"]
    study.main(command)
    assert [script for script, _ in calls[:4]] == ["tools/record_sim.py"] * 4
    seeds = {pathlib.Path(a[-1]).name: a[a.index("--seed") + 1] for _, a in calls[:4]}
    assert seeds == {"videos": "1", "moving": "1", "demos_0": "2", "demos_1": "3"}, "each seed has demonstrations"
    assert all(a[a.index("--split") + 1] == "seen" for _, a in calls[:4])
    assert calls[4] == ("tools/make_tokenizer.py", ("--data", f"{tmp_path}/data/videos", "--out",
                                                    f"{tmp_path}/data/words"))  # fmt: skip
    trained = {pathlib.Path(a[-1]).name: a for script, a in calls if script == "launch/train.py"}
    last = {arm: trained[f"{arm}_1"] for arm in study.ARMS}
    assert f"--config.train.steps={study.SHORT.pretrain + study.SHORT.finetune}" in last.pop("scratch_long")
    own = {arm: [a for a in args if "init_from" not in a and "workdir" not in a] for arm, args in last.items()}
    assert len({tuple(args[:-1]) for args in own.values()}) == 1, "but for what they begin with"
    assert f"--config.train.steps={study.SHORT.finetune}" in own["lapa"]
    assert "--config.model.llm.depth=2" in own["lapa"]
    assert not any("init_from" in a for a in last["scratch"])
    for arm in ("lapa", "vpt", "actions"):
        before = trained[f"pretrain_{arm}_1"]
        assert f"--config.init_from.={tmp_path}/runs/pretrain_{arm}_1" in last[arm]
        assert f"--config.train.steps={study.SHORT.pretrain}" in before and "--config.model.llm.depth=2" in before
    assert "--config.data.labels_tokenizer=of labels_1" in trained["pretrain_lapa_1"]
    assert f"--config.data.path={tmp_path}/data/pseudo_1" in trained["pretrain_vpt_1"]
    assert f"--config.data.path={tmp_path}/data/videos" in trained["pretrain_actions_1"]
    drives = [a for script, a in calls if script == "launch/eval.py" and "--env" in a]
    assert len(drives) == 2 * 2 * len(study.ARMS) and {a[a.index("--split") + 1] for a in drives} == {"seen", "unseen"}
    assert {a[a.index("--seed") + 1] for a in drives if a[a.index("--run") + 1].endswith("lapa_1")} == {"1"}
    best = {pathlib.Path(a[a.index("--run") + 1]).name for a in drives if "best" in a}
    assert best == {"scratch_long_0", "scratch_long_1"}
    text = capsys.readouterr().out
    assert "| lapa | 30% (18–45), 12/40 [30%, 30%] | 15% (7–29), 6/40 [15%, 15%] | 0.500, 0.500 |" in text
    assert "| repeat | 5% (1–17), 2/40 | 5% (1–17), 2/40 |  |" in text, "the controls of each seed's starts count once"
    # Six of twenty against two, by the same starts: the four that only LAPA solves, for both seeds.
    assert "| scratch | +20 (" in text and "bootstrap over seeds and starts" in text
    assert "seen: LAPA over scratch 3.00 (aim 2), LAPA over true actions 0.75 (aim 0.85)" in text
    assert "says nothing" not in text and "of the video, a seed each: 0.400, 0.400" in text
    assert "| moving background |  |  |  | 0.800 |" in text
    assert (tmp_path / "tables.md").read_text() in text and (tmp_path / "success.png").stat().st_size > 3000
    done = len([script for script, _ in calls if script in ("launch/train.py", "launch/eval.py")])
    study.main(command)
    assert len([script for script, _ in calls if script in ("launch/train.py", "launch/eval.py")]) == done


def test_an_upper_bound_no_better_than_the_controls_is_told(monkeypatch, calls, tmp_path, capsys):
    monkeypatch.setitem(RATES, "actions", 2)
    monkeypatch.setitem(RATES, "scratch", 0)
    study.main(["--out", str(tmp_path), "--short", "--jobs", "1"])
    text = capsys.readouterr().out
    assert "the comparison says nothing" in text and "undefined (0 successes)" in text


def test_single_arms(calls, tmp_path, capsys):
    study.main(["--out", str(tmp_path), "--short", "--jobs", "1", "--arms", "scratch", "--task", "block2block"])
    assert not any(script in ("launch/label.py", "tools/pseudo_actions.py") for script, _ in calls)
    assert all("block2block" in a for script, a in calls if script == "tools/record_sim.py")
    assert "LAPA over" not in capsys.readouterr().out


@pytest.mark.parametrize("arm", ["lapa", "actions"])
def test_what_is_pretrained_fits_the_policy(root, arm):
    """The same body and texts: what the policy begins with has its shapes."""
    config = "vla_latent.py:small" if arm == "lapa" else "vla_action.py:small+chunk"
    given = [f"--config.{change}" for change in (*study.POLICY, "model.llm.vocab=259")]
    one, two = (config_lib.load(f"{root}/configs/{name}", given) for name in (config, "vla_action.py:small+chunk"))
    for part in ("siglip", "dinov2", "vision", "llm", "projection", "image_attention"):
        assert one.model[part] == two.model[part]
    assert (one.data.text_length, one.data.image_size) == (two.data.text_length, two.data.image_size) == (20, 64)


def test_wrong_input_is_one_line(calls, tmp_path):
    with pytest.raises(UserError, match="did you mean 'lapa'"):
        study.main(["--out", str(tmp_path / "out"), "--arms", "lappa"])
    assert calls == []
