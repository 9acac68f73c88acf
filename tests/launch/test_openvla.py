"""An imported OpenVLA through the launchers: finetuned, measured on recorded steps, acting in a simulator, served."""

import base64
import http.client
import json

import jax
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.metrics import read_metrics
from lapa_jax.nn import lora
from lapa_jax.serve.background import background
from lapa_jax.serve.service import Options, Service
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from launch import eval as command
from tests.golden import released
from tests.serve import messages
from tests.sim.conftest import gl, mujoco  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_device")

SHORT = ("model.dtype=float32", "model.llm.remat=none", "data.path=sample",
         "data.image_size=56", "data.text_tokenizer.name=bytes", "data.text_length=192", "data.threads=1",
         "data.eval_examples=4", "train.steps=4", "train.batch_size=4", "train.micro_batches=1",
         "train.eval_batch_size=4", "train.log_every=1", "train.eval_every=4", "train.save_every=4",
         "train.trackers=()", "mesh.fsdp=1", "mesh.data=-1")  # fmt: skip


@pytest.fixture(scope="module")
def imported(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvla")
    released.import_("openvla", released.copy_openvla(shared, folder / "source"), folder / "run")
    return folder / "run"


def finetuned(root, imported, folder, variant, *overrides):
    given = [f"--config.{o}" for o in (f"init_from.={imported}", *SHORT, *overrides)]
    train(config_lib.load(f"{root}/configs/openvla.py{variant}", given), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(root, imported, tmp_path_factory):
    """A run of LoRA."""
    return finetuned(root, imported, tmp_path_factory.mktemp("lora") / "run", "", "optim.learning_rate=0.005",
                     "optim.frozen_dtype=float32", "model.lora_rank=4", "train.steps=16", "train.eval_every=16",
                     "train.save_every=16")  # fmt: skip


def test_lora_learns_beside_frozen_weights(imported, adapted):
    before = tree.flatten(load_for_inference(imported).variables["params"])
    after = tree.flatten(load_for_inference(adapted).variables["params"])
    new = set(after) - set(before)
    assert {name.rpartition("/")[2] for name in new} == {"lora_a", "lora_b"}
    layers = {name.rpartition("/")[0] for name in new}
    for name in ("siglip/layers/up", "dinov2/layers/attention/query", "projector/widen",
                 "llm/decoder/layers/feedforward/down"):  # fmt: skip
        assert name in layers
    assert not {"lm_head", "llm/embedding", "siglip/embed"} & layers
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert all(np.any(after[name]) for name in new)
    losses = [row["train/loss"] for row in read_metrics(adapted) if "train/loss" in row]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.5
    policy = lapa_jax.load(adapted)
    assert policy.model.action_dim == 2 and list(policy.datasets) == ["sample"]
    merged = lora.merge(policy.variables["params"], policy.model.lora_alpha)
    plain = policy.model.clone(lora_rank=0)
    batch, _ = policy.prepare(np.zeros((20, 30, 3), np.uint8), "push")
    tokens = jax.jit(lambda v, b: plain.apply(v, b, method="predict")["tokens"])({"params": merged}, batch)
    np.testing.assert_array_equal(policy.model.actions_of(np.asarray(tokens)), policy.predict(batch))


def test_everything_is_trained_with_full(root, imported, tmp_path):
    run = finetuned(root, imported, tmp_path / "run", ":full", "train.steps=1", "train.save_every=1",
                    "train.eval_every=1", "optim.learning_rate=0.001")  # fmt: skip
    before = tree.flatten(load_for_inference(imported).variables["params"])
    after = tree.flatten(load_for_inference(run).variables["params"])
    assert before.keys() == after.keys()
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert {"lm_head/kernel", "siglip/embed/kernel", "llm/embedding", "projector/out/bias"} <= changed


def test_it_is_measured_on_recorded_steps(adapted, tmp_path, capsys):
    command.main(["--run", str(adapted), "--pairs", "6", "--out", str(tmp_path / "eval")])
    result = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert {"action_r2", "bin_accuracy", "loss"} <= set(result["metrics"]) and result["policy"]
    assert (tmp_path / "eval" / "report.html").exists() and "bin_accuracy" in capsys.readouterr().out


def test_an_imported_policy_is_measured_on_data_that_it_was_not_trained_on(imported, tmp_path):
    """`--dataset` says whose units: those of four numbers here, over shards of four."""
    from tests.data.samples import make

    data = make.write(tmp_path / "arm", {"val": [[5, 4]]}, size=40, widths={"action": 4},
                      texts=["pick up the red cup", "place the carrot on the plate"])  # fmt: skip
    out = tmp_path / "eval"
    command.main(["--run", str(imported), "--data", str(data), "--dataset", "toy_4d", "--pairs", "4", "--out",
                  str(out)])  # fmt: skip
    entries = json.loads((out / "metrics.json").read_text())["datasets"]["arm"]
    assert len(entries) == 4 and all(np.isfinite(entry["mae"]) for entry in entries)


@pytest.mark.usefixtures("gl")
def test_it_acts_in_a_simulator(adapted, tmp_path, monkeypatch):
    from lapa_jax.sim import push_table

    monkeypatch.setattr(push_table.Env, "max_steps", 3)
    command.main(["--env", "push_table", "--episodes", "1", "--num_envs", "1", "--run", str(adapted), "--videos", "0",
                  "--out", str(tmp_path / "eval")])  # fmt: skip
    told = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert told["policies"]["policy"]["overall"]["episodes"] == 1


@pytest.mark.parametrize("twice", [False, True])
def test_openvlas_own_clients_get_the_official_actions(imported, shared, twice):
    """As its deployment script is asked: json_numpy in POST /act, maybe as a text within JSON."""
    golden = np.load(shared / "golden" / "released" / "openvla_small" / "golden.npz")
    image = golden["case0.image"]
    array = {"__numpy__": base64.b64encode(image.tobytes()).decode(), "dtype": "|u1", "shape": image.shape}
    message = {"image": array, "instruction": released.INSTRUCTIONS[0], "unnorm_key": "bridge_orig"}
    body = json.dumps({"encoded": json.dumps(message)} if twice else message)
    policy = lapa_jax.load(imported)
    with background(lambda: Service(policy, imported, Options(batch=1))) as server:
        connection = http.client.HTTPConnection(server.address, timeout=60)
        connection.request("POST", "/act", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
    assert answer.status == 200, text
    action = messages.read_json(json.loads(text) if twice else text)
    assert action.dtype == np.float64
    np.testing.assert_allclose(action, golden["case0.action.bridge_orig"], rtol=0, atol=1e-12)
