"""Moving averages of trained parameters, and parameters that are stored in bfloat16 because nothing trains them."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.inference import load
from lapa_jax.train import checkpoint, ema
from lapa_jax.train.checkpoint import Checkpointer, load_for_inference
from lapa_jax.train.loop import train
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.setup import prepare
from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task
from tests import toys
from tests.data.samples import make
from tests.train import toy

pytestmark = pytest.mark.usefixtures("one_device")

DECAY = 0.75
GROUPS = (("first/.*", None), (".*", {}))
OPTIM = {"learning_rate": 0.05, "clip_norm": None, "groups": GROUPS, "ema_decay": DECAY, "frozen_dtype": "bfloat16"}
LOSS = Task(toy.Model(), {"mse": 1.0})


def start(optim=OPTIM, **how):
    init = jax.jit(lambda batch: init_state(LOSS, lambda params: make_optimizer(optim, 10, params), 0, batch))
    state = init(toy.batch())
    optimizer = make_optimizer(optim, 10, state.variables["params"])
    return state, jax.jit(make_train_step(LOSS, optimizer, seed=0, **how), donate_argnums=0)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_average_is_numpys_recursion_over_the_steps(micro_batches):
    state, step = start(micro_batches=micro_batches)
    want = {name: np.array(leaf) for name, leaf in tree.flatten(state.variables["params"]["last"]).items()}
    for seed in range(5):
        state, _ = step(state, toy.batch(16, seed))
        for name, leaf in tree.flatten(state.variables["params"]["last"]).items():
            want[name] = DECAY * want[name] + (1 - DECAY) * np.array(leaf)
    assert list(state.variables["ema"]) == ["last"], "what is not trained has no average"
    got = tree.flatten(state.variables["ema"]["last"])
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6)
    assert not np.allclose(want["kernel"], state.variables["params"]["last"]["kernel"], rtol=0.01)


def test_evaluation_uses_the_average():
    state, step = start()
    for seed in range(3):
        state, _ = step(state, toy.batch(16, seed))
    batch = toy.batch(8, 99)
    plain = {**state.variables, "params": {**state.variables["params"], "last": state.variables["ema"]["last"]}}
    del plain["ema"]
    want = toy.Model().apply(plain, batch, method="evaluate")
    np.testing.assert_array_equal(LOSS.evaluate(state.variables, batch)["mse"], want["mse"])
    raw = LOSS.evaluate({**plain, "params": state.variables["params"]}, batch)
    assert not np.allclose(raw["mse"], want["mse"], rtol=0.01)


def test_frozen_numbers_are_stored_in_bfloat16_and_the_others_are_not():
    state, step = start()
    whole = jax.jit(LOSS.init)(jax.random.key(0), toy.batch())["params"]["first"]["kernel"]
    for _ in range(2):
        dtypes = {name: str(leaf.dtype) for name, leaf in tree.flatten(state.variables).items()}
        assert dtypes == {
            "codebook/calls": "int32", "ema/last/bias": "float32", "ema/last/kernel": "float32",
            "params/first/bias": "bfloat16", "params/first/kernel": "bfloat16",
            "params/last/bias": "float32", "params/last/kernel": "float32",
        }  # fmt: skip
        np.testing.assert_array_equal(state.variables["params"]["first"]["kernel"], whole.astype(jnp.bfloat16))
        state, metrics = step(state, toy.batch())
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    "setting, words",
    [({"ema_decay": 1.0}, "ema_decay is 1.0; give a number between 0 and 1"), ({"ema_decay": 0}, "ema_decay is 0"),
     ({"frozen_dtype": "bfloat"}, "did you mean 'bfloat16'")],
)  # fmt: skip
def test_other_settings_are_refused(setting, words):
    with pytest.raises(ConfigError, match=words):
        start({**OPTIM, **setting})


def test_inference_reads_the_average_and_the_run_everything(tmp_path):
    state, step = start()
    for seed in range(2):
        state, _ = step(state, toy.batch(16, seed))
    (tmp_path / "config.json").write_text("{}")
    writer = Checkpointer(tmp_path, keep_last=1, best_metric=None)
    writer.save(state, 2, {"config": {}}, None)
    writer.close()
    got = load_for_inference(tmp_path).variables
    assert tree.diff(ema.averaged(state.variables), got) == "", "and dtypes are as they were"
    np.testing.assert_array_equal(got["params"]["last"]["kernel"], state.variables["ema"]["last"]["kernel"])
    _, _, shapes = checkpoint.describe(tmp_path)
    assert tree.diff(got, shapes) == ""
    reader = Checkpointer(tmp_path, keep_last=1, best_metric=None)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
    jax.tree.map(np.testing.assert_array_equal, reader.restore(abstract), state)


# With the loop, on a policy whose tokenizer is that of another run.


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make.write(tmp_path_factory.mktemp("data") / "arm", toys.LENGTHS, cameras=())


def averaging(config, **optim):
    with config.unlocked():
        config.optim = ml_collections.ConfigDict({**config.optim.to_dict(), "ema_decay": DECAY, **optim})
    return config


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory):
    """A run with averages, cut after step 3 of 6 and resumed; and the same in one go."""
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        folder = tmp_path_factory.mktemp("tokenizer")
        for name, steps in (("whole", 6), ("cut", 3), ("cut", 6)):
            train(averaging(toys.config("chunks", data, steps=steps)), folder / name)
    return folder


def test_a_resumed_run_ends_in_the_same_bits_and_averages(tokenizer, data):
    whole, cut = (prepare(averaging(toys.config("chunks", data)), {}) for _ in range(2))
    states = [Checkpointer(tokenizer / name, keep_last=3, best_metric=None).restore(setup.abstract)
              for name, setup in (("whole", whole), ("cut", cut))]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert not jax.tree.all(jax.tree.map(np.array_equal, states[0].variables["ema"], states[0].variables["params"]))
    lines = [[x for x in read_metrics(tokenizer / name) if x["step"] == 6 and "val/action_mse" in x]
             for name in ("whole", "cut")]  # fmt: skip
    assert lines[0] == lines[1] and lines[0]
    loaded = load.load(tokenizer / "whole")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], states[0].variables["ema"])


def test_another_run_begins_with_averages_in_bfloat16(tokenizer, data, tmp_path):
    config = toys.config("policy", data, model={"tokenizer": None})
    with config.unlocked():
        config.init_from = ml_collections.ConfigDict({"tokenizer": str(tokenizer / "whole")})
    config = averaging(config, groups=(("tokenizer/.*", None), (".*", {})), frozen_dtype="bfloat16")
    setup = prepare(config)
    assert any("of them are float32 there and bfloat16 here" in line for line in setup.notes)
    with jax.set_mesh(setup.mesh):
        state = setup.init(shard_batch(setup.mesh, next(setup.train_batches(0))))
    want = load_for_inference(tokenizer / "whole").variables["params"]
    got = state.variables["params"]["tokenizer"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, jnp.bfloat16)), got, want)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(got)} == {"bfloat16"}
    assert "tokenizer" not in state.variables["ema"]
    train(config, tmp_path / "run")
    after = load_for_inference(tmp_path / "run").variables["params"]["tokenizer"]
    jax.tree.map(np.testing.assert_array_equal, after, got)


def test_averages_of_what_another_run_gave_begin_there(tokenizer, data):
    config = toys.config("chunks", data)
    with config.unlocked():
        config.init_from = ml_collections.ConfigDict({"": str(tokenizer / "whole")})
    setup = prepare(averaging(config))
    with jax.set_mesh(setup.mesh):
        state = setup.init(shard_batch(setup.mesh, next(setup.train_batches(0))))
    jax.tree.map(np.testing.assert_array_equal, state.variables["ema"], state.variables["params"])
    pointers = lambda x: {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}  # noqa: E731
    both = jax.tree.map(lambda a, b: pointers(a) & pointers(b), state.variables["ema"], state.variables["params"])
    assert not any(jax.tree.leaves(both, is_leaf=lambda x: isinstance(x, set))), "the step gives both away"
