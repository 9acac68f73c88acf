"""Files of torch.save, read without torch."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.torch_file import Opaque, TorchFile
from tests.core import torch_writer

OS_SYSTEM = b"cposix\nsystem\n(X\x04\x00\x00\x00truetR"


def random_state():
    rng = np.random.default_rng(0)
    return {"state_dict": {"lam.a": rng.normal(size=(2, 3, 4)).astype(np.float32), "lam.b": rng.normal(size=5),
                           "lam.half": rng.normal(size=(4, 2)).astype(ml_dtypes.bfloat16), "lam.count": np.arange(3)},
            "epoch": 3, "empty": np.zeros((0, 3), np.float32)}  # fmt: skip


def test_tensors_come_back_to_the_bit(tmp_path):
    torch_writer.save(tmp_path / "a.ckpt", state := random_state())
    file = TorchFile(tmp_path / "a.ckpt")
    assert file.content["epoch"] == 3
    tensors = file.tensors()
    assert sorted(tensors) == ["empty", *sorted(f"state_dict.{name}" for name in state["state_dict"])]
    for name, value in state["state_dict"].items():
        read = file.read(tensors[f"state_dict.{name}"])
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)
    assert file.read(tensors["empty"]).shape == (0, 3)


def test_a_file_of_torch_itself_is_read(shared):
    torch = pytest.importorskip("torch")
    path = shared / "golden" / "laq_seq4.pt"
    file, expected = TorchFile(path), torch.load(path, weights_only=True)
    tensors = file.tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(tensor), expected[name].numpy())


def test_a_file_of_torch_equals_its_safetensors(shared):
    import safetensors.numpy

    expected = safetensors.numpy.load_file(shared / "golden" / "laq_seq4.safetensors")
    file = TorchFile(shared / "golden" / "laq_seq4.pt")
    tensors = file.tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(tensor), expected[name])


def test_a_views_strides_are_followed(tmp_path):
    """A transposed tensor shares its storage: only strides say so."""
    torch_writer.save(tmp_path / "a.pt", {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    file = TorchFile(tmp_path / "a.pt")
    tensor = file.tensors()["x"]
    view = type(tensor)(tensor.key, tensor.dtype, 1, (2, 2), (1, 3))
    np.testing.assert_array_equal(file.read(view), [[1, 4], [2, 5]])
    with pytest.raises(UserError, match="too short"):
        file.read(type(tensor)(tensor.key, tensor.dtype, 3, (2, 3), (3, 1)))


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [(OS_SYSTEM, r"posix\.system"), (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR", r"builtins\.eval"),
     (b"csubprocess\nPopen\n)R", r"subprocess\.Popen")],
)  # fmt: skip
def test_what_would_run_something_is_refused(tmp_path, opcodes, name):
    torch_writer.save(tmp_path / "a.ckpt", random_state(), extra=opcodes)
    with pytest.raises(UserError, match=name):
        TorchFile(tmp_path / "a.ckpt")


def test_what_trainers_keep_is_read_as_nothing(tmp_path):
    """Lightning keeps hyper-parameters: namespaces, paths, optimizers as functions."""
    hyper = b"cjsonargparse._namespace\nNamespace\n)R}X\x01\x00\x00\x00aK\x01sb"
    torch_writer.save(tmp_path / "a.ckpt", random_state(), extra=hyper)
    file = TorchFile(tmp_path / "a.ckpt")
    assert isinstance(file.content["extra"], Opaque) and len(file.tensors()) == 5


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # torch before 1.6
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("a/b", "c")
    torch_writer.save(tmp_path / "whole.pt", random_state())
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-200])
    for name, message in (("old", "no whole file of torch.save"), ("zip", "no data.pkl"), ("cut", "no whole file"),
                          ("absent", "does not exist")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            TorchFile(tmp_path / f"{name}.pt")
