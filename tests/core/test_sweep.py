"""Which trials a sweep has, what they run, and what is made of their figures."""

import pathlib

import numpy as np
import pytest
import scipy.stats
import yaml

from lapa_jax.core import sweep as sweeps
from lapa_jax.core.errors import UserError
from lapa_jax.core.sweep import Outcome, Stage, Sweep

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = Stage("run", "configs/fsq.py:test")
CHAIN = (Stage("first", "configs/fsq.py:test"), Stage("mid", command=("tool.py", "{first}", "--to", "{out}", "{word}")),
         Stage("last", "configs/icl.py:test", settings={"data.path": "{mid}/x"}))  # fmt: skip


def test_the_grid_is_a_product_and_more_draws_keep_the_first():
    sweep = Sweep((TRAIN,), "m", grid={"a": ("1", "2"), "b": ("x", "y", "z")}, random={"c": "log:1e-5,1e-2"}, trials=4)
    points = sweep.points()
    assert len(points) == 24 and len({tuple(point.items()) for point in points}) == 24
    more = Sweep((TRAIN,), "m", random={"c": "log:1e-5,1e-2"}, trials=9).points()
    assert [point["c"] for point in points[:4]] == [point["c"] for point in more[:4]]


def test_draws_have_their_distributions():
    rng = np.random.default_rng(0)
    logs = np.log([float(sweeps.draw("log:1e-4,1e-1", rng)) for _ in range(2000)])
    assert scipy.stats.kstest(logs, scipy.stats.uniform(np.log(1e-4), np.log(1e3)).cdf).pvalue > 0.01
    plain = [float(sweeps.draw("uniform:-1,3", rng)) for _ in range(2000)]
    assert scipy.stats.kstest(plain, scipy.stats.uniform(-1, 4).cdf).pvalue > 0.01
    assert {sweeps.draw("int:2,4", rng) for _ in range(100)} == {"2", "3", "4"}
    assert {sweeps.draw("choice:(1, 2),None", rng) for _ in range(100)} == {"(1, 2)", "None"}


def test_stages_are_shared_by_what_leads_to_them(tmp_path):
    sweep = Sweep(CHAIN, "m", grid={"mid.word": ("a", "b"), "last.optim.learning_rate": ("0.1",)})
    (first, mid, last), (same, other, another) = (sweeps.steps(sweep, point, 0, tmp_path) for point in sweep.points())
    assert first == same and mid.folder != other.folder and last.folder != another.folder
    assert mid.command == ("tool.py", str(first.folder), "--to", str(mid.folder), "a")
    assert last.command == ("launch/train.py", "--config", "configs/icl.py:test", f"--config.data.path={mid.folder}/x",
                            "--config.optim.learning_rate=0.1", "--config.seed=0",
                            "--workdir", str(last.folder))  # fmt: skip
    of_seed_1 = sweeps.steps(sweep, sweep.points()[0], 1, tmp_path)
    assert not {step.folder for step in of_seed_1} & {first.folder, mid.folder, last.folder}
    moved = sweeps.steps(sweep, sweep.points()[0], 0, tmp_path / "elsewhere")
    assert [step.folder.name for step in moved] == [first.folder.name, mid.folder.name, last.folder.name]


def test_the_interval_is_students_and_the_best_has_all_seeds():
    values = [0.5, 0.7, 0.6, 0.9]
    low, high = Outcome({}, dict(enumerate(values)), {}).interval()
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([low, high], expected)
    a, b = Outcome({"k": "a"}, {0: 1.0, 1: 1.2}, {}), Outcome({"k": "b"}, {0: 9.0}, {1: "x"})
    c = Outcome({}, {}, {0: "y"})
    assert sweeps.ranking([c, b, a], "max") == [a, b, c]
    assert sweeps.ranking([a, Outcome({"k": "d"}, {0: 0.1, 1: 0.2}, {})], "min")[1] == a
    assert list(sweeps.rows([a])) == [["a", "1.1", "-0.1706 to 2.371", "1 to 1.2", "2", ""]]
    alike = Outcome({"k": "e"}, {0: 0.0, 1: 0.0}, {})
    assert list(sweeps.rows([alike])) == [["e", "0", "", "0 to 0", "2", ""]], "no interval: the next seed may differ"


