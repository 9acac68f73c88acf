import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.reading import flat_names, join_names, numeric_rows, reading, walk


def test_walking_leaves_out_what_no_user_put_there(tmp_path):
    for name in ("b/2.x", "b/10.x", "a.x", "._a.x", "__MACOSX/c.x", ".cache/d.x", "Thumbs.db", "out/e.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folders = [(folder.relative_to(tmp_path).as_posix(), names) for folder, names in walk(tmp_path, tmp_path / "out")]
    assert folders == [(".", ["a.x"]), ("b", ["2.x", "10.x"])]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i1", "u2", "i8", "?"])
def test_rows_of_any_real_dtype(dtype):
    values = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    rows = numeric_rows(values.T, "x")
    assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.tolist() == [[0, 1, 1], [1, 0, 1]]


@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_rows_are_finite_or_refused(numbers):
    values = np.array(numbers)[:, None]
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    if np.isfinite(expected).all():
        np.testing.assert_array_equal(numeric_rows(values, "x"), expected)
    else:
        first = next(i for i, number in enumerate(expected[:, 0]) if not np.isfinite(number))
        with pytest.raises(ValueError, match=rf"in row {first}$"):
            numeric_rows(values, "x")


def test_errors_name_the_place_and_not_where_the_data_lie():
    with pytest.raises(ValueError, match=r"^rows: KeyError: 'x'$"), reading("rows"):
        raise KeyError("x")
    with pytest.raises(ValueError, match=r"^rows: OSError: cannot open 'c.parquet' now$"), reading("rows"):
        raise OSError("cannot open '/a/b-1/c.parquet' now")
    with pytest.raises(ValueError, match=r"^a: b: wrong$"), reading("a"), reading("b"):
        raise ValueError("wrong")
    with pytest.raises(UserError, match="^as it is$"), reading("a"):
        raise UserError("as it is")


def test_names_of_dimensions():
    assert flat_names([["a", "b"], ["c"]]) == flat_names({"m": ["a", "b"], "n": "c"}) == ["a", "b", "c"]
    assert flat_names({"y": 1, "x": 0}) == ["x", "y"] and flat_names(None) == []
    assert join_names({"s": (2, ["x", "y"])}) == ["x", "y"] and join_names({"s": (2, ["x"])}) == []
    assert join_names({"s": (2, ["x", "y"]), "f": (1, [])}) == ["s.x", "s.y", "f.0"]
