"""The study of latent pretraining, without its trainings: what it would run, and what its tables say."""

import json
import pathlib

import common
import common_settings
import common_tables
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from launch.studies import latent_pretraining as study

ARMS = common_settings.ARMS
RATES = {"scratch": 2, "scratch_long": 3, "lapa": 6, "lapa_few": 7, "lapa_shuffled": 3, "lapa_random": 2, "vpt": 5,
         "cotrained": 4, "actions": 8, "scratch_flow": 1, "lapa_flow": 5, "expert": 20, "random": 0,
         "repeat": 1}  # fmt: skip
"""Successes of 20 of each arm; half of them with unseen instructions."""


def value_of(arguments):
    return {name: arguments[i + 1] for i, name in enumerate(arguments[:-1]) if name.startswith("--")}


def drive(value, out):
    """What launch/eval.py leaves behind in a simulator; 20 lines at most, which are more than enough."""
    policies = {"policy": pathlib.Path(value["--run"]).name.rsplit("_", 3)[0]} if (
        "--run" in value) else {name: name for name in common.CONTROLS}  # fmt: skip
    half = "--split" in value and value["--split"] == "unseen" and "--run" in value
    for folder, name in policies.items():
        (out / folder / "episodes").mkdir(parents=True, exist_ok=True)
        for number in range(min(20, int(value["--episodes"]))):
            line = {"success": number < RATES[name] // (2 if half else 1), "task": f"task {number % 2}"}
            (out / folder / "episodes" / f"{number:06d}.json").write_text(json.dumps(line))
    (out / "metrics.json").write_text(json.dumps({"episodes": int(value["--episodes"])}))


@pytest.fixture
def calls(monkeypatch):
    """Commands that are told and not run; what they would leave behind lies there."""
    told = []

    def call(log, script, *arguments):
        told.append((script, arguments))
        value = value_of(arguments)
        if script == "launch/train.py":
            run = pathlib.Path(value["--workdir"])
            run.mkdir(parents=True)
            rate = next((float(a.partition("=")[2]) for a in arguments if "optim.learning_rate" in a), 0)
            # The second evaluation is the best; at the rate 0.0005 losses are least, but for the arm of true actions.
            best = 0.0002 if run.name.startswith("actions") else 0.0005
            lines = [{"step": step, "val/loss": loss + abs(rate - best), "val/action_r2": r2,
                      "val/latent_accuracy": r2}
                     for step, loss, r2 in ((0, 0.0, 0.0), (1, 0.3, 0.4), (2, 0.1, 0.5), (3, 0.2, 0.6))]  # fmt: skip
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif script == "launch/eval.py" and "--env" in value:
            drive(value, pathlib.Path(value["--out"]))
        elif script == "launch/eval.py":
            out = pathlib.Path(value["--run"]) / "eval"
            out.mkdir(exist_ok=True)
            reference = {"action_probe_r2_reference": 0.9} if value["--reference_steps"] != "0" else {}
            probes = {"action_probe_r2": 0.8, "transfer_consistency": 0.7} | reference
            (out / "metrics.json").write_text(json.dumps({"metrics": probes}))
        elif script == "tools/pseudo_actions.py":
            out = pathlib.Path(value["--out"])
            out.mkdir(parents=True, exist_ok=True)
            (out / "pseudo_actions.json").write_text('{"action_r2": 0.4}')

    monkeypatch.setattr(common, "call", call)
    monkeypatch.setattr(study, "read_label_info", lambda folder: {"tokenizer": f"of {folder.name}"})
    return told


def trainings(calls):
    """{run: arguments}."""
    return {pathlib.Path(a[-1]).name: a for script, a in calls if script == "launch/train.py"}


def test_every_arm_searches_alike_and_drives_on_the_same_starts(calls, tmp_path, capsys):
    command = ["--out", str(tmp_path), "--seeds", "2", "--jobs", "1", "--overrides", "model.llm.depth=2"]
    study.main(command)
    recorded = {pathlib.Path(a[-1]).name: value_of(a) for script, a in calls if script == "tools/record_sim.py"}
    assert {name: value["--seed"] for name, value in recorded.items()} == {
        "videos": "1", "moving": "1", "validation": "1000", "demos_50_0": "2", "demos_50_1": "3"}  # fmt: skip
    assert {value["--split"] for value in recorded.values()} == {"seen"}
    trained = trainings(calls)
    # Three rates of each arm on seed 0, the best of them with the other seed.
    searched = {name for name in trained if name.rpartition("_")[0].endswith("_0") and "." in name}
    assert searched == {f"{arm}_50_0_{rate}" for arm in ARMS for rate in ("0.001", "0.0005", "0.0002")}
    assert {f"{arm}_50_1_0.0005" for arm in ARMS if arm != "actions"} | {"actions_50_1_0.0002"} <= set(trained)
    assert len(trained) == 3 * len(ARMS) + len(ARMS) + 2 * (6 + 2) + 1, "pretrainings and tokenizers of both seeds"
    last = {arm: trained[f"{arm}_50_1_{0.0002 if arm == 'actions' else 0.0005}"] for arm in ARMS}
    sizes = common_settings.Sizes()
    long = [last.pop(arm) for arm in ("scratch_long", "cotrained")]
    assert all(f"--config.train.steps={sizes.pretrain + sizes.finetune}" in a for a in long)
    both = next(a for a in long[1] if "data.mixture" in a)
    assert long[1][1].endswith("vla_action.py:small+chunk+cotrained")
    assert "'fields': ('image', 'text', 'latent')" in both
    assert f"--config.data.val_labels={tmp_path}/data/labels_codes_1_of_validation" in long[1]
    flow = [last.pop(arm) for arm in ("scratch_flow", "lapa_flow")]
    assert all(a[1].endswith("vla_action.py:small+flow") for a in flow)
    kept = ("init_from", "workdir", "learning_rate")
    own = {arm: [a for a in args[:-1] if not any(each in a for each in kept)] for arm, args in last.items()}
    assert len({tuple(args) for args in own.values()}) == 1, "but for what they begin with, and the rate"
    assert {f"--config.train.steps={sizes.finetune}", "--config.model.llm.depth=2", "--config.data.split_val=train",
            f"--config.data.val_path={tmp_path}/data/validation"} <= set(own["lapa"])  # fmt: skip
    begun = {arm: [a.partition("=")[2] for a in args if "init_from.=" in a] for arm, args in last.items()}
    kinds = {"lapa": "codes_1", "lapa_few": "few_50_1", "lapa_shuffled": "shuffled_1", "lapa_random": "random_1",
             "vpt": "vpt_50_1", "actions": "actions_1"}  # fmt: skip
    assert begun == {"scratch": []} | {arm: [f"{tmp_path}/runs/pretrain_{kind}"] for arm, kind in kinds.items()}
    assert "--config.data.labels_tokenizer=of labels_shuffled_1" in trained["pretrain_shuffled_1"]
    assert f"--config.data.path={tmp_path}/data/pseudo_50_1" in trained["pretrain_vpt_50_1"]
    assert f"--config.data.path={tmp_path}/data/videos" in trained["pretrain_actions_1"]
    mixture = next(a for a in trained["laq_few_videos_50_1"] if "data.mixture" in a)
    assert f"'path': '{tmp_path}/data/demos_50_1', 'weight': 0.25, 'action_share': 1.0" in mixture
    drives = [value_of(a) for script, a in calls if script == "launch/eval.py" and "--env" in a]
    assert len(drives) == 2 * 2 * (len(ARMS) + 1), "each arm, and the controls once"
    assert {value["--step"] for value in drives if "--run" in value} == {"best"}
    assert {value["--dataset"] for value in drives if "cotrained_50_1" in value.get("--run", "")} == {"demos_50_1"}
    assert {value["--seed"] for value in drives if value.get("--run", "").endswith("lapa_50_1_0.0005")} == {"1"}
    text = capsys.readouterr().out
    assert "11 arms, 2 seeds: about " in text
    assert "| lapa | 30% (18–45), 12/40 [30%, 30%] | 15% (5–28), 6/40 [15%, 15%] | 0.500, 0.500 |" in text
    assert "| repeat | 5% (0–12), 2/40 [5%, 5%] |" in text, "the controls of each seed's starts count once"
    assert "| scratch | +20 (" in text and "a bootstrap over seeds, and over starts within them" in text
    assert "seen: LAPA over scratch 3.00, LAPA over true actions 0.75" in text
    assert "| actions | 0.001: 0.1008, 0.0005: 0.1003, 0.0002: 0.1000 | 0.0002 | 2, 2 |" in text
    assert "says nothing" not in text and "of the video, a seed each: 0.400, 0.400" in text
    assert "| few | 1 | 60.0% |" in text, "of each seed, the last evaluation of stage 2"
    # The reference is trained beside the first seed's tokenizers alone, and shown for them.
    videos = ("as recorded", "moving background")
    assert all(f"| {video} |  |  |  | 0.800 |  | 0.900 | 70% |" in text for video in videos)
    assert "| task 1 |" in text
    assert (tmp_path / "tables_50.md").read_text() in text and (tmp_path / "success_50.png").stat().st_size > 3000
    expensive = ("launch/train.py", "launch/eval.py")
    done = len([script for script, _ in calls if script in expensive])
    study.main(command)
    assert len([script for script, _ in calls if script in expensive]) == done


def test_other_demonstrations_use_the_same_video_and_nothing_that_others_taught(calls, tmp_path):
    arms = ["lapa", "lapa_few", "vpt", "actions"]
    for demos in ("50", "9"):
        study.main(["--out", str(tmp_path), "--short", "--seeds", "1", "--jobs", "1", "--demos", demos,
                    "--arms", *arms])  # fmt: skip
    trained = [pathlib.Path(a[-1]).name for script, a in calls if script == "launch/train.py"]
    assert len(trained) == len(set(trained)), "a training with another's demonstrations would be refused"
    before = {name for name in trained if name.startswith(("laq", "pretrain"))}
    once = {"laq_codes_videos_0", "pretrain_codes_0", "pretrain_actions_0"}
    of_demos = {f"{name}_{demos}_0" for name in ("laq_few_videos", "pretrain_few", "pretrain_vpt") for demos in (9, 50)}
    assert before == once | of_demos
    assert {path.name for path in tmp_path.glob("tables*")} == {"tables_50.md", "tables_9.md"}
    pseudo = [value_of(a) for script, a in calls if script == "tools/pseudo_actions.py"]
    assert {(value["--demonstrations"], value["--out"]) for value in pseudo} == {
        (f"{tmp_path}/data/demos_{demos}_0", f"{tmp_path}/data/pseudo_{demos}_0") for demos in (9, 50)}  # fmt: skip


def test_the_short_study_has_two_seeds_and_one_rate(calls, tmp_path, capsys):
    study.main(["--out", str(tmp_path), "--short", "--jobs", "1"])
    tuned = {name for name in trainings(calls) if "." in name}
    assert tuned == {f"{arm}_10_{seed}_0.0005" for arm in study.SHORT_ARMS for seed in (0, 1)}
    values = {pathlib.Path(a[-1]).name: value_of(a) for script, a in calls if script == "tools/record_sim.py"}
    assert (values["demos_10_1"]["--episodes"], values["videos"]["--episodes"]) == ("10", "1000")
    assert "moving" not in values, "what moves behind is no question of the short study"
    text = capsys.readouterr().out
    assert "| scratch | +20 (" in text and "a bootstrap over seeds, and over starts within them" in text
    assert "| as recorded |  |  |  | 0.800 |  |  | 70% |" in text, "without a reference, which takes minutes"
    assert float(text.partition("about ")[2].partition(" core hours")[0]) < 40 / 60 * 2, "two cores"


def test_an_upper_bound_no_better_than_the_controls_is_told(monkeypatch, calls, tmp_path, capsys):
    monkeypatch.setitem(RATES, "actions", 2)
    monkeypatch.setitem(RATES, "scratch", 0)
    study.main(["--out", str(tmp_path), "--short", "--jobs", "1"])
    text = capsys.readouterr().out
    assert "the comparison says nothing" in text and "undefined (0 successes)" in text


def test_of_one_seed_the_intervals_are_those_of_its_starts(calls, tmp_path, capsys):
    study.main(["--out", str(tmp_path), "--short", "--seeds", "1", "--jobs", "1"])
    text = capsys.readouterr().out
    assert "| scratch | +20 (" in text and "What another seed would give, one seed cannot say" in text


def test_starts_that_all_went_alike_leave_an_interval(monkeypatch, calls, tmp_path, capsys):
    """A bootstrap of them has no width, as if it were certain that the next one goes the same way."""
    for arm, successes in {"scratch": 0, "lapa": 20, "actions": 20}.items():
        monkeypatch.setitem(RATES, arm, successes)
    study.main(["--out", str(tmp_path), "--short", "--jobs", "1"])
    text = capsys.readouterr().out
    assert "| scratch | 0% (0–9), 0/40" in text and "| lapa | 100% (91–100), 40/40" in text
    assert "| actions | +0 (at every start) [+0, +0] |" in text
    assert "| scratch | +100 (at every start) [+100, +100] |" in text


def test_a_world_with_sides_is_not_mirrored(calls, tmp_path):
    """Its tokenizer alone: policies are never mirrored, as their instructions are not."""
    study.main(["--out", str(tmp_path), "--benchmark", "other_robot", "--seeds", "1", "--jobs", "1", "--arms", "lapa"])
    plain = {run: "--config.data.augment=None" in arguments for run, arguments in trainings(calls).items()}
    assert plain == {run: run.startswith("laq") for run in plain} and sum(plain.values()) == 1


def test_another_policy_is_the_same_for_what_it_begins_with(calls, tmp_path):
    study.main(["--out", str(tmp_path), "--benchmark", "metaworld", "--seeds", "1", "--jobs", "1", "--policy", "small",
                "--arms", "lapa", "actions"])  # fmt: skip
    configs = {a[1].rpartition("/")[2] for run, a in trainings(calls).items() if not run.startswith("laq")}
    assert configs == {"vla_latent.py:small", "vla_action.py:small+chunk"}


def test_single_arms(calls, tmp_path, capsys):
    study.main(["--out", str(tmp_path), "--short", "--jobs", "1", "--arms", "scratch", "--task", "block2block",
                "--blocks", "8"])  # fmt: skip
    assert not any(script in ("launch/label.py", "tools/pseudo_actions.py") for script, _ in calls)
    recorded = [value_of(a) for script, a in calls if script == "tools/record_sim.py"]
    assert {(value["--task"], value["--blocks"]) for value in recorded} == {("block2block", "8")}
    assert "LAPA over" not in capsys.readouterr().out


@pytest.mark.parametrize("name", common_settings.BENCHMARKS)
def test_every_benchmark_is_a_table(calls, tmp_path, name):
    study.main(["--out", str(tmp_path), "--benchmark", name, "--seeds", "1", "--jobs", "1"])
    benchmark = common_settings.BENCHMARKS[name]
    recorded = {pathlib.Path(a[-1]).name: value_of(a) for script, a in calls if script == "tools/record_sim.py"}
    demos = recorded[f"demos_{benchmark.sizes.demos}_0"]
    assert (recorded["videos"]["--env"], demos["--env"]) == (benchmark.filmed.env, benchmark.robot.env)
    rates = {data: value.get("--fps") for data, value in recorded.items() if data not in ("moving", "validation")}
    slowed = {"videos": benchmark.filmed.env, f"demos_{benchmark.sizes.demos}_0": benchmark.robot.env}
    assert rates == {data: "20" if env == "metaworld" else None for data, env in slowed.items()}
    assert "moving" not in recorded or name == "push_table"
    driven = [a for script, a in calls if script == "launch/eval.py" and "--env" in a]
    assert len(driven) == len(benchmark.conditions) * (len(benchmark.arms) + 1)
    assert {value_of(a)["--env"] for a in driven} == {benchmark.robot.env}
    if name == "pairs":
        assert {("--moving" in a, "--varied" in a) for a in driven} == {(False, False), (True, False), (False, True)}
    policies = {a[1].partition(":")[2] for run, a in trainings(calls).items() if not run.startswith("laq")}
    assert {policy.partition("+")[0] for policy in policies} == {benchmark.policy}


def test_blocks_leave_pairs_to_learn_from():
    from lapa_jax.sim.push_table import ORDER
    from lapa_jax.sim.push_table_tasks import Task

    blocks = int(dict(zip(*[iter(common_settings.BENCHMARKS["pairs"].robot.options)] * 2))["--blocks"])
    pairs = [Task("separate", "", a, b).held_out() for i, a in enumerate(ORDER[:blocks]) for b in ORDER[i + 1 : blocks]]
    assert sum(not held_out for held_out in pairs) >= 12 and sum(pairs) >= 3


def test_blocks_of_one_colour_differ_in_what_64_pixels_show():
    """A cube and a disc, or a triangle, of one colour are both spots of five pixels."""
    from lapa_jax.sim.push_table import ORDER
    from lapa_jax.sim.push_table_tasks import BLOCKS

    chosen = [BLOCKS[i] for i in ORDER[:6]]
    of_colours = {colour: {shape for c, shape in chosen if c == colour} for colour, _ in chosen}
    assert len(of_colours) == 4 and all(len(shapes) == 1 or "bar" in shapes for shapes in of_colours.values())


@pytest.mark.parametrize("arm", ["lapa", "actions"])
def test_what_is_pretrained_fits_the_policy(root, arm):
    """The same body and texts: what the policy begins with has its shapes."""
    config = "vla_latent.py:small" if arm == "lapa" else "vla_action.py:small+chunk"
    given = [f"--config.{change}" for change in (*study.POLICY, "model.llm.vocab=259")]
    one, two = (config_lib.load(f"{root}/configs/{name}", given) for name in (config, "vla_action.py:small+chunk"))
    for part in ("siglip", "dinov2", "vision", "llm", "projection", "image_attention"):
        assert one.model[part] == two.model[part]
    assert (one.data.text_length, one.data.image_size) == (two.data.text_length, two.data.image_size) == (20, 64)


def test_an_interval_over_seeds_is_wider_than_that_of_all_starts_together():
    apart = [[True] * 20, [False] * 20]
    assert common_tables.rate(apart)["low"] == 0 and common_tables.rate([[True] * 20 + [False] * 20])["low"] > 0.3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arms", "lappa"], "did you mean 'lapa'"),
        (["--benchmark", "metawrld"], "no benchmark 'metawrld'; did you mean 'metaworld'"),
        (["--benchmark", "metaworld", "--blocks", "4"], "--blocks 4: there are none in metaworld"),
        (["--benchmark", "other_robot", "--task", "separate"], "in --benchmark other_robot the video is of metaworld"),
        (["--overrides", "optim.learning_rat=1"], "no key 'optim.learning_rat'; did you mean 'learning_rate'"),
        (["--arms", "cotrained", "--overrides", "train.steps=many"], "train.steps is int"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_recorded(calls, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        study.main(["--out", str(tmp_path / "out"), *arguments])
    assert calls == [] and not (tmp_path / "out").exists()


def test_an_arm_that_is_named_twice_is_one(calls, tmp_path):
    study.main(["--out", str(tmp_path), "--arms", "scratch", "scratch", "--seeds", "1", "--short"])
    assert list(trainings(calls)) == ["scratch_10_0_0.0005"]


def test_more_episodes_are_added_to_those_that_were_driven_and_fewer_are_the_first_of_them(calls, tmp_path, capsys):
    """An arm that is added later drives as many as the table says, and so do the others and the controls."""
    command = ["--out", str(tmp_path), "--short", "--seeds", "1", "--jobs", "1"]
    study.main([*command, "--episodes", "8", "--arms", "scratch"])
    assert "| scratch | 25% (7–59), 2/8 |" in capsys.readouterr().out
    study.main([*command, "--episodes", "16", "--arms", "scratch", "lapa"])
    text = capsys.readouterr().out
    assert "| scratch | 12% (3–36), 2/16 |" in text and "| lapa | 38% (18–61), 6/16 |" in text
    assert "| expert | 100% (81–100), 16/16 |" in text
    driven = len(calls)
    study.main([*command, "--episodes", "4", "--arms", "scratch", "lapa"])
    text = capsys.readouterr().out
    assert "| lapa | 100% (51–100), 4/4 |" in text and "| expert | 100% (51–100), 4/4 |" in text
    assert not any("--env" in a for script, a in calls[driven:] if script == "launch/eval.py")


def test_a_reference_that_the_short_study_left_out_is_measured_by_the_full_one(calls, tmp_path, capsys):
    """Both have the same tokenizer; an evaluation that is there already has no reference."""
    command = ["--out", str(tmp_path), "--seeds", "1", "--jobs", "1", "--arms", "lapa"]
    study.main([*command, "--short"])
    assert "| as recorded |  |  |  | 0.800 |  |  | 70% |" in capsys.readouterr().out
    study.main(command)
    assert "| as recorded |  |  |  | 0.800 |  | 0.900 | 70% |" in capsys.readouterr().out


def test_a_rate_that_diverges_is_not_chosen_and_a_training_that_does_is_named(calls, tmp_path, capsys):
    """metrics.jsonl has null for a loss that is not finite."""
    command = ["--out", str(tmp_path), "--seeds", "1", "--jobs", "1", "--arms", "scratch"]
    study.main(command)
    for rate in ("0.0005", "0.0002", "0.001"):
        path = tmp_path / "runs" / f"scratch_50_0_{rate}" / "metrics.jsonl"
        path.write_text('{"step": 1, "val/loss": null}\n')
        if rate == "0.0005":
            capsys.readouterr()
            study.main(command)
            assert "0.0005: inf" in capsys.readouterr().out
    with pytest.raises(UserError, match="scratch_50_0_0.001 diverged: no evaluation has a finite val/loss"):
        study.main(command)


def test_tables_of_runs_of_two_revisions_say_so(calls, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common, "_used", set())
    command = ["--out", str(tmp_path), "--short", "--seeds", "1", "--jobs", "1", "--arms", "scratch", "actions"]
    study.main(command)
    runs = [run for run in (tmp_path / "runs").iterdir() if run.is_dir()]
    commits = [{"commit": "a" * 40, "changed": False}, {"commit": "b" * 40, "changed": True}]
    for git in ([commits[0]] * 2, commits):
        for run, own in zip(sorted(runs), [*git, git[0]], strict=True):
            (run / "env.json").write_text(json.dumps({"git": own}))
        study.main(command)
    one, two = (tmp_path / "tables_10.md").read_text(), capsys.readouterr().out
    assert "Trained at revision aaaaaaa." in two
    assert "Trained at several revisions (aaaaaaa: 2 runs; bbbbbbb, changed: 1 run): rows" in one
