import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import write_json
from lapa_jax.train import checkpoint, pretrained_init, sharding
from lapa_jax.train.checkpoint import Checkpointer, load_for_inference
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.state import init_state
from lapa_jax.train.task import Task
from tests.train import toy

OPTIM = {"learning_rate": 0.01, "clip_norm": None, "groups": ((".*", {}),)}
META = {"config": {"model": {"sizes": [1, 2]}, "train": {"best_metric": "val/x"}}, "statistics": {}}


def make_state(step=0):
    task = Task(toy.Model(width=512), {"mse": 1.0})
    return init_state(task, lambda p: make_optimizer(OPTIM, 10, p), step, toy.batch()).replace(step=jnp.int32(step))


def abstract(state, mesh):
    place = sharding.shardings(state, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, place)


def mesh(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    return sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": 1}, devices)


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints 1 to 5, of which step 2 was the best and 4 and 5 are the last."""
    write_json(tmp_path / "config.json", META["config"])
    writer = Checkpointer(tmp_path, keep_last=2, best_metric="val/x")
    for step in range(1, 6):
        writer.save(make_state(step), step, {**META, "step": step}, {"val/x": -abs(step - 2.0)})
    writer.close()
    return tmp_path


def test_best_and_last_are_kept(run):
    assert checkpoint.steps(run) == [2, 4, 5]
    assert (run / "checkpoints/5/meta/data.json").is_file() and (run / "checkpoints/5/params").is_dir()


def test_the_best_can_be_asked_for(run):
    assert json.loads((run / "best.json").read_text()) == {"metric": "val/x", "mode": "max", "value": 0.0, "step": 2}
    assert load_for_inference(run, step="best").step == 2
    assert load_for_inference(run / "checkpoints" / "best").step == 2
    source = pretrained_init.open_source("tokenizer", f"{run}/checkpoints/best")
    assert source.step == 2 and source.path == run / "checkpoints" / "2"


def test_lower_values_may_be_better_and_numbers_better_than_none(tmp_path):
    write_json(tmp_path / "config.json", {"train": {"best_metric": "val/x", "best_mode": "min"}})
    values = {1: 5.0, 2: math.nan, 3: 2.0, 4: None, 5: 2.0, 6: 7.0}
    writer = Checkpointer(tmp_path, keep_last=1, best_metric="val/x", best_mode="min")
    for step, value in values.items():
        writer.save(make_state(step), step, {**META, "step": step}, None if value is None else {"val/x": value})
    writer.close()
    assert checkpoint.steps(tmp_path) in ([3, 6], [5, 6])
    best = checkpoint.best_checkpoint(tmp_path)
    assert best.value == 2.0 and best.step == checkpoint.steps(tmp_path)[0]
    assert load_for_inference(tmp_path, "best").step == best.step


def test_a_run_without_a_best_checkpoint_says_so(run, tmp_path_factory):
    write_json(run / "config.json", {"train": {"best_metric": "val/y"}})
    with pytest.raises(UserError, match=r"no checkpoint with a value of 'val/y', its best_metric; .*\[2, 4, 5\]"):
        load_for_inference(run, "best")
    write_json(run / "config.json", {"train": {"best_metric": None}})
    with pytest.raises(UserError, match="no best checkpoint: its config.train.best_metric is None"):
        load_for_inference(run, "best")
    with pytest.raises(UserError, match="config.init_from.tokenizer: .* no best checkpoint"):
        pretrained_init.open_source("tokenizer", f"{run}/checkpoints/best")


def test_commands_take_a_number_or_best():
    assert parse_step("600") == 600 and parse_step("best") == "best"
    with pytest.raises(UserError, match="--step newest is no step; give a number of training steps, or best"):
        parse_step("newest")


def test_restore_is_bit_equal_on_another_mesh(run):
    want = make_state(5)
    reader = Checkpointer(run, keep_last=2, best_metric=None)
    for axes in ((1, 4), (2, 1), (1, 1)):
        got = reader.restore(abstract(want, mesh(*axes)))
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            assert np.array_equal(a, b)
        assert got.variables["params"]["first"]["kernel"].sharding.mesh.shape["fsdp"] == axes[1]


def test_inference_reads_variables_and_meta_only(run):
    loaded = load_for_inference(run, step=2)
    assert loaded.step == 2 and loaded.meta["step"] == 2 and loaded.config.model.sizes == (1, 2)
    want = make_state(2).variables
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, jax.tree.map(np.asarray, want)))
    assert load_for_inference(run / "checkpoints" / "4").step == 4


def test_refusals_name_what_there_is(run, tmp_path_factory):
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[2, 4, 5\]"):
        load_for_inference(run, step=3)
    with pytest.raises(UserError, match="no whole checkpoint; steps of this run"):
        load_for_inference(run / "checkpoints" / "3")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="is no run folder"):
        load_for_inference(empty)
    write_json(empty / "config.json", {})
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_for_inference(empty)


def test_half_written_step_is_never_read(run):
    half = run / "checkpoints" / "6.orbax-checkpoint-tmp-1"
    half.mkdir()
    (half / "params").mkdir()
    assert Checkpointer(run, keep_last=2, best_metric=None).latest_step == 5
    assert load_for_inference(run).step == 5 and not half.exists()


def test_step_half_removed_is_never_read(run):
    for name in ("params/manifest.ocdbt", "commit_success.txt"):
        (run / "checkpoints/5" / name).unlink()
    assert checkpoint.steps(run) == [2, 4] and load_for_inference(run).step == 4
    with pytest.raises(UserError, match="no whole checkpoint"):
        load_for_inference(run / "checkpoints/5")
    assert Checkpointer(run, keep_last=2, best_metric=None).latest_step == 4
    assert not (run / "checkpoints/5").exists()


def test_another_model_is_refused_with_the_names(run):
    other = make_state(5)
    other.variables["params"]["third"] = {"kernel": jnp.zeros(3)}
    with pytest.raises(Exception, match="third"):
        Checkpointer(run, keep_last=2, best_metric=None).restore(abstract(other, mesh(1, 1)))
