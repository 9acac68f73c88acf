"""Streaming checkpoints, written by msgpack and flax as the official code does, read by headers."""

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest

from lapa_jax.core.array_stream import ArrayStream
from lapa_jax.core.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write({path: array}, chunk) -> the file, arrays of more than `chunk` bytes in chunks."""

    def make(arrays, chunk=2**30):
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
        packer = msgpack.Packer()
        with open(tmp_path / "params", "wb") as file:
            for name, array in arrays.items():
                file.write(packer.pack((tuple(name.split("/")), flax.serialization.to_bytes(array))))
        return tmp_path / "params"

    return make


def random_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "transformer/wte/embedding": rng.normal(size=(7, 5)).astype(ml_dtypes.bfloat16),
        "h/kernel": rng.normal(size=(3, 40, 11)).astype(ml_dtypes.bfloat16),
        "norm/kernel": rng.normal(size=9).astype(np.float32),
        "half": rng.normal(size=(300, 2)).astype(np.float16),
    }


@pytest.mark.parametrize("chunk", [2**30, 1000, 37])
def test_arrays_and_rows_come_back_to_the_bit(write, chunk):
    stream = ArrayStream(write(arrays := random_arrays(), chunk))
    assert list(stream.arrays) == list(arrays) and stream.others == []
    assert (len(stream.arrays["h/kernel"].pieces) > 1) == (chunk < 2**30)
    for name, array in arrays.items():
        assert stream.arrays[name].shape == array.shape and stream.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(stream.read(name).view(np.uint8), array.view(np.uint8))
        np.testing.assert_array_equal(stream.read(name, 1, 3).view(np.uint8), array[1:3].view(np.uint8))


def test_the_released_layout_is_what_flax_reads(shared):
    path = shared / "golden" / "released" / "lapa7b_small" / "params"
    stream = ArrayStream(path)
    with open(path, "rb") as file:
        for key, value in msgpack.Unpacker(file, max_buffer_size=2**31 - 1):
            expected = np.asarray(flax.serialization.from_bytes(None, value))
            read = stream.read("/".join(key))
            assert read.dtype == expected.dtype
            np.testing.assert_array_equal(read.view(np.uint16), expected.view(np.uint16))
    assert {name for name, stored in stream.arrays.items() if len(stored.pieces) > 1} == {
        "transformer/vte/embedding", "vision_head/kernel"}  # fmt: skip


def test_counters_are_named_apart(write):
    stream = ArrayStream(write({**random_arrays(), "step": np.int32(3), "opt_state/count": np.arange(2)}))
    assert stream.others == ["step", "opt_state/count"]


def test_a_cut_file_says_where(write):
    whole = write(random_arrays(), 1000)
    data = whole.read_bytes()
    for length in range(1, len(data), 97):
        whole.write_bytes(data[:length])
        try:
            assert len(ArrayStream(whole).arrays) < 4, "a cut between two entries leaves a shorter checkpoint"
        except UserError as error:
            assert "no whole streaming checkpoint" in str(error) and "too early" in str(error)


def test_other_files_are_refused(tmp_path):
    for content in (b"PK\x03\x04 a zip", b"\x80\x04\x95", msgpack.packb({"a": 1}), msgpack.packb([1, 2]), b""):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(UserError, match="no whole streaming checkpoint|holds no arrays"):
            ArrayStream(tmp_path / "other")
    with pytest.raises(UserError, match="does not exist"):
        ArrayStream(tmp_path / "absent")


def test_a_changed_file_is_read_or_refused_and_nothing_else(write):
    whole = write(random_arrays(), 100)
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 2):
            damaged[place] = rng.integers(256)
        whole.write_bytes(damaged)
        try:
            stream = ArrayStream(whole)
            assert all(stream.read(name).shape == stored.shape for name, stored in stream.arrays.items())
        except UserError:
            continue
