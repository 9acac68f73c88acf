"""What the messages in tests/golden/clients hold, and readers of answers written from the formats' descriptions."""

import base64
import json
import pathlib

import msgpack
import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "clients"
PICTURE = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
WRIST = PICTURE[::-1]
STATE = np.array([0.5, -1.0, 0.25, 2.0])
TEXT = "push it"


def recorded(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def read_msgpack(data: bytes) -> dict:
    """As openpi's clients read: maps with the byte string __ndarray__ are arrays."""
    return _arrays(msgpack.unpackb(data))


def _arrays(value):
    if isinstance(value, dict) and b"__ndarray__" in value:
        assert value[b"__ndarray__"] is True and set(value) == {b"__ndarray__", b"data", b"dtype", b"shape"}
        return np.ndarray(tuple(value[b"shape"]), np.dtype(value[b"dtype"]), value[b"data"])
    return {key: _arrays(x) for key, x in value.items()} if isinstance(value, dict) else value


def read_json(text: str):
    """As json_numpy reads: maps with __numpy__ are arrays."""
    return json.loads(text, object_hook=lambda found: _array(found) if "__numpy__" in found else found)


def _array(found: dict) -> np.ndarray:
    data = base64.b64decode(found["__numpy__"])
    return np.frombuffer(data, np.dtype(found["dtype"])).reshape(found["shape"])


def packed(**fields) -> bytes:
    """A message in msgpack, with arrays as the maps that they are by the format's description."""
    array = lambda a: {b"__ndarray__": True, b"data": a.tobytes(), b"dtype": a.dtype.str, b"shape": a.shape}  # noqa: E731
    return msgpack.packb(fields, default=array)
