import errno
import gc
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

from lapa_jax.core.errors import UserError
from tests.golden.imported import read
from tools import import_weights


@pytest.fixture
def golden(shared):
    return shared / "golden"


def run(source, out, *extra):
    import_weights.main(["laq", "--input", str(source), "--out", str(out), *extra])


def test_a_safetensors_file_becomes_a_run_folder(golden, tmp_path, capsys):
    run(golden / "laq_seq4.safetensors", tmp_path / "laq", "--image_size", "64")
    spec, variables, meta = read(tmp_path / "laq")
    assert spec["layout"] == "official" and (spec["dim"], spec["code_seq_len"], spec["heads"]) == (64, 4, 4)
    assert meta["source"]["file"] == "laq_seq4.safetensors"
    official = safetensors.numpy.load_file(golden / "laq_seq4.safetensors")
    np.testing.assert_array_equal(variables["params"]["quantizer"]["codebook"], official["vq.codebooks"])
    said = capsys.readouterr().out
    assert "zero layer norm biases" in said and "145 tensors" in said


def test_a_torch_file_gives_the_same(golden, tmp_path):
    for ending in ("pt", "safetensors"):
        run(golden / f"laq_seq4.{ending}", tmp_path / ending, "--image_size", "64")
    a, b = (read(tmp_path / ending)[1] for ending in ("pt", "safetensors"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_torch_file_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "laq.pt").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"lapa_jax\[torch\]"):
        run(tmp_path / "laq.pt", tmp_path / "out")


def test_a_disk_without_room_is_refused_before_anything_is_written(golden, tmp_path, monkeypatch):
    size = safetensors_size = (golden / "laq_seq4.safetensors").stat().st_size
    usage = lambda path: __import__("collections").namedtuple("Usage", "free")(size)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    run(golden / "laq_seq4.safetensors", tmp_path / "fits", "--image_size", "64")
    size = safetensors_size // 2
    with pytest.raises(UserError, match=r"laq: 0.0015\d GB will be written, and the disk has room for 0.000765 GB"):
        run(golden / "laq_seq4.safetensors", tmp_path / "laq", "--image_size", "64")
    assert not (tmp_path / "laq").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's unfinished writes
def test_a_full_disk_is_named_and_the_same_command_finishes(golden, tmp_path):
    source, out = golden / "laq_seq4.safetensors", tmp_path / "laq"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # files of more bytes fail, as on a full disk
        with pytest.raises(OSError) as error:
            run(source, out, "--image_size", "64")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(out)
    del error
    gc.collect()  # the unfinished writes go here, and not in a test that knows nothing of them
    run(source, out, "--image_size", "64")
    assert read(out)[0]["code_seq_len"] == 4
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.safetensors", None, "does not exist"),
        ("laq.onnx", b"x", "ends in '.onnx'"),
        ("laq.safetensors", b"not at all", "not a readable safetensors file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / name, tmp_path / "out")
    assert name in str(error.value) and not (tmp_path / "out").exists()


def test_a_wrong_file_writes_nothing(tmp_path):
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"missing .* extra \(1\): weight"):
        run(tmp_path / "other.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_imported_tokenizer_labels_with_the_gap_that_it_is_given(golden, tmp_path):
    import lapa_jax
    from lapa_jax.label.labeller import Labeller

    run(golden / "laq_seq4.safetensors", tmp_path / "laq", "--image_size", "64", "--gap_frames", "3")
    labeller = Labeller(lapa_jax.load(tmp_path / "laq"), "sample", tmp_path / "labels", splits=["val"])
    summary = labeller.run(progress=False)
    assert summary["labels"]["gap"] == {"seconds": 0.6, "frames": 3} and summary["labels"]["gap_frames"] == 3
