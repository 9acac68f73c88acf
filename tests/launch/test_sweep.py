"""`launch/sweep.py`: trials run once, share their stages, and end in a table, an image and the best settings."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from lapa_jax.core.errors import UserError
from lapa_jax.core.sweep import Outcome, Stage, Sweep
from lapa_jax.plots import sweep as plots
from lapa_jax.train import distributed
from launch import sweep

# A stage whose figure is known: twice its first number, plus what the stage before wrote. Each run leaves a line. It
# locks its folder as tools/record_sim.py and others of ours do.
SCRIPT = """
import json, pathlib, sys, time
from lapa_jax.core.lock import beside, locked
out, runs, number, *before = sys.argv[1:]
held = locked(beside(pathlib.Path(out)), "a stage")
held.__enter__()
with open(runs, "a") as file:
    file.write(out + "\\n")
time.sleep(float(number) if number == "60" else 0)
if number == "-1":
    sys.exit(3)
if number == "-3":
    print("error: the number is -3; give one of at least 0", file=sys.stderr)
    sys.exit(2)
total = sum(json.loads(pathlib.Path(b, "metrics.json").read_text())["metrics"]["figure"] for b in before)
pathlib.Path(out).mkdir()
name = "another" if number == "-2" else "figure"
pathlib.Path(out, "metrics.json").write_text(json.dumps({"metrics": {name: 2 * float(number) + total}}))
"""


@pytest.fixture
def chain(tmp_path):
    """(file of a sweep of two stages, the list of what was run)."""
    script, runs = tmp_path / "stage.py", tmp_path / "runs.txt"
    script.write_text(SCRIPT)
    runs.touch()
    content = {"metric": "figure", "stages": {
        "a": {"command": [str(script), "{out}", str(runs), "{n}"]},
        "b": {"command": [str(script), "{out}", str(runs), "{m}", "{a}"]},
    }, "grid": {"a.n": [1, 2], "b.m": [10, 20]}}  # fmt: skip
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(content))
    return file, runs


def test_stages_run_once_and_the_best_comes_first(chain, tmp_path, capsys):
    file, runs = chain
    command = ["--file", str(file), "--out", str(tmp_path / "out"), "--jobs", "3"]
    sweep.main(command)
    assert len(runs.read_text().splitlines()) == 2 + 4
    with open(tmp_path / "out" / "sweep.csv") as table:
        rows = list(csv.DictReader(table))
    assert [(row["a.n"], row["b.m"], row["figure (mean)"]) for row in rows] == [
        ("2", "20", "44"), ("1", "20", "42"), ("2", "10", "24"), ("1", "10", "22")]  # fmt: skip
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    sweep.main(command)
    assert len(runs.read_text().splitlines()) == 6, "nothing is run again"
    content = yaml.safe_load(file.read_text())
    content["grid"]["b.m"].append(0)
    file.write_text(yaml.safe_dump({**content, "mode": "min"}))
    capsys.readouterr()
    sweep.main(command)
    assert len(runs.read_text().splitlines()) == 8, "only what is new is run"
    assert "| 1 | 0 | 2 |" in capsys.readouterr().out.splitlines()[-7]


def test_what_fails_is_named_and_tried_again(chain, tmp_path):
    file, runs = chain
    content = yaml.safe_load(file.read_text())
    content["grid"]["b.m"] = [10, -1]
    file.write_text(yaml.safe_dump(content))
    command = ["--file", str(file), "--out", str(tmp_path / "out")]
    words = r"2 trials failed, the first with: .*stage.py ended with 3; see .*b-.*\.log"
    for _ in range(2):
        with pytest.raises(UserError, match=words):
            sweep.main(command)
    assert len(runs.read_text().splitlines()) == 2 + 4 + 2
    assert "not run yet" in (tmp_path / "out" / "sweep.md").read_text()
    content["grid"]["b.m"] = [-3]
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="ended with 2: the number is -3; give one of at least 0; see"):
        sweep.main(command)


def test_a_setting_without_the_figure_does_not_end_the_others(chain, tmp_path, capsys):
    file, runs = chain
    content = yaml.safe_load(file.read_text())
    content["grid"] = {"a.n": [1], "b.m": [10, -2, 20]}
    file.write_text(yaml.safe_dump(content))
    sweep.main(["--file", str(file), "--out", str(tmp_path / "out")])
    assert "b.m=20, seed 0: figure 42" in capsys.readouterr().out and len(runs.read_text().splitlines()) == 4
    table = (tmp_path / "out" / "sweep.md").read_text()
    assert "| 42 |" in table and "seed 0: there is no figure" in table


def test_another_figure_of_what_is_done_is_read_and_not_the_former_one(chain, tmp_path):
    file, runs = chain
    content = yaml.safe_load(file.read_text())
    content["grid"] = {"a.n": [1], "b.m": [10]}
    for metric, value in (("figure", 22), ("more", 5), ("figure", 22)):
        file.write_text(yaml.safe_dump({**content, "metric": metric}))
        sweep.main(["--file", str(file), "--out", str(tmp_path / "out")])
        (folder,) = (path for path in (tmp_path / "out").glob("b-*") if path.is_dir())
        assert f"| {value} |" in (tmp_path / "out" / "sweep.md").read_text()
        written = {"metrics": {"figure": 22.0, "more": 5.0}}
        (folder / "metrics.json").write_text(json.dumps(written))
    assert len(runs.read_text().splitlines()) == 2, "nothing is run again"


def test_further_figures_stand_in_the_table_and_choose_nothing(chain, tmp_path, capsys):
    file, runs = chain
    content = yaml.safe_load(file.read_text())
    content["grid"] = {"a.n": [1], "b.m": [10, 20, 30]}
    file.write_text(yaml.safe_dump(content))
    command = ["--file", str(file), "--out", str(tmp_path / "out")]
    sweep.main(command)
    done = {json.loads(path.read_text())["value"]: path for path in (tmp_path / "out").glob("b-*.done.json")}
    for value, written in ((22, {"more": 5.0}), (42, {"more": 1.0}), (62, {})):
        folder = done[value].with_name(done[value].name.removesuffix(".done.json"))
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"figure": value, **written}}))
    file.write_text(yaml.safe_dump({**content, "also": ["more"]}))
    sweep.main(command)
    with open(tmp_path / "out" / "sweep.csv") as table:
        assert [(row["b.m"], row["more"]) for row in csv.DictReader(table)] == [("30", ""), ("20", "1"), ("10", "5")]
    assert len(runs.read_text().splitlines()) == 4, "nothing is run again"
    file.write_text(yaml.safe_dump({**content, "also": ["a.figure"]}))
    sweep.main(command)
    with open(tmp_path / "out" / "sweep.csv") as table:
        rows = list(csv.DictReader(table))
    assert [(row["b.m"], row["a.figure"]) for row in rows] == [("30", "2"), ("20", "2"), ("10", "2")]
    sweep.main([*command, "--also", "nowhere"])
    assert "no trial has the figure 'nowhere'" in capsys.readouterr().out
    file.write_text(yaml.safe_dump({**content, "also": "more"}))
    with pytest.raises(UserError, match=r"'also' is 'more'; give a list of metrics"):
        sweep.main(command)


def test_cases_are_drawn_seed_by_seed_in_the_order_of_the_file(chain, tmp_path, monkeypatch):
    file, _ = chain
    content = yaml.safe_load(file.read_text())
    del content["grid"]
    content |= {"cases": {"small": {"a.n": 1, "b.m": 10}, "large": {"a.n": 1, "b.m": 20}}, "seeds": 2}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    drawn, draw = {}, plots.seeds_of_cases
    monkeypatch.setattr(plots, "seeds_of_cases", lambda path, cases, m: drawn.update(cases) or draw(path, cases, m))
    sweep.main(["--file", str(file), "--out", str(tmp_path / "out")])
    assert list(drawn.items()) == [("small", [22, 22]), ("large", [42, 42])]
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_each_data_set_has_its_table_its_best_and_its_place_in_the_image(chain, tmp_path, monkeypatch, capsys):
    file, runs = chain
    content = yaml.safe_load(file.read_text())
    content |= {"data_sets": {"far off": {"a.n": 50}, "near": {"a.n": 1}}, "grid": {"b.m": [10, 20]}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    out = tmp_path / "out"
    command = ["--file", str(file), "--out", str(out)]
    sweep.main(command)
    table = (out / "sweep.md").read_text()
    assert [line for line in table.splitlines() if line.startswith("## ")] == ["## far off", "## near"]
    near = table.partition("## near")[2].splitlines()
    assert near[2].startswith("| b.m |") and near[4].startswith("| 20 | 42 |") and near[5].startswith("| 10 | 22 |")
    with open(out / "sweep.csv") as rows:
        assert [(row["data set"], row["figure (mean)"]) for row in csv.DictReader(rows)] == [
            ("far off", "140"), ("far off", "120"), ("near", "42"), ("near", "22")]  # fmt: skip
    assert {path.name for path in out.glob("sweep*.png")} == {"sweep_far_off.png", "sweep_near.png"}
    del content["grid"]
    content["cases"] = {"ten": {"b.m": 10}, "twenty": {"b.m": 20}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    drawn = {}
    monkeypatch.setattr(plots, "seeds_of_cases", lambda path, cases, metric: drawn.update(cases))
    sweep.main(command)
    assert list(drawn) == ["far off, ten", "far off, twenty", "near, ten", "near, twenty"]
    assert len(runs.read_text().splitlines()) == 6, "nothing is run again"


def test_the_best_settings_are_of_a_data_set(tmp_path):
    data_sets = {"far off": {"data.path": "far"}, "near": {"data.path": "near"}}
    tried = Sweep((Stage("run", "configs/fsq.py:test"),), "val/loss", "min", data_sets=data_sets,
                  grid={"model.dim": ("8", "16")})  # fmt: skip
    values = iter((0.1, 0.2, 0.4, 0.3))
    sweep.report(tried, [Outcome(point, {0: next(values)}, {}) for point in tried.points()], tmp_path)
    assert {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("best*")} == {
        "best_far_off.yaml": {"data": {"path": "far"}, "model": {"dim": 8}},
        "best_near.yaml": {"data": {"path": "near"}, "model": {"dim": 16}}}  # fmt: skip


def test_shares_beside_each_other_make_one_table(chain, tmp_path, root):
    file, runs = chain
    command = [sys.executable, str(root / "launch/sweep.py"), "--file", str(file), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(root)}
    both = [subprocess.Popen([*command, "--share", f"{i}/2"], env=env, stdout=subprocess.PIPE) for i in range(2)]
    said = [each.communicate(timeout=120)[0].decode() for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert len(runs.read_text().splitlines()) == 6
    assert any("| 2 | 20 | 44 |" in text for text in said), said


def test_the_tasks_of_a_job_array_take_their_shares(chain, tmp_path, monkeypatch, capsys):
    file, runs = chain
    for name, value in (("MIN", 3), ("MAX", 4), ("COUNT", 2)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    command = ["--file", str(file), "--out", str(tmp_path / "out"), "--share", "auto"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    sweep.main(command)
    assert "this share is done; 2 of 4 settings wait for other shares" in capsys.readouterr().out
    assert len(runs.read_text().splitlines()) == 2 + 2
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    sweep.main(command)
    assert "| 2 | 20 | 44 |" in capsys.readouterr().out and len(runs.read_text().splitlines()) == 6


# A training whose figure is the product of its numbers from the first evaluation on; it lasts where that is 0 or 4.
TRAINING = """
import json, pathlib, sys, time
folder, number = pathlib.Path(sys.argv[1]), float(sys.argv[2]) * float(sys.argv[3])
folder.mkdir()
with open(folder / "metrics.jsonl", "w") as file:
    for step in (0, 5, 10):
        file.write(json.dumps({"step": step, "val/figure": number}) + "\\n")
        file.flush()
        time.sleep({0: 60, 4: 1}.get(number, 0) if step == 5 else 0)
