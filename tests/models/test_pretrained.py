import contextlib
import json

import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.pretrained import load_pretrained, save_pretrained

SPEC = {"name": "tokenizers.laq", "dim": 8, "replacement_schedule": ((100, 10),)}
META = {"step": 3, "statistics": {"action": {"mean": [0.1, 1e-7]}}}


def variables(seed=0):
    rng = np.random.default_rng(seed)
    return {"params": {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}, "scalar": np.float32(2.5)},
            "codebook": {"hits": np.arange(5, dtype=np.int32)}}  # fmt: skip


def test_the_round_trip_is_exact(tmp_path):
    save_pretrained(tmp_path / "out", SPEC, variables(), META)
    spec, got, meta = load_pretrained(tmp_path / "out")
    assert meta == META
    assert spec == {**SPEC, "replacement_schedule": [[100, 10]]}
    expected = tree.flatten(variables())
    got = tree.flatten(got)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        np.testing.assert_array_equal(got[name], value)


def test_equal_models_give_equal_bytes_and_leave_nothing_else(tmp_path):
    for name in ("a", "b"):
        save_pretrained(tmp_path / name, SPEC, variables(), META)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_files_of_two_exports_are_not_taken_for_one(tmp_path):
    save_pretrained(tmp_path / "a", SPEC, variables(), META)
    save_pretrained(tmp_path / "b", {**SPEC, "dim": 16}, variables(1), META)
    (tmp_path / "a" / "config.json").write_bytes((tmp_path / "b" / "config.json").read_bytes())
    with pytest.raises(UserError, match="does not belong"):
        load_pretrained(tmp_path / "a")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "does not exist"),
        (lambda f: (f / "config.json").unlink(), "does not exist"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no tensors"), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-4]), "damaged"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text(json.dumps({"format": "other"})), "format"),
        (lambda f: (f / "config.json").write_text(json.dumps({"format": "lapa_jax.model", "version": 9})), "version 9"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, harm, message):
    save_pretrained(tmp_path, SPEC, variables(), META)
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_every_flipped_bit_is_refused(tmp_path, monkeypatch):
    save_pretrained(tmp_path, SPEC, variables(), META)
    rng = np.random.default_rng(0)
    for name, count in (("model.safetensors", 150), ("config.json", 50)):
        whole = (tmp_path / name).read_bytes()
        for position, bit in zip(rng.integers(0, len(whole), count), rng.integers(0, 8, count), strict=True):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(bit)
            (tmp_path / name).write_bytes(damaged)
            same = name == "config.json" and _reads_as(damaged, whole)  # a space that became another one
            with contextlib.nullcontext() if same else pytest.raises(UserError, match=str(tmp_path)):
                load_pretrained(tmp_path)
        (tmp_path / name).write_bytes(whole)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    monkeypatch.setenv("LAPA_JAX_CHECKSUMS", "off")
    load_pretrained(tmp_path)


def _reads_as(text: bytes, other: bytes) -> bool:
    try:
        return json.loads(text) == json.loads(other)
    except ValueError:
        return False
