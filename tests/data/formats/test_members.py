import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lapa_jax.data.formats.webdataset.members import Window, load_json, load_npy, load_npz, load_text, rows_of
from tests.data.formats.make_webdataset import npy, npz


@given(hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3)))
def test_arrays_come_back(array):
    read = load_npy(npy(array))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


@given(st.binary(max_size=200), st.integers(0, 150), st.integers(0, 150))
def test_damaged_arrays_are_value_errors(noise, start, cut):
    data = npy(np.arange(6.0))
    for damaged in (noise, data[:start] + noise + data[start + cut :]):
        try:
            load_npy(damaged)
        except ValueError as error:
            assert str(error).startswith("no readable array: ")


@pytest.mark.parametrize(
    "data",
    [
        npy(np.zeros(3))[:-1],
        npy(np.zeros(3)) + b"x",
        npy(np.array([{}])),
        npy(np.zeros(3)).replace(b"(3,)", b"(3000000000000,)"),
    ],
)
def test_arrays_that_are_refused(data):
    with pytest.raises(ValueError, match="no readable array"):
        load_npy(data)


def test_wanted_arrays_of_an_npz():
    data = npz(action=np.arange(3.0), pickled=np.array([{}]), other=np.zeros(2))
    arrays, others = load_npz(data, {"action", "state"})
    assert list(arrays) == ["action"] and others == ["other", "pickled"]
    np.testing.assert_array_equal(arrays["action"], [0, 1, 2])
    with pytest.raises(ValueError, match="array 'pickled'"):
        load_npz(data, {"pickled"})
    flipped = bytearray(data)
    flipped[data.index(np.float64(2).tobytes())] ^= 1
    with pytest.raises(ValueError, match="CRC"):
        load_npz(bytes(flipped), {"action"})
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("action.npy", npy(np.zeros(1)))
        file.writestr("action.npy", npy(np.ones(1)))
    with pytest.raises(ValueError, match="two arrays of one name"):
        load_npz(twice.getvalue(), {"action"})


def test_text_and_json():
    assert load_text("\ufeff go \n".encode()) == "go" and load_json(b' {"a": [1]} ') == {"a": [1]}
    for data in (b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
        with pytest.raises(ValueError, match="no valid JSON"):
            load_json(data)
    with pytest.raises(ValueError, match="no UTF-8 text"):
        load_text(b"\xff")


@pytest.mark.parametrize(
    "name, values, ndim, expected",
    [
        ("action", [1, 2], 1, [1, 2]),
        ("action", 3.5, 1, [3.5]),
        ("state", [[1, 2], [3, 4]], 2, [[1, 2], [3, 4]]),
        ("state", [1, 2], 2, [[1], [2]]),
        ("latent", np.array([7, 0], np.int64), 1, [7, 0]),
        ("latent", [3.0], 1, [3]),
        ("action", [[[1]]], 2, "expected .steps, values."),
        ("action", [1, [2]], 1, "different lengths"),
        ("action", ["1"], 1, "no real numbers"),
        ("action", [None], 1, "objects"),
        ("action", [1j], 1, "no real numbers"),
        ("action", [float("inf")], 1, "not finite"),
        ("action", [1e300], 1, "beyond float32"),
        ("latent", [2**40], 1, "no int32"),
        ("latent", [0.5], 1, "no int32"),
        ("latent", [float("nan")], 1, "no int32"),
    ],
)
def test_rows_of_columns(name, values, ndim, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            rows_of(name, values, ndim)
        return
    rows = rows_of(name, values, ndim)
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == (np.int32 if name == "latent" else np.float32)


@given(
    st.binary(max_size=60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(-70, 70), st.integers(0, 2), st.integers(-1, 70))),
)
def test_a_window_is_a_file(tmp_path_factory, data, start, size, moves):
    path = tmp_path_factory.getbasetemp() / "window"
    path.write_bytes(data)
    with Window(path, start, size) as window:
        expected = io.BytesIO(data[start : start + size].ljust(size, b"?"))
        there = len(data[start : start + size])
        for offset, whence, count in moves:
            if whence == 0:
                offset = abs(offset)
            position = max(0, {0: 0, 1: expected.tell(), 2: size}[whence] + offset)
            assert window.seek(offset, whence) == expected.seek(position) == window.tell()
            read = expected.read(count)[: max(0, there - position)]
            assert window.read(count) == read
            expected.seek(window.tell())
