"""The study of action tokenizers, without its trainings: what it would train, and what it does not train again."""

import common
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from launch.studies import action_tokenizers as study
from tests.evaluate.codecs.action_shards import episodes, write


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "s"
    return write(folder, episodes(rng, [40] * 3, width=4), episodes(rng, [30], width=4))


@pytest.mark.parametrize("steps", [2, 7, 8, 9, 10, 16])
@pytest.mark.parametrize("recipe", study.RECIPES)
def test_every_recipe_is_a_model_that_can_be_built(root, shards, recipe, steps):
    data = study.Data("walks", str(shards), steps, "0")
    config, overrides = study.RECIPES[recipe](data)
    given = [f"--config.{setting}" for setting in [*overrides, f"data.path={shards}"]]
    loaded = config_lib.load(f"{root}/configs/{config}", given)
    source = pipeline.build(loaded.data.to_dict(), "train")
    built = config_lib.build("lapa_jax.models", config_lib.complete("lapa_jax.models", loaded.model, source, 0))
    assert built.example(1)["action"].shape == (1, steps, 4)
    if recipe.startswith("fsq"):
        share = {"fsq_eighth": 8, "fsq_quarter": 4, "fsq_half": 2}.get(recipe, 1)
        assert len(built.codebook_sizes) == max(1, steps // share) and built.grippers == (3,)


def test_a_run_that_is_done_is_not_trained_again(monkeypatch, tmp_path):
    calls = []

    def call(log, script, *arguments):
        calls.append((log, script, arguments))
        (tmp_path / "runs" / "walks_fsq_0").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(common, "call", call)
    wanted = common.Run(study.Data("walks", "shards", 8, None), "fsq", 0, ("train.steps=3",))
    run = study._train(tmp_path, wanted)
    assert study._train(tmp_path, wanted) == run == tmp_path / "runs" / "walks_fsq_0"
    ((log, script, arguments),) = calls
    assert script == "launch/train.py" and log.name == "walks_fsq_0.log"
    assert arguments[-2:] == ("--workdir", str(run)) and "--config.data.path=shards" in arguments
    assert arguments.index("--config.train.steps=3") > arguments.index("--config.train.steps=1600"), "the last one wins"
    with pytest.raises(UserError, match="was trained with other settings"):
        study._train(tmp_path, wanted._replace(overrides=("train.steps=4",)))


def test_seeds_are_of_a_recipe_and_overrides_of_a_data_set(monkeypatch, tmp_path):
    trained, compared = [], []
    monkeypatch.setattr(study, "_train", lambda out, run: trained.append(run) or out)
    monkeypatch.setattr(study, "_compare", lambda out, sets, runs: compared.extend(runs))
    monkeypatch.setattr(study, "usage_table", lambda wanted, runs: "")
    (tmp_path / "comparison").mkdir()
    study.main(["--data", "a=x,8", "b=y,8", "--recipes", "fsq=2", "mstcn_z", "--out", str(tmp_path), "--jobs", "1",
                "--overrides", "train.steps=3", "b:train.steps=4", "data.path=s3://c"])  # fmt: skip
    first = [(name, recipe, 0) for name in "ab" for recipe in ("fsq", "mstcn_z")]
    found = [(run.data.name, run.recipe, run.seed) for run in trained]
    assert found == [*first, ("a", "fsq", 1), ("b", "fsq", 1)]
    assert trained[0].overrides == ("train.steps=3", "data.path=s3://c")
    assert trained[2].overrides == ("train.steps=3", "train.steps=4", "data.path=s3://c")
    assert len(compared) == 4, "the first seed of each"


def test_usage_counts_the_codes_of_the_training_chunks(monkeypatch, shards):
    data = study.Data("walks", str(shards), 8, None)
    seen = []

    def codes(run, chunks):
        seen.append(chunks)
        return [(" z", 4, np.array([0, 0, 1, 1])), (" q", 2, np.full(4, run))]

    monkeypatch.setattr(study, "_codes", codes)
    runs = [common.Run(data, "mstcn_z", seed, ()) for seed in range(2)]
    lines = study.usage_table(runs, [0, 1]).splitlines()
    assert seen[0].shape == (3 * 33, 8, 4)
    assert "| walks | mstcn_z z | 0 | 4 | 50.0% | 2.0 | 4 |" in lines
    assert "| walks | mstcn_z q | 1 | 2 | 50.0% | 1.0 | 4 |" in lines
    assert "| walks | mstcn_z q | least | | 50.0% | | |" in lines


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "a"], "is not of the form NAME=SHARDS,STEPS"),
        (["--data", "a=b,-8"], "is not of the form"),
        (["--data", "a=b,1"], "give 2 at least"),
        (["--data", "a=b,8,x"], "is not of the form"),
        (["--data", "a=b,8", "a=c,8"], "2 data sets of the name a"),
        (["--data", "a=b,8", "--recipes", "fsk"], "unknown recipe 'fsk'; did you mean 'fsq'"),
        (["--data", "a=b,8", "--recipes", "fsq=0"], "with 1 seed at least"),
        (["--data", "abc=b,8", "--overrides", "abd:train.steps=3"], "is for no data set of --data; did you mean 'abc'"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, told):
    with pytest.raises(UserError, match=told):
        study.main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
