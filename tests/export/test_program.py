"""Exported programs: equal to the model, without its code, for any number of rows; damaged ones are refused."""

import json
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.normalize import Normalizer
from lapa_jax.export import program, stablehlo
from lapa_jax.inference.load import load
from tests.inference import random_vla

RUNS = {
    "bins": ("vla_action.py", {"state": True, "names": ("table", "shelf")}, ()),
    "flow": ("vla_action.py", {"head": "flow"}, ()),
    "codes": ("vla_latent.py", {}, ("model.decode=autoregressive",)),
}


@pytest.fixture(scope="module")
def exported(root, tmp_path_factory):
    """{name: (policy, folder of its program)}."""
    found = {}
    for name, (config, how, overrides) in RUNS.items():
        folder = tmp_path_factory.mktemp(name)
        run = random_vla.write(folder / "run", root, config, *overrides, **how)
        policy = load(run, devices=jax.devices()[:1])
        stablehlo.save_program(policy, folder / "program", ("cpu", "cuda"))
        found[name] = policy, folder / "program"
    return found


def one(folder):
    return program.load(folder, devices=jax.devices()[:1])


def test_a_policy_of_actions_does_the_same(exported):
    policy, folder = exported["bins"]
    found, seen = one(folder), random_vla.seen(policy)
    for dataset in ("table", "shelf"):
        ours, theirs = (p.chunk(*seen, dataset=dataset) for p in (policy, found))
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)
        assert ours.shape == (3, 2, 2) and np.ptp(ours, axis=0).max() > 0.01
    with pytest.raises(UserError, match="several datasets"):
        found.chunk(*seen)


def test_a_policy_that_draws_noise_draws_the_same(exported):
    """The noise is of a fixed seed: the same observation has the same actions, alone, in a batch and as a program."""
    policy, folder = exported["flow"]
    pictures, texts = random_vla.seen(policy)
    chunks = policy.chunk(pictures, texts)
    np.testing.assert_array_equal(policy.chunk(pictures, texts), chunks)
    np.testing.assert_allclose(policy.chunk(pictures[1], texts[1]), chunks[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one(folder).chunk(pictures, texts), chunks, rtol=1e-5, atol=1e-5)
    assert np.ptp(chunks, axis=0).max() > 1e-3


def test_a_policy_of_codes_does_the_same(exported):
    policy, folder = exported["codes"]
    seen, found = random_vla.seen(policy), program.load(folder)
    assert found.mesh.size == 8, "rows are spread over all devices, as with a model"
    np.testing.assert_allclose(found.logits(*seen), policy.logits(*seen), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.predict(*seen), policy.predict(*seen))
    assert found.labels == policy.labels and found.step == policy.step == 5
    assert found.fingerprint == policy.fingerprint


WITHOUT_MODEL = """
import sys, numpy
from lapa_jax.export import program
policy = program.load(sys.argv[1])
seen = numpy.load(sys.argv[2])
row = 1
numpy.save(sys.argv[3], policy.act(seen["image"][row], str(seen["text"][row]), seen["state"][row], dataset="shelf"))
print(sorted(name for name in sys.modules if name.startswith(("lapa_jax.models", "lapa_jax.nn", "flax", "orbax"))))
"""


def test_one_row_without_the_models_code(exported, root, tmp_path):
    policy, folder = exported["bins"]
    image, texts, state = random_vla.seen(policy)
    np.savez(tmp_path / "seen.npz", image=image, text=texts, state=state)
    done = subprocess.run(
        [sys.executable, "-B", "-c", WITHOUT_MODEL, folder, tmp_path / "seen.npz", tmp_path / "out.npy"],
        cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}, check=False
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    expected = policy.chunk(image, texts, state, dataset="shelf")[1, 0]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-5)


def test_what_it_takes_and_gives_is_written_beside_it(exported):
    policy, folder = exported["bins"]
    about = json.loads((folder / "program.json").read_text())
    assert about["platforms"] == ["cpu", "cuda"] and about["kind"] == "action_policy"
    assert about["text_tokenizer"] == {"name": "bytes", "template": "plain"}
    assert about["inputs"]["image"] == {"shape": ["rows", 28, 28, 3], "dtype": "uint8"}
    assert about["outputs"] == {"action": {"shape": ["rows", 2, 2], "dtype": "float32"}}
    assert sorted(about["inputs"]) == ["image", "state", "text", "text_mask"]
    rows = np.array([[0.5, -0.25]], np.float32)
    scaled = Normalizer.from_json(about["scaling"]["shelf"]["action"]).unnormalize(rows)
    np.testing.assert_array_equal(scaled, policy.to_units(rows, "shelf"))
    stored = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.variables))
    assert stored.platforms == ("cpu", "cuda") and (folder / "program.bin").stat().st_size < 0.7 * weights


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("program.json", lambda b: b.replace(b"lapa_jax.program", b"another"), "does not describe a program"),
        ("program.json", lambda b: b[:40], "not valid JSON"),
        ("program.json", lambda b: b.replace(b'"cuda"', b'"rocm"').replace(b'"cpu"', b'"cuda"'), "--platform cpu"),
        ("program.bin", lambda b: b[:-1] + b"?", "program.bin is missing, damaged"),
        ("program.bin", None, "program.bin is missing, damaged"),
        ("config.json", lambda b: b + b" ", "config.json is missing, damaged"),
        ("model.safetensors", lambda b: b[:500], "model.safetensors is damaged"),
    ],
)
def test_what_is_not_whole_is_refused(exported, tmp_path, file, change, words):
    folder = shutil.copytree(exported["bins"][1], tmp_path / "copy")
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(UserError, match=words):
        one(folder)


def test_a_program_can_predict_and_nothing_else(exported):
    found = one(exported["bins"][1])
    with pytest.raises(ValueError, match="'evaluate' needs the model"):
        found.model.apply(found.variables, found.model.example(1), method="evaluate")
