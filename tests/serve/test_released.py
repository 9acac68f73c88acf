"""Imported LAPA-7B and UniVLA answer OpenVLA's own clients: json_numpy in POST /act, actions in the robot's units."""

import base64
import http.client
import json

import numpy as np
import pytest

import lapa_jax
from lapa_jax.serve.background import background
from lapa_jax.serve.service import Options, Service
from tests.core import torch_writer
from tests.golden import released
from tests.serve import messages
from tests.tools.test_import_univla import decoder
from tools import import_weights

INSTRUCTION = released.INSTRUCTIONS[0]


@pytest.fixture
def lapa(shared, tmp_path):
    folder = shared / "golden" / "released" / "lapa7b_small"
    import_weights.main(["lapa7b", "--input", str(folder / "params_action"), "--vqgan", str(folder / "vqgan"), "--bins",
                         str(folder / "action_bins.csv"), "--tokenizer", "bytes", "--text_length", "160", "--out",
                         str(tmp_path / "run")])  # fmt: skip
    return tmp_path / "run", folder, {}


@pytest.fixture
def univla(shared, tmp_path):
    source, golden = released.copy_openvla(shared, tmp_path / "source"), "openvla_small"
    width = released.tensors_of(source)["language_model.lm_head.weight"].shape[1]
    torch_writer.save(tmp_path / "decoder.pt", decoder(1, width))
    stats = source / "dataset_statistics.json"
    kept = {name: entry for name, entry in json.loads(stats.read_text()).items() if name != "toy_4d"}
    stats.write_text(json.dumps(kept))
    released.import_("univla", source, tmp_path / "run", "--action_decoder", tmp_path / "decoder.pt",
                     "--decoder_heads", 2)  # fmt: skip
    return tmp_path / "run", shared / "golden" / "released" / golden, {"unnorm_key": "toy_without_mask"}


@pytest.mark.parametrize("imported", ["lapa", "univla"])
def test_an_openvla_client_gets_the_actions_of_the_policy(imported, request):
    run, golden, key = request.getfixturevalue(imported)
    image = np.load(golden / "golden.npz")["case1.image"]
    array = {"__numpy__": base64.b64encode(image.tobytes()).decode(), "dtype": "|u1", "shape": image.shape}
    policy = lapa_jax.load(run)
    with background(lambda: Service(policy, run, Options(batch=1))) as server:
        connection = http.client.HTTPConnection(server.address, timeout=60)
        body = json.dumps({"image": array, "instruction": INSTRUCTION, **key})
        connection.request("POST", "/act", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
    assert answer.status == 200, text
    expected = policy.act(image, INSTRUCTION, dataset=key.get("unnorm_key"))
    action = messages.read_json(text)
    np.testing.assert_allclose(action.reshape(-1, 7)[0], expected, rtol=0, atol=1e-6)
