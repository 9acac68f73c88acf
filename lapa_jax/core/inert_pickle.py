"""Pickles as data: every name in them stands for something of ours that only records, and any other name is refused.

A pickle is a program: it names functions and has them called while it is read. Here a name is never imported. It is
looked up in a table of stand-ins, so that what a hostile file calls is at most one of these, with its own arguments.
"""

import pathlib
import pickle
from collections.abc import Callable, Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder

FLOATS = ("f2", "f4", "f8", "bfloat16")


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle by a table of stand-ins, {"module.name": what the name stands for}.

    `stand_in` is asked for names that are not in the table; None, as by default, refuses them.
    """

    def __init__(self, file, path: pathlib.Path, names: Mapping[str, Callable], *, persistent: Callable | None = None):
        super().__init__(file, encoding="latin1")
        self._path, self._names, self._persistent = path, names, persistent

    def find_class(self, module: str, name: str):
        """The stand-in of a name. Not the inherited way, which imports the module."""
        full = f"{module}.{name}"
        allowed = self._names.get(full) or self.stand_in(module, name)
        if allowed is None:
            raise UserError(f"{self._path} asks for {full}, which is no array and may be a program; nothing was run. "
                            "Use its publisher's file, or convert it to safetensors where you trust it")  # fmt: skip
        return allowed

    def stand_in(self, module: str, name: str) -> Callable | None:
        return None

    def persistent_load(self, identifier):
        if self._persistent is None:
            raise UserError(f"{self._path} refers to other files; a file of arrays does not")
        return self._persistent(identifier)


def load(unpickler: InertUnpickler, path: pathlib.Path):
    """What a pickle holds; whatever goes wrong while it is read is a `UserError` that names the file."""
    try:
        return unpickler.load()
    except UserError:
        raise
    except Exception as error:  # stand-ins that are called in unforeseen ways raise whatever they do
        raise UserError(f"{path} is no whole file of arrays ({type(error).__name__}: {error})") from None


def read_arrays(path: str | pathlib.Path) -> dict:
    """A pickle of nested dicts of float arrays, of numpy or jax, in a flax FrozenDict or not.

    Returns:
      {name: {... : array}}, arrays read-only and as they were stored.

    Raises:
      UserError: no such file, a damaged one, one that names anything else, or something that is no array of floats.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if why := placeholder(path):
        raise UserError(why)
    with open(path, "rb") as file:
        content = load(InertUnpickler(file, path, _NUMPY), path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, not named arrays")
    return _plain(content, path, "")


def _plain(content: dict, path: pathlib.Path, prefix: str) -> dict:
    plain = {}
    for name, value in content.items():
        if isinstance(value, dict):
            plain[name] = _plain(value, path, f"{prefix}{name}/")
        elif isinstance(value, _Array):
            plain[name] = value.array(path, f"{prefix}{name}")
        else:
            raise UserError(f"{path}: {prefix}{name} is a {type(value).__name__}, not an array")
        if not isinstance(name, str):
            raise UserError(f"{path} names an entry {prefix}{name!r}; names are words")
    return plain


class _Dtype:
    """What stands for a numpy.dtype: its code, and the order of the bytes."""

    def __init__(self, code="", align=False, copy=False):
        self.code, self.order = getattr(code, "code", code), "<"

    def __setstate__(self, state):
        self.order = {"|": "<", "=": "<"}.get(state[1], state[1])

    def dtype(self) -> np.dtype | None:
        """The dtype of numpy; None where it is not one of floats."""
        if self.code == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(f"{self.order}{self.code}") if self.code in FLOATS and self.order in "<>" else None


class _Array:
    """What stands for a numpy.ndarray: its bytes, and how they are to be taken."""

    def __init__(self):
        self.state = None

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.columns_first, self.data = self.state = tuple(state)

    def array(self, path: pathlib.Path, name: str) -> np.ndarray:
        dtype = self.dtype.dtype() if self.state is not None and isinstance(self.dtype, _Dtype) else None
        if dtype is None:
            code = getattr(getattr(self, "dtype", None), "code", "nothing")
            raise UserError(f"{path}: {name} is an array of '{code}'; floats are expected")
        shape, data = tuple(self.shape), self.data
        if isinstance(data, str):  # bytes of Python 2, by way of latin1
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray) or len(data) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise UserError(f"{path}: {name} of shape {shape} has bytes of another number; download the file again")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if self.columns_first else "C")


class _Named:
    """A class that is only named, as an argument: numpy.ndarray, ml_dtypes.bfloat16."""

    def __init__(self, code: str):
        self.code = code


def _reconstruct(kind, shape, code) -> _Array:
    return _Array()


def _from_buffer(data, dtype, shape, order) -> _Array:
    """How protocol 5 writes an array that lies in one piece."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return array


def _from_jax(function, arguments, state, kind) -> _Array:
    """jax writes the array of numpy that it holds, and in `kind` what numpy has no word for."""
    array = _Array()
    array.__setstate__(state)
    return array


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    """How old protocols write bytes."""
    return text.encode("latin1")


_NUMPY = {
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "numpy.ndarray": _Named("ndarray"),
    "numpy.dtype": _Dtype,
    "ml_dtypes.bfloat16": _Named("bfloat16"),
    "_codecs.encode": _encoded,
    "__builtin__.bytes": lambda: b"",  # how protocol 2 writes none
    "jax._src.array._reconstruct_array": _from_jax,
    "flax.core.frozen_dict.FrozenDict": dict,
}
