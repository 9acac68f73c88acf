"""Writes files as `torch.save` does, without torch, from the format's description."""

import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage",
            "bfloat16": "BFloat16Storage"}  # fmt: skip


def save(path, content, root: str = "archive", extra: bytes = b"") -> None:
    """Writes nested dicts of arrays and plain values. extra: opcodes of one more value, under the key "extra"."""
    storages: list[np.ndarray] = []
    body = _value(content, storages)
    if extra:
        body = body + _value("extra", storages) + extra + b"s"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{root}/data.pkl", b"\x80\x02" + body + b".")
        file.writestr(f"{root}/byteorder", "little")
        for key, values in enumerate(storages):
            file.writestr(f"{root}/data/{key}", values.tobytes())


def _value(value, storages: list[np.ndarray]) -> bytes:
    if isinstance(value, Mapping):
        return b"}" + b"".join(_value(k, storages) + _value(v, storages) + b"s" for k, v in value.items())
    if not isinstance(value, np.ndarray):
        return pickle.dumps(value, 2)[2:-1]
    numbers = np.ascontiguousarray(value)
    storages.append(numbers)
    strides = [stride // numbers.itemsize for stride in numbers.strides]
    storage = b"(" + _value("storage", []) + f"ctorch\n{STORAGES[numbers.dtype.name]}\n".encode()
    storage += _value(str(len(storages) - 1), []) + _value("cpu", []) + _int(numbers.size) + b"tQ"
    sizes = b"".join(b"(" + b"".join(_int(n) for n in some) + b"t" for some in (numbers.shape, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _int(0) + sizes + b"\x89" + hooks + b"tR"


def _int(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)
