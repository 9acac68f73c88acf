"""Files of `torch.save`, without torch: tensors by name, read one at a time.

Such a file is a zip archive: `data.pkl`, a pickle of the object in which each tensor is a reference, and one member of
raw bytes for each storage. The pickle is read as data (`inert_pickle`). Checkpoints of trainers hold their own objects
beside the weights; those of known families are read as `Opaque`, which does nothing, and everything else is refused.
"""

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Mapping

import numpy as np

from lapa_jax.core import inert_pickle
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder

DTYPES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": "bfloat16", "Long": "<i8", "Int": "<i4",
          "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"}  # fmt: skip
OPAQUE = re.compile(
    r"(torch|lightning|pytorch_lightning|lightning_fabric|lightning_utilities|jsonargparse|omegaconf|numpy|pathlib|"
    r"argparse|collections|functools|typing|genie|latent_action_model|prismatic)\b.*"
    r"|(builtins|__builtin__)\.(set|frozenset|complex|slice|range|bytearray)"
)
"""Names of what trainers keep beside the weights. Nothing of it is imported or called."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: in the storage `key`, from its element `offset` on. shape, strides: in elements."""

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """Stands for an object that is of no interest, and takes whatever a pickle does with objects."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        """Ignored, as all that fills the object."""

    extend = add = append


class TorchFile:
    """An open file of `torch.save`.

    Attributes:
      path: the file. content: the object in it, with a `Tensor` in the place of each tensor.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads what is in the file, but no tensor.

        Raises:
          UserError: no such file, one that is not of this format or damaged, or one that names what is refused.
        """
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist")
        if why := placeholder(self.path):
            raise UserError(why)
        try:
            self._zip = zipfile.ZipFile(self.path)
            members = self._zip.namelist()
        except zipfile.BadZipFile:
            raise UserError(f"{path} is no whole file of torch.save (torch 1.6 or newer); download it again") from None
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in members and self._zip.read(f"{self._root}byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine; save it again on another")
        with self._zip.open(pickles[0]) as file:
            self.content = inert_pickle.load(_Unpickler(file, self.path, _NAMES, persistent=_storage), self.path)

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of a tensor, in its own dtype.

        Raises:
          UserError: the storage is missing, too short or damaged.
        """
        name = f"{self._root}data/{tensor.key}"
        size = tensor.dtype.itemsize
        last = sum(stride * (side - 1) for stride, side in zip(tensor.strides, tensor.shape, strict=True))
        count = 0 if 0 in tensor.shape else last + 1
        try:
            with self._zip.open(name) as file:
                file.seek(tensor.offset * size)
                data = file.read(count * size)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(f"{self.path} is damaged at {name} ({error}); download it again") from None
        if len(data) != count * size:
            raise UserError(f"{self.path} is damaged: {name} is too short; download it again")
        strides = [stride * size for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(np.frombuffer(data, tensor.dtype), tensor.shape, strides).copy()

    def tensors(self, content: Mapping | None = None, prefix: str = "") -> dict[str, Tensor]:
        """{name: Tensor} of nested dicts, names joined by dots; what is no tensor is left out."""
        tensors = {}
        for name, value in (self.content if content is None else content).items():
            if isinstance(value, Mapping):
                tensors |= self.tensors(value, f"{prefix}{name}.")
            elif isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
        return tensors


class _Unpickler(inert_pickle.InertUnpickler):
    def stand_in(self, module: str, name: str):
        full = f"{module}.{name}"
        if storage := re.fullmatch(r"torch\.(\w+)Storage", full):
            return _Named(DTYPES.get(storage[1]))
        return Opaque if OPAQUE.fullmatch(full) else None


@dataclasses.dataclass(frozen=True)
class _Named:
    """A class of storages that is only named; dtype: None where numpy has no such numbers."""

    dtype: str | None


class _Dict(dict):
    """An OrderedDict; state dicts of modules carry an attribute besides, which is of no interest."""

    def __setstate__(self, state):
        pass


def _storage(identifier) -> tuple[str, str | None]:
    kind, of, key, *_ = identifier
    if kind != "storage" or not isinstance(of, _Named):
        raise ValueError(f"a reference to {kind!r}")
    return str(key), of.dtype


def _tensor(storage, offset, size, stride, *rest) -> Tensor | Opaque:
    key, dtype = storage
    shape, strides = (tuple(int(n) for n in numbers) for numbers in (size, stride))
    if dtype is None:
        return Opaque()
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} and strides {strides} from {offset} on")
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    return Tensor(key, np.dtype(dtype), int(offset), shape, strides)


_NAMES = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch.Size": tuple,
    "collections.OrderedDict": _Dict,
}
