"""Pickles are data here: arrays come back to the bit; what asks to be run is refused by its name, and not run."""

import os
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.inert_pickle import read_arrays


def written(path, content, protocol=pickle.DEFAULT_PROTOCOL):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def random_arrays():
    rng = np.random.default_rng(0)
    return {
        "encoder": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": np.zeros(4, np.float16)},
        "columns_first": np.asfortranarray(rng.normal(size=(3, 5))),
        "slice": rng.normal(size=(8, 6)).astype(np.float32)[::2, 1:4],
        "swapped": rng.normal(size=3).astype(">f4"),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_come_back_to_the_bit(tmp_path, protocol):
    content = random_arrays()
    read = read_arrays(written(tmp_path / "arrays", content, protocol))
    expected = tree.flatten(content)
    assert tree.flatten(read).keys() == expected.keys()
    for name, value in tree.flatten(read).items():
        assert value.dtype == expected[name].dtype and value.shape == expected[name].shape, name
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_arrays_of_jax_and_frozen_dicts_come_back_too(tmp_path):
    content = FrozenDict({"a": {"b": jnp.arange(6.0).reshape(2, 3)}, "half": jnp.arange(4, dtype=jnp.bfloat16)})
    read = read_arrays(written(tmp_path / "arrays", content))
    np.testing.assert_array_equal(read["a"]["b"], np.arange(6.0).reshape(2, 3))
    assert read["half"].dtype == jnp.bfloat16 and read["half"].tolist() == [0, 1, 2, 3]


def test_the_released_layout_is_what_pickle_reads(shared):
    path = shared / "golden" / "released" / "lapa7b_small" / "vqgan"
    expected = tree.flatten(pickle.loads(path.read_bytes()))  # noqa: S301 (our own file)
    read = tree.flatten(read_arrays(path))
    assert read.keys() == expected.keys() and all(np.array_equal(read[name], expected[name]) for name in read)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (lambda path: Call(os.system, f"touch {path}"), r"posix\.system"),
        (lambda path: {"encoder": np.zeros(3), "x": Call(os.system, f"touch {path}")}, r"posix\.system"),
        (lambda path: Call(eval, f"open({str(path)!r}, 'w')"), r"builtins\.eval"),
        (lambda path: Call(open, str(path), "w"), r"(_io|io)\.open"),
        (lambda path: Call(getattr, os, "system"), r"builtins\.getattr|importlib"),
        (lambda path: Call(np.load, str(path)), r"numpy.*load"),
    ],
)
def test_a_pickle_that_wants_to_run_something_is_refused_and_runs_nothing(tmp_path, hostile, name):
    trace = tmp_path / "trace"
    try:
        path = written(tmp_path / "hostile", hostile(trace))
    except TypeError:  # a module cannot be pickled: the name alone is what a hostile file would hold
        (path := tmp_path / "hostile").write_bytes(b"cbuiltins\ngetattr\n.")
    with pytest.raises(UserError, match=name):
        read_arrays(path)
    assert not trace.exists()


def test_dotted_names_do_not_reach_beyond_the_table(tmp_path):
    """Protocol 4 lets a name have dots, by which `numpy.ndarray` would lead on to its attributes."""
    hostile = b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__class__.mro\x93."
    (tmp_path / "hostile").write_bytes(hostile)
    with pytest.raises(UserError, match=r"numpy.ndarray.__class__.mro"):
        read_arrays(tmp_path / "hostile")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([np.zeros(3)], "holds a list"),
        ({}, "not named arrays"),
        ({"a": {"b": [1, 2]}}, "a/b is a list"),
        ({"a": np.arange(3)}, "a is an array of 'i8'; floats"),
        ({"a": np.array([object()], dtype=object)}, "builtins.object|array of 'O8'"),
        ({3: np.zeros(2)}, "names an entry 3"),
    ],
)
def test_what_is_no_tree_of_floats_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_arrays(written(tmp_path / "other", content))


def test_a_cut_or_changed_file_is_refused(tmp_path):
    whole = pickle.dumps({"a": np.arange(64.0), "b": np.zeros((4, 4), np.float32)})
    path = tmp_path / "damaged"
    for length in range(1, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_arrays(path)
    rng = np.random.default_rng(0)
    for _ in range(300):  # whatever comes of it, it is arrays or a UserError
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, np.ndarray) for value in tree.flatten(read_arrays(path)).values())
        except (UserError, ValueError) as error:
            assert isinstance(error, UserError) or "tree key" in str(error)
