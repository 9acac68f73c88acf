import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapa_jax.data.formats import npz


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    dtype=st.sampled_from(["f8", ">f4", "i2", "?"]),
    order=st.sampled_from("CF"),
    kind=st.sampled_from(["npy", "npz", "packed"]),
    span=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_rows_are_those_of_numpy(shape, dtype, order, kind, span):
    values = np.asarray(np.random.default_rng(0).integers(0, 99, shape), dtype, order=order)
    start, end = sorted(min(number, shape[0]) for number in span)
    with tempfile.TemporaryDirectory() as folder:
        path, name = pathlib.Path(folder) / ("x.npy" if kind == "npy" else "x.npz"), "" if kind == "npy" else "a"
        if kind == "npy":
            np.save(path, values)
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(path, before=values, a=values, b=values)
        header = npz.headers(path)[name]
        assert (header.shape, header.dtype) == (values.shape, values.dtype)
        rows = npz.read_rows(path, name, start, end)
        assert rows.dtype == values.dtype
        np.testing.assert_array_equal(rows, values[start:end])
        np.testing.assert_array_equal(npz.read_rows(path, name), values)
        with pytest.raises(ValueError, match="rows, .* were expected"):
            npz.read_rows(path, name, 0, shape[0] + 1)


def test_a_pickle_is_never_read(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}, []], dtype=object))
    with pytest.raises(ValueError, match="never read"):
        npz.read_rows(tmp_path / "x.npz", "a")


def test_a_changed_file_is_checked_again(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(999))
    npz.read_rows(path, "a", 0, 1)
    data = bytearray(path.read_bytes())
    data[-700] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match="CRC"):
        npz.read_rows(path, "a", 0, 1)


def test_an_entry_that_swallows_the_next_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(3), b=np.zeros(3), c=np.zeros(3))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 32] = 51  # the length of its comment: that of the next entry, 46 bytes and its name
    path.write_bytes(data)
    with pytest.raises(ValueError, match="should have 3 arrays, 2 can be read"):
        npz.headers(path)