"""


def test_a_hopeless_trial_is_stopped(tmp_path, monkeypatch, capsys):
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    monkeypatch.setattr(sweep, "LOOK", 0.1)
    content = {"metric": "val/figure", "stages": {"a": {"command": [str(script), "{out}", "{n}", "1"]}},
               "grid": {"a.n": [3, 2, 4, 0]}}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    sweep.main(["--file", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--stop_hopeless"])
    with open(tmp_path / "out" / "sweep.csv") as table:
        rows = list(csv.DictReader(table))
    assert [(row["a.n"], row["val/figure (mean)"]) for row in rows[:3]] == [("4", "4"), ("3", "3"), ("2", "2")]
    assert rows[3]["a.n"] == "0" and "stopped at step 5, where it was worse than the median" in rows[3]["missing"]
    assert "a.n=0, seed 0: stopped at step 5" in capsys.readouterr().out


def test_a_trial_is_hopeless_on_its_own_data_set_alone(tmp_path, monkeypatch):
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    monkeypatch.setattr(sweep, "LOOK", 0.1)
    content = {"metric": "val/figure", "stages": {"a": {"command": [str(script), "{out}", "{n}", "{of_data}"]}},
               "data_sets": {"easy": {"a.of_data": 10}, "hard": {"a.of_data": 1}},
               "grid": {"a.n": [3, 2, 1, 4]}, "stop_hopeless": True}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    sweep.main(["--file", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")])
    with open(tmp_path / "out" / "sweep.csv") as table:
        rows = [row for row in csv.DictReader(table) if row["data set"] == "hard"]
    # 4 is the best of its data set, though less than all of the other.
    assert [(row["a.n"], row["val/figure (mean)"]) for row in rows][0] == ("4", "4")


def test_a_signal_ends_what_runs(chain, tmp_path, root):
    file, runs = chain
    content = yaml.safe_load(file.read_text())
    content["grid"]["a.n"] = [60]
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, str(root / "launch/sweep.py"), "--file", str(file), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE)
    while not runs.read_text():
        time.sleep(0.05)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode != 0 and time.monotonic() - start < 20


def test_a_stage_is_one_process_whatever_step_of_slurm_the_sweep_is_in(tmp_path, monkeypatch):
    """It waited for the other tasks of the step, which ran no training."""
    script = tmp_path / "stage.py"
    script.write_text("""