def test_cases_are_tried_one_by_one_with_all_of_the_grid(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("config: c\nmetric: m\nset: {a: 1}\ncases: {plain: {}, wide: {dim: 2, name: x}}\ngrid: {k: [3, 4]}")
    sweep = sweeps.read(str(path))
    points = sweep.points()
    assert points == [{"case": c, "k": k} for c in ("plain", "wide") for k in ("3", "4")]
    plain, wide = (sweeps.steps(sweep, points[i], 0, tmp_path)[0].command for i in (0, 2))
    assert plain[3:-2] == ("--config.a=1", "--config.k=3", "--config.seed=0")
    assert wide[3:-2] == ("--config.a=1", "--config.dim=2", "--config.name=x", "--config.k=3", "--config.seed=0")
    assert sweeps.best_settings(sweep, Outcome(points[3], {}, {}))["run"] == {"a": 1, "dim": 2, "name": "x", "k": 4}


def test_several_cases_are_multiplied_and_later_ones_override(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("config: c\nmetric: m\ncases:\n- {here: {p: a, k: 1}, there: {p: b}}\n- {plain: {}, more: {k: 2}}")
    sweep = sweeps.read(str(path))
    assert {point["case"]: sweep.settings(point) for point in sweep.points()} == {
        "here, plain": {"p": "a", "k": "1"}, "here, more": {"p": "a", "k": "2"}, "there, plain": {"p": "b"},
        "there, more": {"p": "b", "k": "2"}}  # fmt: skip


def test_everything_is_tried_with_each_data_set_and_compared_within_it(tmp_path):
    path = tmp_path / "sweep.yaml"
    sets, parts = "{easy: {p: a, k: 1}, hard: {p: b}}", "{plain: {}, more: {k: 2}}"
    path.write_text(f"config: c\nmetric: m\ndata_sets: {sets}\ncases: {parts}")
    sweep = sweeps.read(str(path))
    points = sweep.points()
    assert [tuple(point.values()) for point in points] == [
        ("easy", "plain"), ("easy", "more"), ("hard", "plain"), ("hard", "more")]  # fmt: skip
    assert [sweep.settings(point) for point in points] == [
        {"p": "a", "k": "1"}, {"p": "a", "k": "2"}, {"p": "b"}, {"p": "b", "k": "2"}]  # fmt: skip
    # The folders are those of the same settings as cases: what was trained before there were data sets is used again.
    path.write_text(f"config: c\nmetric: m\ncases:\n- {sets}\n- {parts}")
    before = sweeps.read(str(path))
    steps = [step for point in points for step in sweeps.steps(sweep, point, 0, tmp_path)]
    assert [step.data_set for step in steps] == ["easy", "easy", "hard", "hard"]
    assert [step._replace(data_set=None) for step in steps] == [
        step for point in before.points() for step in sweeps.steps(before, point, 0, tmp_path)]  # fmt: skip
    outcomes = [Outcome(point, {0: value}, {}) for point, value in zip(points, (0.8, 0.9, 0.2, 0.1))]
    assert {name: len(group) for name, group in sweeps.by_data_set(outcomes).items()} == {"easy": 2, "hard": 2}


def test_a_trial_is_hopeless_below_the_median_of_the_averages():
    finished = [{0: 0.0, 10: 0.2, 20: 0.4, 30: 9.0}, {10: 0.5, 20: 0.7}, {10: 0.6, 20: 0.8}]
    # At step 20 the averages are 0.3, 0.6 and 0.7; step 0 is the untrained model.
    assert sweeps.hopeless({0: 5.0, 10: 0.59, 20: 0.1}, finished, "max")
    assert not sweeps.hopeless({10: 0.61, 20: 0.1}, finished, "max")
    assert not sweeps.hopeless({0: -9.0}, finished, "max"), "nothing was trained yet"
    assert not sweeps.hopeless({10: -9.0}, finished[:2], "max"), "two are too few"
    assert sweeps.hopeless({20: 0.61}, finished, "min") and not sweeps.hopeless({20: 0.59}, finished, "min")


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/sweeps/*.yaml")), ids=lambda path: path.stem)
def test_the_files_of_sweeps_can_be_run(file, tmp_path):
    from lapa_jax.core import config as config_lib

    sweep = sweeps.read(str(file))
    for step in sweeps.steps(sweep, sweep.points()[-1], 0, tmp_path):
        assert (ROOT / step.command[0]).is_file()
        if step.command[0] == sweeps.TRAIN:
            config_lib.load(f"{ROOT}/{step.command[2]}", step.command[3:-2])


def test_the_best_settings_are_a_file_of_overrides(tmp_path):
    from lapa_jax.core import config as config_lib

    sweep = Sweep((Stage("run", "x", settings={"train.steps": "7", "data.path": "{other}"}),), "m")
    best = Outcome({"model.levels": "(4, 4)", "optim.learning_rate": "0.125"}, {0: 1.0}, {})
    (settings,) = sweeps.best_settings(sweep, best).values()
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = config_lib.load(f"{ROOT}/configs/laq.py:test", [], [str(path)])
    assert (config.train.steps, config.model.levels, config.optim.learning_rate) == (7, (4, 4), 0.125)
    assert config.data.path == "sample"


@pytest.mark.parametrize(("text", "words"), [
    ("config: a\nstages: {}\nmetric: m", "either 'config', for one training, or 'stages'"),
    ("config: a", "has no 'metric'"),
    ("config: a\nmetric: m\ngird: {}", "did you mean 'grid'"),
    ("config: a\nmetric: m\nmode: best", "give max or min"),
    ("config: a\nmetric: m\nrandom:\n  x: log:1e-3\ntrials: 2", "x=log:1e-3 is no distribution"),
    ("config: a\nmetric: m\nrandom:\n  x: log:0,1\ntrials: 2", "x=log:0,1 is no distribution"),
    ("config: a\nmetric: m\nrandom:\n  x: log:1,2", "say how often"),
    ("config: a\nmetric: m\nrandom: {x: log:1,2}", "one key a line"),
    ("config: a\nmetric: m\ntrials: 2", "no key is drawn at random"),
    ("config: a\nmetric: m\nseeds: 0", "seeds is 0"),
    ("config: a\nmetric: m\ngrid: {x: []}", "no value for x"),
    ("config: a\nmetric: m\ncases: [x]", "name each with its settings"),
    ("config: a\nmetric: m\ndata_sets: {a b: {}, a-b: {}}", "'a-b' would have the files of 'a b'"),
    ("config: a\nmetric: m\ndata_sets: [x]", "'data_sets' is .*name each with its settings"),
    ("config: a\nmetric: m\ncases: {x: {k: 1}}\ngrid: {k: [2]}", "k is a setting of a data set or case and varied"),
    ("config: a\nmetric: m\ndata_sets: {x: {k: 1}}\ngrid: {k: [2]}", "k is a setting of a data set or case and varied"),
    ("metric: m\nstages: {a: {config: c}, b: {command: [t.py]}}", "does not say where {out}"),
    ("metric: m\nstages: {a: {config: c}, b: {config: d}}\ngrid: {x.y: 1}", "'x.y' names no stage"),
])  # fmt: skip
def test_mistakes_in_a_file_are_named(tmp_path, text, words):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        sweeps.read(str(path))


def test_placeholders_that_mean_nothing_are_named(tmp_path):
    stages = (TRAIN, Stage("b", command=("t.py", "{out}", "{rum}")))
    with pytest.raises(UserError, match=r"\{rum\}.*did you mean 'run'"):
        sweeps.steps(Sweep(stages, "m"), {}, 0, tmp_path)
