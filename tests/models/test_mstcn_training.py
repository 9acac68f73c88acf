"""The MS-TCN tokenizer in training: it learns, on one device as on eight; what the data and its numbers tell."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers import mstcn
from lapa_jax.models.tokenizers import mstcn as mstcn_summary
from lapa_jax.train import sharding
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs/mstcn.py")
SMALL = {"name": "tokenizers.mstcn", "action_dim": 2, "embed_dim": 8, "width": 16, "layers": 2, "context": 8,
         "stages": 1, "subclusters": 16, "clusters": 4, "decay": 0.9, "dead_age": 5}  # fmt: skip
WEIGHTS = {"reconstruction": 1.0, "commitment_z": 0.02}
OPTIM = {"learning_rate": 5e-3, "clip_norm": 1.0, "groups": ((".*", {}),)}
STEPS = 60


def batch(seed, count=16):
    """Windows of motions that go one of eight ways, and change it somewhere."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * rng.integers(8, size=(2, count)) / 8
    switch = rng.integers(1, 8, count)[:, None] > np.arange(8)
    angle = np.where(switch, angle[0][:, None], angle[1][:, None])
    action = np.stack([np.cos(angle), np.sin(angle)], -1) + 0.05 * rng.normal(size=(count, 8, 2))
    mask = np.ones((count, 8), np.float32)
    mask[0, 5:] = 0
    return {"action": (action * mask[..., None]).astype(np.float32), "action_mask": mask}


@functools.cache
def trained(devices: int):
    """The state after `STEPS` steps on so many devices, and the metrics of each."""
    task = Task(config.build("lapa_jax.models", SMALL), WEIGHTS)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        make = functools.partial(make_optimizer, OPTIM, STEPS)
        abstract = jax.eval_shape(functools.partial(init_state, task, make, 0), batch(0))
        places = sharding.shardings(abstract, mesh)
        start = jax.jit(functools.partial(init_state, task, make, 0), out_shardings=places)
        state = start(sharding.shard_batch(mesh, batch(0)))
        optimizer = make_optimizer(OPTIM, STEPS, state.variables["params"])
        step = jax.jit(make_train_step(task, optimizer, seed=0), out_shardings=(places, None))
        history = []
        for number in range(STEPS):
            state, metrics = step(state, sharding.shard_batch(mesh, batch(number)))
            history.append(jax.device_get(metrics))
            if number == 2:
                early = state
    return task, early, state, history


def test_one_joint_loss_trains_encoder_decoder_and_codebooks_together():
    """Spec error 9: no second optimizer, no retained graph: one gradient of one sum, and averages moved in the same
    pass. Spec error 12: reconstruction dominates that sum, from the first step to the last."""
    _, _, state, history = trained(1)
    first, last = history[0], history[-1]
    assert last["loss_reconstruction"] < 0.2 * first["loss_reconstruction"]
    for row in history:
        want = row["loss_reconstruction"] + 0.02 * row["loss_commitment_z"]
        assert row["loss"] == pytest.approx(want, rel=1e-4)
        assert row["loss_reconstruction"] > 0.5 * row["loss"]
    assert np.max(state.variables["codebook"]["codes"]["z"]["age"]) == STEPS
    loss = config.load(CONFIG).loss
    assert loss.reconstruction == 1.0 and loss.commitment_z + loss.commitment_q < 0.1


def test_training_uses_its_codes():
    task, _, state, _ = trained(1)
    held_out = batch(1000, 64)
    arrays = jax.device_get(jax.jit(task.evaluate)(state.variables, held_out))
    summary = task.summarize({name: np.asarray(value) for name, value in arrays.items()})
    # Motions go eight ways: codes that are told apart less than these would be in use to no end.
    assert summary["perplexity_z"] > 8 and summary["codebook_utilization_q"] > 0.8
    assert summary["r2"] > 0.8 and summary["collapse"] == 0


def test_eight_devices_hold_the_same_codebooks_and_those_of_one():
    """Spec error 5: counts, sums and replacements are of the global batch and of a shared key."""
    _, early, late, history = trained(8)
    for state in (early, late):
        for name, leaf in tree.flatten(state.variables["codebook"]).items():
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert len(copies) == 8 and all(copy.shape == leaf.shape for copy in copies), name
            assert all(np.array_equal(copies[0], copy) for copy in copies), name
    _, single, _, alone = trained(1)
    for name, leaf in tree.flatten(single.variables["codebook"]).items():
        np.testing.assert_allclose(tree.flatten(early.variables["codebook"])[name], leaf, atol=1e-5, err_msg=name)
    assert history[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=0.3)


class Source:
    """Stands for the samples of a run."""

    def __init__(self, **shapes):
        self._shapes = shapes

    def batch(self, _):
        return {name: np.zeros((0, *shape), np.float32) for name, shape in self._shapes.items()}