import json, os, pathlib, sys
pathlib.Path(sys.argv[1]).mkdir()
slurm = {name: value for name, value in os.environ.items() if name.startswith("SLURM")}
pathlib.Path(sys.argv[1], "metrics.json").write_text(json.dumps({"metrics": {"figure": 1.0}, "slurm": slurm}))
""")
    file = tmp_path / "sweep.yaml"
    stages = {"a": {"command": [str(script), "{out}"]}}
    file.write_text(yaml.safe_dump({"metric": "figure", "stages": stages, "seeds": 1}))
    step = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2",
            "SLURM_LOCALID": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4",
            "SLURM_STEP_NODELIST": "nowhere[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    sweep.main(["--file", str(file), "--out", str(tmp_path / "out")])
    (written,) = (tmp_path / "out").glob("*/metrics.json")
    seen = json.loads(written.read_text())["slurm"]
    distributed.check_counts(seen, processes=1, gpus=4)
    assert seen["SLURM_STEP_NUM_TASKS"] == "1" and seen["SLURM_PROCID"] == "0"
    assert distributed.local_gpus(seen) == [0, 1, 2, 3] and seen["SLURM_JOB_ID"] == "7"


def test_a_config_is_trained_with_each_setting(tmp_path, root, capsys):
    command = ["--config", f"{root}/configs/fsq.py:test", "--config.train.steps=2", "--config.train.eval_every=2",
               "--grid", "optim.learning_rate=0.01", "--metric", "val/action_mse", "--mode", "min",
               "--out", str(tmp_path / "out")]  # fmt: skip
    sweep.main(command)
    (done,) = (tmp_path / "out").glob("*.done.json")
    content = json.loads(done.read_text())
    assert [step for step, _ in content["curve"]] == [0, 2] and content["value"] == content["curve"][-1][1]
    assert yaml.safe_load((tmp_path / "out" / "best.yaml").read_text()) == {
        "train": {"steps": 2, "eval_every": 2}, "optim": {"learning_rate": 0.01}}  # fmt: skip
    assert f"{content['value']:.4g}" in capsys.readouterr().out
    done.unlink()
    with pytest.raises(UserError, match="no figure for --metric val/mine; "):
        sweep.main([*command, "--metric", "val/mine"])


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "either --file, or --config"),
    (["--config", "configs/fsq.py:test"], "--metric is required"),
    (["--config", "configs/fsq.py:test", "--metric", "m", "--grid", "a"], "not of the form KEY="),
    (["--config", "configs/fsq.py:test", "--metric", "m", "--grid", "a=1,,2"], "has an empty value"),
    (["--config", "configs/fsq.py:test", "--metric", "m", "--grid", "optim.learning_rat=1"], "did you mean"),
    (["--config", "configs/fsq.py:test", "--metric", "m", "--jobs", "0"], "--jobs 0"),
    (["--file", "configs/sweeps/laq_rate.yaml", "--grid", "a=1"], "change it there"),
    (["--file", "configs/sweeps/laq_rat.yaml"], "does not exist; did you mean"),
])  # fmt: skip
def test_mistakes_cost_nothing(arguments, words, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=words):
        sweep.main(["--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()
