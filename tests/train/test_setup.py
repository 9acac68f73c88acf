"""What is settled before the first step: the data's statistics, and which samples a device can take."""

import json

import jax
import ml_collections
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline, text
from lapa_jax.train import recovery, sharding
from lapa_jax.train.run import check_config
from lapa_jax.train.setup import _batch_shapes, prepare
from tests.data.samples import make

SMALL = ["image_size=32", "patch_size=8", "dim=16", "heads=2", "dim_head=8", "quant_dim=8", "spatial_depth=1",
         "temporal_depth=1", "decoder_depth=1"]  # fmt: skip


def test_a_run_goes_on_with_the_statistics_of_its_checkpoint(root):
    config = config_lib.load(f"{root}/configs/laq.py:tiny", [f"--config.model.{o}" for o in SMALL])
    fresh = prepare(config).meta()
    assert fresh["config"]["data"]["path"] == "sample" and list(fresh["datasets"]) == ["sample"]
    entry = fresh["datasets"]["sample"]
    assert entry["statistics"]["action"]["count"] > 100 and entry["gap_frames"] == fresh["gap_frames"] == 3
    saved = {"datasets": {"sample": {**entry, "statistics": {"action": {"count": 7}}}}}
    resumed = prepare(config, saved)
    assert resumed.meta()["datasets"]["sample"]["statistics"] == {"action": {"count": 7}}
    assert resumed.data.validation.statistics == {"action": {"count": 7}}
    assert prepare(config, {}).meta() == fresh, "a checkpoint of an earlier version names no data sets"


def test_a_run_without_a_checkpoint_has_no_metadata(tmp_path):
    assert recovery.newest(tmp_path / "nothing") == recovery.Recovered()


def test_shapes_are_known_without_reading_a_sample(tmp_path):
    folder = make.write(tmp_path, [6, 5], texts=["push", "pull"])
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    data = {"path": str(folder), "samples": "steps", "fields": ("image", "text")}
    with pytest.raises(ConfigError, match="'text' is text.*data.text_tokenizer"):
        _batch_shapes(pipeline.build(data, "train").batch([]), 4, mesh)
    told = pipeline.build({**data, "text_tokenizer": {"name": "bytes"}, "text_length": 9}, "train")
    (folder / "train-00000.tar").unlink()
    shapes = _batch_shapes(told.batch([]), 4, mesh)
    assert {name: (s.shape, str(s.dtype)) for name, s in shapes.items()} == {
        "image": ((4, 16, 16, 3), "uint8"), "text": ((4, 9), "int32"), "text_mask": ((4, 9), "float32"),
        "episode_id": ((4,), "int32"), "step": ((4,), "int32"),
    }  # fmt: skip


def test_a_tokenizer_that_is_not_trained_along_must_be_frozen(root):
    frozen = "--config.optim.groups=(('tokenizer/.*', None), ('.*', {}))"
    for groups, words in ((), r"\(tokenizer/.*\('tokenizer/\.\*', None\)"), ((frozen,), "at their random values"):
        changes = ["--config.model.train_tokenizer=False", *groups]
        config = config_lib.load(f"{root}/configs/icl.py:test+tokens", changes)
        with pytest.raises(ConfigError, match=words):
            prepare(config)


def test_the_length_of_instructions_that_the_data_need(root, tmp_path):
    config = lambda *more: config_lib.load(f"{root}/configs/vla_latent.py:tiny", [f"--config.{o}" for o in more])  # noqa: E731
    setup = prepare(config("data.text_length=None"))
    instructions = [*setup.data.train.instructions(), *setup.data.validation.instructions()]
    prompts = text.build(setup.config.data.text_tokenizer).lengths(instructions)
    needed = -(-max(prompts) // 8) * 8
    assert setup.batch["text"].shape == (setup.config.train.batch_size, needed)
    assert setup.data.validation.batch([0])["text"].shape == (1, needed)
    assert any(f"data.text_length = {needed}" in note for note in setup.notes)
    for values in (setup.config, ml_collections.ConfigDict(setup.meta()["config"])):
        assert values.data.text_length == values.model.text_length == needed
    (tmp_path / "config.json").write_text(json.dumps(setup.meta()["config"]))
    (tmp_path / "best.json").touch()
    check_config(tmp_path, config("data.text_length=None"))
    with pytest.raises(ConfigError, match=f"data.text_length: {needed} -> 7"):
        check_config(tmp_path, config("data.text_length=7"))
    given = prepare(config(f"data.text_length={needed + 3}"))
    assert given.batch["text"].shape[1] == given.config.model.text_length == needed + 3
    with pytest.raises(UserError, match="data.text_length=None takes what the data need.*give a number"):
        prepare(config("data.text_length=None", "data.path=None"), devices=jax.devices()[:1])
