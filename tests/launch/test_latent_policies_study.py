"""The study of stage-2 policies, without its trainings: what it would label, train and evaluate, and its table."""

import json

import common
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from launch.studies import latent_policies as study


@pytest.mark.parametrize("recipe", study.RECIPES)
def test_every_recipe_can_be_built(root, recipe):
    given = [f"--config.{change}" for change in (*study.RECIPES[recipe], "model.llm.vocab=259")]
    loaded = config_lib.load(f"{root}/configs/{study.CONFIG[recipe]}", given)
    assert config_lib.build("lapa_jax.models", loaded.model).code_length == 4


def test_data_are_labelled_first_and_policies_trained_on_the_labels_alone(monkeypatch, tmp_path, capsys):
    calls = []

    def call(log, script, *arguments):
        calls.append((log.stem, script, arguments))
        if script == "launch/label.py":
            folder = tmp_path / log.stem
            folder.mkdir(exist_ok=True)
            entry = {"tokenizer": f"of {log.stem}", "source": "", "gap_frames": 3, "codebook_size": 8, "code_length": 4,
                     "format": "sidecar"}  # fmt: skip
            about = {"format": "lapa_jax.step_shards", "version": 1, "source": {"labels": entry},
                     "splits": {}, "features": {}}
            (folder / "dataset.json").write_text(json.dumps(about))
        elif script == "launch/eval.py":
            folder = tmp_path / log.stem / "eval"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps({"metrics": {"latent_accuracy": 0.7}}))
        else:
            (tmp_path / log.stem).mkdir()

    monkeypatch.setattr(common, "call", call)
    study.main(["--data", "a=x,laq", "b=z,conv", "--recipes", "tiny=2", "small", "--jobs", "1", "--out",
                str(tmp_path), "--overrides", "b:data.text_length=48"])  # fmt: skip
    assert [call[1] for call in calls[:3]] == ["launch/label.py", "launch/label.py", "launch/train.py"]
    assert calls[1][2] == ("--run", "conv", "--data", "z", "--out", str(tmp_path / "labels_b"))
    trained = {run: arguments for run, script, arguments in calls if script == "launch/train.py"}
    assert list(trained) == [f"{data}_{rest}" for data in "ab" for rest in ("tiny_0", "tiny_1", "small_0")]
    assert f"--config.data.labels={tmp_path}/labels_a" in trained["a_tiny_1"]
    assert "--config.data.labels_tokenizer=of labels_b" in trained["b_tiny_0"]
    assert [run for run, arguments in trained.items() if "--config.data.text_length=48" in arguments] == [*trained][3:]
    assert "| b | small | 0 | 70.0% |" in capsys.readouterr().out


def test_data_of_another_form_are_refused(tmp_path):
    with pytest.raises(UserError, match="NAME=SHARDS,TOKENIZER_RUN"):
        study.main(["--data", "a=x", "--out", str(tmp_path)])
