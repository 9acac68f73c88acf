"""The study of stage-3 policies, without its trainings: what it would train and evaluate, and its tables."""

import json

import common
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from launch.studies import robot_policies as study


@pytest.mark.parametrize("recipe", study.RECIPES)
def test_every_recipe_is_its_head_on_the_model_of_stage_2(root, recipe):
    sizes = ("model.llm.vocab=259", "model.action_dim=2", "model.state_dim=0", "model.constant=()", "model.binary=()")
    given = [f"--config.{change}" for change in (*study.RECIPES[recipe].changes, "data.chunk_length=8", *sizes)]
    loaded = config_lib.load(f"{root}/configs/{study.RECIPES[recipe].config}", given)
    model = config_lib.build("lapa_jax.models", loaded.model)
    name = recipe.removesuffix("_scratch").replace("codes", "latent")
    assert type(model.head).__module__ == f"lapa_jax.models.policies.heads.{name}"
    assert name != "latent" or model.head.context is not recipe.startswith("codes")
    stage2 = config_lib.load(f"{root}/configs/vla_latent.py:small", []).model
    assert loaded.model.siglip is loaded.model.dinov2 is None
    for part in ("vision", "llm"):
        given, wanted = (config_lib.to_json(config[part]) for config in (loaded.model, stage2))
        assert {**given, "vocab": None} == {**wanted, "vocab": None}


def test_heads_begin_with_stage_2_or_from_scratch_and_seeds_are_summed_up(monkeypatch, tmp_path, capsys):
    calls = []

    def call(log, script, *arguments):
        calls.append((log.stem, script, arguments))
        if script == "launch/eval.py":
            folder = tmp_path / log.stem / "eval"
            folder.mkdir(parents=True)
            value = 0.25 * len({run for run, *_ in calls})
            (folder / "metrics.json").write_text(json.dumps({"metrics": {"action_r2": value}}))
        else:
            (tmp_path / log.stem).mkdir()

    monkeypatch.setattr(common, "call", call)
    command = ["--data", "a=x,vla", "b=z,other", "--recipes", "latent=2", "bins_scratch", "--seeds", "1", "--jobs", "1",
               "--out", str(tmp_path), "--overrides", "b:train.steps=9"]  # fmt: skip
    study.main(command)
    runs = [f"{name}_{rest}" for name in "ab" for rest in ("latent_0", "latent_1", "bins_scratch_0")]
    assert [call[:2] for call in calls] == [(run, f"launch/{verb}.py") for run in runs for verb in ("train", "eval")]
    trained = {run: arguments for run, script, arguments in calls if script == "launch/train.py"}
    assert trained["a_latent_1"][1].endswith("vla_action.py:small+latent")
    assert {"--config.init_from.=vla", "--config.seed=1", "--config.data.path=x"} < set(trained["a_latent_1"])
    assert "--config.init_from.=other" in trained["b_latent_0"]
    assert not [argument for argument in trained["b_bins_scratch_0"] if "init_from" in argument]
    assert all("--config.data.chunk_length=8" in arguments for arguments in trained.values())
    assert [run for run, arguments in trained.items() if "--config.train.steps=9" in arguments] == runs[3:]
    tables = capsys.readouterr().out
    assert "| a | latent | 2 | 0.375 (0.250 to 0.500) |  |" in tables and "| a | latent | 1 | 0.500 |" in tables
    assert "| a | bins_scratch | 1 | 0.750 |" in tables
    study.main(command)
    assert len(calls) == 12 and capsys.readouterr().out == tables


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a=x"], "NAME=DEMO_SHARDS,STAGE2_RUN"),
        (["--data", "a=x,"], "NAME=DEMO_SHARDS,STAGE2_RUN"),
        (["--data", "a=x,y", "--recipes", "latents"], "did you mean 'latent'"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_trained(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        study.main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
