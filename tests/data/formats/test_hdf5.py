import numpy as np
import pytest

from lapa_jax.data.formats import hdf5


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
