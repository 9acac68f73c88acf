"""The loop on models that know no frames: what the data fills in, early stopping, datasets apart, EMA codebooks."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.train import sharding
from lapa_jax.train.checkpoint import load_for_inference, steps
from lapa_jax.train.evaluate import by_dataset
from lapa_jax.train.loop import train
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.setup import prepare
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.stopping import Patience
from lapa_jax.train.task import Task
from tests import toys
from tests.data.samples import make
from tests.toys import chunks

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make.write(tmp_path_factory.mktemp("data") / "arm", toys.LENGTHS, cameras=())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of six steps without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        run = tmp_path_factory.mktemp("whole") / "run"
        train(toys.config("chunks", data), run)
    return run


def test_fields_from_the_data_are_kept(whole, data, tmp_path):
    drawn = float(np.random.default_rng(0).random())
    for config in (json.loads((whole / "config.json").read_text()), load_for_inference(whole).config.to_dict()):
        assert config["model"]["action_dim"] == 3 and config["model"]["drawn"] == drawn
    assert "from the data: model.action_dim = 3" in (whole / "log.txt").read_text()
    setup = prepare(toys.config("chunks", data))
    assert setup.from_data == {"action_dim": 3, "drawn": drawn} and setup.config.is_locked


def test_a_resumed_run_finds_the_same_fields_and_ends_in_the_same_bits(whole, data, tmp_path):
    run = tmp_path / "run"
    train(toys.config("chunks", data, steps=3), run)
    train(toys.config("chunks", data), run)
    a, b = (load_for_inference(r).variables for r in (whole, run))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b)) and "codebook" in a
    train(toys.config("chunks", data, model={"action_dim": 3}), run)
    with pytest.raises(ConfigError, match="model.size: None -> 9"):
        train(toys.config("chunks", data, model={"size": 9}), run)


def test_a_dry_run_shows_them_and_writes_nothing(data, tmp_path, capsys):
    train(toys.config("chunks", data), tmp_path / "run", dry_run=True)
    out = capsys.readouterr().out
    assert "from the data: model.action_dim = 3" in out and "batch action: float32[16, 4, 3]" in out
    assert not (tmp_path / "run").exists()


def test_a_model_that_returns_an_unknown_field_is_refused(data, monkeypatch):
    monkeypatch.setattr(chunks, "from_data", lambda spec, source, seed: {"action_dims": 3})
    with pytest.raises(ConfigError, match="no field 'action_dims'; did you mean 'action_dim'"):
        prepare(toys.config("chunks", data))


def test_other_data_than_the_run_began_with_are_refused(whole, tmp_path):
    other = make.write(tmp_path / "arm", toys.LENGTHS, cameras=(), seed=1)
    config = toys.config("chunks", json.loads((whole / "config.json").read_text())["data"]["path"])
    moved = json.loads((whole / "config.json").read_text())
    moved["data"]["path"] = str(other)
    with pytest.raises(ConfigError, match="data.path: "):
        train(toys.config("chunks", other), whole)
    saved = {**load_for_inference(whole).meta, "data_fingerprint": "0" * 64}
    with pytest.raises(UserError, match="changed since this run began"):
        prepare(config, saved)


def test_held_out_samples_of_another_shape_are_refused(data, tmp_path):
    other = make.write(tmp_path / "arm", toys.LENGTHS, cameras=(), widths={"action": 5})
    config = toys.config("chunks", {"path": str(data), "val_path": str(other), "normalize": "none"})
    with pytest.raises(ConfigError, match=r"'action' has shape \[4, 3\] in training and \[4, 5\]"):
        prepare(config)


@pytest.mark.parametrize("toy, shape", [("steps", (16, 8, 3)), ("rows", (16, 5))])
def test_steps_and_rows_train(toy, shape, data, tmp_path):
    train(toys.config(toy, data, steps=2, eval_every=2), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "val/mse" in line or "val/action_mse" in line] == [0, 2]
    setup = prepare(toys.config(toy, data))
    assert setup.batch[toys.KINDS[toy][1]].shape == shape


def test_early_stopping_survives_an_interruption(data, tmp_path, monkeypatch):
    """The metric improves at the evaluations of steps 1 and 2 only: with patience 3 the run ends at step 5."""
    values = {0: 9.0, 1: 1.0, 2: 2.0, 3: 2.05, 4: math.nan, 5: 1.9, 6: 1.9, 7: 5.0}
    monkeypatch.setattr(chunks.Model, "summarize", lambda self, arrays: {"quality": values[_next()]})
    seen = []

    def _next():
        seen.append(seen[-1] + 1 if seen else 0)
        return seen[-1]

    often = {"eval_every": 1, "save_every": 2, "best_metric": "val/quality", "patience": 3, "min_delta": 0.1}
    train(toys.config("chunks", data, **{**often, "steps": 7}), tmp_path / "a")
    assert seen[-1] == 5 and load_for_inference(tmp_path / "a").step == 5
    assert "val/quality did not improve by more than 0.1 in 3 evaluations (best: 2 at step 2)" in (
        tmp_path / "a" / "log.txt").read_text()  # fmt: skip
    seen.clear()
    train(toys.config("chunks", data, **{**often, "steps": 4}), tmp_path / "b")
    train(toys.config("chunks", data, **{**often, "steps": 7}), tmp_path / "b")
    assert seen[-1] == 5 and load_for_inference(tmp_path / "b").step == 5
    train(toys.config("chunks", data, **{**often, "steps": 7}), tmp_path / "b")
    assert seen[-1] == 5, "a run that has stopped stays stopped"
    train(toys.config("chunks", data, **{**often, "steps": 7, "patience": 9}), tmp_path / "b")
    assert load_for_inference(tmp_path / "b").step == 7


def test_checkpoints_are_written_by_the_clock_too(data, tmp_path):
    train(toys.config("chunks", data, steps=3, save_every=100, save_minutes=1e-9, keep_last=9), tmp_path / "run")
    assert steps(tmp_path / "run") == [1, 2, 3]
    with pytest.raises(ConfigError, match="save_minutes is 0"):
        prepare(toys.config("chunks", data, save_minutes=0))


def test_lower_values_of_the_metric_may_be_better():
    patience = Patience("val/mse", 2, 0.1, "min")
    for step, value in enumerate([5.0, 4.0, 3.95, 3.95, 1.0]):
        patience.update(step, value)
    assert patience.best == (1.0, 4) and patience.stale == 0 and not patience.exhausted


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"patience": 0, "best_metric": "val/quality"}, "patience is 0"),
        ({"patience": 2}, "patience needs config.train.best_metric"),
        ({"patience": 2, "best_metric": "val/quality", "min_delta": -1.0}, "min_delta is -1.0"),
        ({"best_metric": "val/quality", "best_mode": "lowest"}, "best_mode is 'lowest'; known: max, min"),
    ],
)
def test_bad_stopping_rules_are_refused(data, wrong, words):
    with pytest.raises(ConfigError, match=words):
        prepare(toys.config("chunks", data, **wrong))


def test_a_best_metric_that_does_not_exist_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="did you mean 'val/quality'"):
        train(toys.config("chunks", data, best_metric="val/qualitty"), tmp_path / "run")


def test_datasets_are_evaluated_apart(data, tmp_path):
    other = make.write(tmp_path / "hand", {"train": [[30]], "val": [[5]]}, cameras=(), widths={"action": 5}, seed=2)
    parts = [{"path": str(folder), "weight": 1.0} for folder in (data, other)]
    train(toys.config("chunks", {"mixture": tuple(parts)}, steps=2, eval_every=2), tmp_path / "run")
    line = next(x for x in read_metrics(tmp_path / "run") if x["step"] == 2 and "val/action_mse" in x)
    each = [line["val/arm/action_mse"], line["val/hand/action_mse"]]
    np.testing.assert_allclose(line["val/action_mse"], np.mean(each), rtol=1e-6)
    assert each[0] != each[1]
    # the same by hand: each part's held-out chunks, through the model
    saved = load_for_inference(tmp_path / "run")
    model = chunks.Model(**{k: v for k, v in saved.config.model.items() if k != "name"})
    source = prepare(toys.config("chunks", {"mixture": tuple(parts)})).data.validation
    which = [source.part_of(i)[0] for i in range(len(source))]
    rows = model.apply(saved.variables, source.batch(range(len(source))), method="evaluate")["mse"]
    np.testing.assert_allclose(each, [np.mean(rows[np.array(which) == n]) for n in (0, 1)], rtol=1e-5)


def test_held_out_data_are_as_wide_as_the_mixture(data, tmp_path):
    """Only the narrow part has a held-out split: its rows are filled up, and its own dimensions are told."""
    other = make.write(tmp_path / "hand", {"train": [[30]]}, cameras=(), widths={"action": 5}, seed=2)
    parts = ({"path": str(data), "weight": 1.0}, {"path": str(other), "weight": 1.0, "split_val": None})
    setup = prepare(toys.config("chunks", {"mixture": parts}))
    batch = setup.data.validation.batch([0, 1])
    assert batch["action"].shape == (2, 4, 5) and batch["action_dims"].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert setup.val_datasets == ("arm",) and setup.from_data["action_dim"] == 5


def test_means_over_datasets_leave_out_what_is_no_number():
    absent = math.nan
    found = by_dataset({"a": {"x": 1.0, "y": absent, "z": absent}, "b": {"x": 4.0, "y": 2.0, "z": absent}, "c": {}})
    assert found["x"] == 2.5 and found["y"] == 2.0 and math.isnan(found["z"]) and found["a/x"] == 1.0


@functools.cache
def ema_steps(data: int, fsdp: int, micro_batches: int):
    """The codebooks before and after a step for each of four random batches, on a mesh of the first devices."""
    rng, mask = np.random.default_rng(0), np.ones((32, 4), np.float32)
    batches = [{"action": rng.normal(size=(32, 4, 3)).astype(np.float32), "action_mask": mask} for _ in range(4)]
    task = Task(chunks.Model(action_dim=3), {"reconstruction": 1.0})
    make_optim = lambda params: make_optimizer(toys.OPTIM, 10, params)  # noqa: E731
    state = jax.jit(lambda batch: init_state(task, make_optim, 0, batch))(batches[0])
    before = state.variables["codebook"]["quantizer"]
    mesh = sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": 1}, jax.devices()[: data * fsdp])
    step = make_train_step(task, make_optim(state.variables["params"]), seed=0, micro_batches=micro_batches)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(state, mesh))
        run = jax.jit(step)
        for batch in batches:
            state, _ = run(state, sharding.shard_batch(mesh, batch))
    return before, state.variables["codebook"]["quantizer"]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("axes", [(8, 1), (2, 4)])
@pytest.mark.usefixtures("all_devices")
def test_ema_codebooks_are_one_codebook_on_all_devices(axes, micro_batches):
    _, many = ema_steps(*axes, micro_batches)
    before, one = ema_steps(1, 1, micro_batches)
    for name, value in many.items():
        copies = [np.asarray(shard.data) for shard in value.addressable_shards]
        assert len(copies) == 8 and all(np.array_equal(copies[0], copy) for copy in copies), name
        np.testing.assert_allclose(copies[0], one[name], rtol=1e-5, atol=1e-5)
        assert not np.allclose(one[name], before[name])


def test_micro_batches_update_the_codebook_one_after_the_other():
    """Two micro-batches are two moving-average updates, each with its rows: the scan threads the collection through."""
    rng = np.random.default_rng(1)
    batch = {"action": rng.normal(size=(8, 4, 3)).astype(np.float32), "action_mask": np.ones((8, 4), np.float32)}
    task = Task(chunks.Model(action_dim=3), {"reconstruction": 1.0})
    state = jax.jit(lambda b: init_state(task, lambda params: make_optimizer(toys.OPTIM, 10, params), 0, b))(batch)
    optimizer = make_optimizer(toys.OPTIM, 10, state.variables["params"])
    after, _ = jax.jit(make_train_step(task, optimizer, seed=0, micro_batches=2))(state, batch)
    variables, loss = state.variables, jax.jit(task.loss)
    for first in (0, 1):
        rows = {name: value[first::2] for name, value in batch.items()}
        _, (updated, _) = loss(variables, rows, jax.random.key(0))
        variables = {**variables, **updated}
    for name, value in variables["codebook"]["quantizer"].items():
        np.testing.assert_allclose(value, after.variables["codebook"]["quantizer"][name], rtol=1e-6, atol=1e-7)
