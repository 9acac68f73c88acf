import h5py
import numpy as np
import pytest

from lapa_jax.data.formats import hdf5


@pytest.mark.parametrize("chunks", [None, (1, 8, 8, 3), (5, 4, 4, 1), (13, 8, 8, 3)])
def test_pictures_come_one_by_one_whatever_the_chunks(tmp_path, chunks, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 255, (13, 8, 8, 3), np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", data=pictures, chunks=chunks)
        assert hdf5.is_pictures(data)
        for block in (1, 600, 1 << 20):
            monkeypatch.setattr(hdf5, "_BLOCK", block)
            np.testing.assert_array_equal(list(hdf5.read_pictures(data)), pictures)


def test_text_in_all_its_dresses():
    for value in ("é", "é".encode(), np.str_("é"), np.bytes_("é".encode()), np.array(["é"]), np.array("é".encode())):
        assert hdf5.text(value) == "é" and type(hdf5.text(value)) is str
    for value in (3, np.array(["a", "b"]), None):
        with pytest.raises(ValueError, match="should be"):
            hdf5.text(value)


def test_errors_do_not_say_where_the_file_lies(tmp_path):
    for content in (b"", b"no HDF5"):
        (tmp_path / "x.h5").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be opened as HDF5") as error, hdf5.open_hdf5(tmp_path / "x.h5"):
            pass
        assert str(tmp_path) not in str(error.value)