def test_dimensions_come_from_the_data():
    spec = {"name": "tokenizers.mstcn", "action_dim": None, "state_dim": None, "context": 8}
    filled = mstcn.from_data(spec, Source(action=(8, 7), action_mask=(8,)), 0)
    assert filled == {**spec, "action_dim": 7, "state_dim": 0}
    assert mstcn.from_data(spec, Source(action=(8, 7), state=(5,)), 0)["state_dim"] == 5


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ({}, {"frames": (2, 32, 32, 3)}, "set data.samples=chunks"),
        ({"context": 10}, {"action": (8, 7)}, "context is 10 and the samples have 8"),
        ({}, {"action": (8, 7), "state": (3, 5)}, "data.history=0"),
        ({"action_dim": 4}, {"action": (8, 7)}, "action_dim is 4, the data have 7"),
        ({"state_dim": 2}, {"action": (8, 7)}, "state_dim is 2, the data have 0"),
    ],
)
def test_data_that_do_not_fit_are_refused(fields, shapes, message):
    with pytest.raises(UserError, match=message):
        mstcn.from_data({"context": 8, **fields}, Source(**shapes), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 4}, "set layers to 3 or less"),
        ({"action_dim": None}, "action_dim is None"),
        ({"state_dim": -1}, "state_dim is -1"),
        ({"context": 1}, "context is 1; it must be a whole number of at least 2"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"decoder_input": "zq"}, "did you mean"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"clusters": 17}, "more than subclusters 16"),
        ({"decay": 1.0}, "decay"),
        ({"stages": 0}, "stages is 0"),
        ({"dead_share": 2.0}, "dead_share"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_compiles(fields, message):
    with pytest.raises(UserError, match=message):
        config.build("lapa_jax.models", {**SMALL, **fields})


def test_the_summary_counts_real_steps_and_dimensions_alone():
    rng = np.random.default_rng(0)
    action, guess = rng.normal(size=(2, 5, 4, 3))
    action[:, :, 2] = 0.7  # does not vary: no R2, but an error
    mask = (np.arange(4) < np.array([4, 3, 4, 1, 2])[:, None]).astype(np.float32)
    dims = np.float32([[1, 1, 1]] * 3 + [[1, 0, 1]] * 2)
    codes = rng.integers(0, [6, 3], (5, 4, 2))
    arrays = {"action": action, "reconstruction": guess, "action_mask": mask, "codes": codes, "action_dims": dims}
    found = mstcn_summary.summarize(arrays, {"z": 8, "q": 3})
    for i in range(3):
        rows = [(b, t) for b in range(5) for t in range(4) if mask[b, t] and dims[b, i]]
        true, wrong = (np.array([x[b, t, i] for b, t in rows]) for x in (action, guess))
        assert found[f"mse_{i}"] == pytest.approx(np.mean((true - wrong) ** 2))
        assert found[f"mae_{i}"] == pytest.approx(np.mean(np.abs(true - wrong)))
        assert found[f"p99_error_{i}"] == pytest.approx(np.quantile(np.abs(true - wrong), 0.99))
        assert found[f"max_error_{i}"] == pytest.approx(np.max(np.abs(true - wrong)))
        if i < 2:
            predicting_the_mean = np.mean((true - true.mean()) ** 2)
            assert found[f"r2_{i}"] == pytest.approx(1 - found[f"mse_{i}"] / predicting_the_mean)
    assert found["max_error"] == max(found[f"max_error_{i}"] for i in range(3)) > found["p99_error"]
    assert "r2_2" not in found and found["r2"] == pytest.approx((found["r2_0"] + found["r2_1"]) / 2)
    seen = codes[mask > 0]
    assert found["codebook_utilization_z"] == len(np.unique(seen[:, 0])) / 8
    assert found["codebook_utilization_q"] == len(np.unique(seen[:, 1])) / 3
    share = np.bincount(seen[:, 0]) / len(seen)
    entropy = -sum(p * np.log(p) for p in share if p)
    assert found["perplexity_z"] == pytest.approx(np.exp(entropy))
    assert found["bits_per_step"] == pytest.approx(entropy / np.log(2))


def test_one_code_for_everything_is_called_a_collapse():
    arrays = {"action": np.ones((2, 3, 1)), "reconstruction": np.ones((2, 3, 1)), "action_mask": np.ones((2, 3)),
              "codes": np.zeros((2, 3, 2), np.int32)}  # fmt: skip
    found = mstcn_summary.summarize(arrays, {"z": 8, "q": 4})
    assert found["collapse"] == found["largest_code_share_z"] == 1 and found["codebook_utilization"] == 0.125
