"""The study of latent actions, without its trainings: what it would train and evaluate, and the table it makes."""

import json

import common
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from launch.studies import latent_actions as study


@pytest.mark.parametrize("recipe", study.RECIPES)
def test_every_recipe_is_a_model_of_four_codes_of_eight(root, recipe):
    given = [f"--config.{change}" for change in study.RECIPES[recipe]]
    loaded = config_lib.load(f"{root}/configs/{study.CONFIG[recipe]}", given)
    model = config_lib.build("lapa_jax.models", loaded.model)
    assert (model.code_seq_len, model.codebook_size) == (4, 8)
    assert model.quantizer == {"vq": "vq", "laq_conv": "vq", "fsq": "fsq"}.get(recipe, "nsvq")


def test_seeds_are_of_a_recipe_overrides_of_a_data_set_and_what_is_done_stays(monkeypatch, tmp_path, capsys):
    calls = []

    def call(log, script, *arguments):
        calls.append((log.stem, script, arguments))
        if script == "launch/eval.py":
            folder = tmp_path / log.stem / "eval"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps({"metrics": {"perplexity": 2.0 + len(calls)}}))
        else:
            (tmp_path / log.stem).mkdir()

    monkeypatch.setattr(common, "call", call)
    command = ["--data", "a=x,y,8", "b=z,w,4", "--recipes", "laq_conv=2", "fsq", "--seeds", "1", "--jobs", "1",
               "--out", str(tmp_path), "--overrides", "b:model.view_share=0.5"]  # fmt: skip
    study.main(command)
    runs = [f"{name}_{rest}" for name in "ab" for rest in ("laq_conv_0", "laq_conv_1", "fsq_0")]
    assert [call[:2] for call in calls] == [(run, f"launch/{verb}.py") for run in runs for verb in ("train", "eval")]
    trained = {run: arguments for run, script, arguments in calls if script == "launch/train.py"}
    assert "--config.data.gap_frames=8" in trained["a_fsq_0"] and "--config.model.quantizer=fsq" in trained["a_fsq_0"]
    assert trained["a_laq_conv_1"][1].endswith("laq_conv.py:small") and "--config.seed=1" in trained["a_laq_conv_1"]
    assert [run for run, arguments in trained.items() if "--config.model.view_share=0.5" in arguments] == runs[3:]
    table = capsys.readouterr().out
    assert "| a (8) | laq_conv | 1 |  | 6.00 |" in table and "| a (8) | laq_conv | mean |  | 5.00 |" in table
    study.main(command)
    assert len(calls) == 12 and capsys.readouterr().out == table
    with pytest.raises(UserError, match="was trained with other settings"):
        study.main([*command, "train.steps=3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a=x,y"], "NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES"),
        (["--data", "a=x,y,-8"], "NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES"),
        (["--data", "a=x,y,8", "--recipes", "vqq"], "did you mean 'vq'"),
        (["--data", "a=x,y,8", "--recipes", "vq=0"], "RECIPE=SEEDS"),
        (["--data", "a=x,y,8", "--overrides", "b:seed=1"], "for no data set"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        study.main([*arguments, "--out", str(tmp_path)])
