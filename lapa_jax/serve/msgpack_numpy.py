"""Arrays in messages: msgpack as openpi's clients speak it, JSON as OpenVLA's do. Numpy and msgpack only.

In msgpack an array is a map with byte strings as keys, {b"__ndarray__": true, b"data", b"dtype", b"shape"}, and a numpy
number {b"__npgeneric__": true, b"data", b"dtype"}. In JSON both are {"__numpy__": base64, "dtype", "shape"}, the number
with the shape []. Data are in C order, types written as numpy does ("|u1", "<f4"). Nothing that is read can run code.

The package msgpack-numpy writes arrays otherwise, {b"nd": true, b"type", b"kind", b"shape", b"data"}, and numbers with
b"nd" false: its dialect is read too. Its b"kind" says what it would unpickle, which is refused.
"""

import base64
import functools
import json
import math
import re

import msgpack
import numpy as np

MAX_AXES = 8
MAX_ENTRIES = 4096
"""Of a list or a map in msgpack: its reader makes room for as many as a message claims to hold, level by level."""
MAX_VALUES = 16_384
"""Of a message: numbers, texts, arrays, lists and maps, at all levels. 16 MB of empty lists take either reader 5 to
20 s and 1 GB, with Python's global lock held all the time, so they are counted before they are read."""
MAX_TEXT = 2**20
"""Bytes of one text in msgpack."""

_SIZED = {0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0), 0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),
          0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0),
          0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2), 0xDF: (4, 0, 2)}  # fmt: skip
"""msgpack's first bytes of what says its size: (bytes of the size, further bytes, values an entry; 0: of bytes)."""
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
          0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fmt: skip
"""msgpack's first bytes of numbers and small extensions: bytes behind them."""
_TYPES = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class WireError(ValueError):
    """Bytes that are no message, in one line."""


def pack(value) -> bytes:
    """msgpack of dicts, lists, numbers, texts and arrays."""
    return msgpack.packb(value, default=_packed)


def unpack(data: bytes, dialect: dict | None = None):
    """What `pack` or the package msgpack-numpy packed; arrays are read-only and share the message's memory.

    Args:
      data: the message.
      dialect: gets "package": True where it holds arrays in the package's dialect.

    Raises:
      WireError: not msgpack, or arrays that do not hold what they say.
    """
    _check_count(data)
    try:
        hook = functools.partial(_unpacked, dialect={} if dialect is None else dialect)
        return msgpack.unpackb(
            data, object_hook=hook, max_array_len=MAX_ENTRIES, max_map_len=MAX_ENTRIES, max_str_len=MAX_TEXT
        )
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise WireError(f"the message is not valid msgpack ({_reason(error)})") from None


def to_json(value) -> str:
    """JSON of dicts, lists, finite numbers, texts and arrays."""
    return json.dumps(value, default=_encoded, allow_nan=False, separators=(",", ":"))


def from_json(text: str | bytes):
    """What `to_json` wrote.

    Raises:
      WireError: not JSON in UTF-8, or arrays that do not hold what they say.
    """
    # Each value stands behind one of these, a text between two, and every letter may be written with a backslash:
    # counting bytes is a thousand times as fast as reading them, and a comma in an instruction does no harm.
    for sign in "[{,\"\\":
        count = text.count(sign if isinstance(text, str) else sign.encode())
        if count > 2 * MAX_VALUES:
            raise WireError(f"the message holds {count:,} times {sign}; JSON of at most {MAX_VALUES:,} values is read")
    try:
        return json.loads(text, object_hook=_decoded)
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise WireError(f"the message is not valid JSON ({_reason(error)})") from None


def _check_count(data: bytes) -> None:
    """More than `MAX_VALUES` values in msgpack are a `WireError`. It reads no bodies, and takes a few ms at most."""
    at, count, waiting, end = 0, 0, 1, len(data)
    while waiting and at < end:
        count += 1
        if count > MAX_VALUES:
            raise WireError(f"the message holds more than {MAX_VALUES:,} values")
        first, at, waiting = data[at], at + 1, waiting - 1
        if first in _SIZED:
            size, extra, per_entry = _SIZED[first]
            entries = int.from_bytes(data[at : at + size], "big")
            at += size + extra
        elif 0x80 <= first < 0xC0:  # a short map, list or text
            entries, per_entry = (first & 0x1F, 0) if first >= 0xA0 else (first & 0x0F, 2 if first < 0x90 else 1)
        else:
            at += _FIXED.get(first, 0)
            continue
        waiting, at = (waiting + per_entry * entries, at) if per_entry else (waiting, at + entries)


def _packed(value) -> dict:
    _check(value)
    about = {b"data": value.tobytes() if isinstance(value, np.ndarray) else value.item(), b"dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, **about}
    return {b"__ndarray__": True, **about, b"shape": list(value.shape)}


def _unpacked(entry: dict, dialect: dict):
    named = {key.encode() if isinstance(key, str) else key: value for key, value in entry.items()}
    if {b"nd", b"type", b"data"} <= set(named):  # older msgpack gives its keys as texts
        dialect["package"] = True
        return _of_package(named)
    if b"__ndarray__" in entry:
        return _array(*(entry.get(key) for key in (b"data", b"dtype", b"shape")))
    if b"__npgeneric__" in entry:
        number = entry.get(b"data")
        if not isinstance(number, bool | int | float):
            raise WireError(f"a numpy number holds {_shown(number)}")
        return _type(entry.get(b"dtype")).type(number)
    return entry


def _of_package(entry: dict):
    """An array or a number in the dialect of the package msgpack-numpy."""
    if entry.get(b"kind") not in (b"", "", None):
        raise WireError(f"an array of kind {_shown(entry[b'kind'])} of the package msgpack-numpy; numbers are expected")
    array = _array(entry[b"data"], entry[b"type"], list(entry.get(b"shape") or []))
    return array if entry[b"nd"] is True else array[()]


def _encoded(value) -> dict:
    _check(value)
    data = base64.b64encode(value.tobytes()).decode()
    return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def _decoded(entry: dict):
    if "__numpy__" not in entry:
        return entry
    text = entry["__numpy__"]
    if not isinstance(text, str):
        raise WireError(f"an array's data is {_shown(text)}; base64 is expected")
    array = _array(base64.b64decode(text, validate=True), entry.get("dtype"), entry.get("shape"))
    return array if array.shape else array[()]


def _check(value) -> None:
    if not isinstance(value, np.ndarray | np.generic) or not _TYPES.fullmatch(value.dtype.str):
        kind = value.dtype if isinstance(value, np.ndarray | np.generic) else type(value).__name__
        raise WireError(f"a message cannot hold a {kind}; numbers, texts, bytes, lists, dicts and arrays are possible")


def _array(data, dtype, shape) -> np.ndarray:
    kind = _type(dtype)
    if not isinstance(data, bytes):
        raise WireError(f"an array's data is {_shown(data)}; bytes are expected")
    sizes = isinstance(shape, list) and len(shape) <= MAX_AXES and all(type(n) is int and 0 <= n < 2**31 for n in shape)
    if not sizes:
        raise WireError(f"an array's shape is {_shown(shape)}; a list of at most {MAX_AXES} sizes is expected")
    if (expected := math.prod(shape) * kind.itemsize) != len(data):
        raise WireError(f"an array {dtype} {shape} takes {expected} bytes, the message holds {len(data)}")
    return np.frombuffer(data, kind).reshape(shape) if data else np.zeros(shape, kind)


def _type(dtype) -> np.dtype:
    if not isinstance(dtype, str) or not _TYPES.fullmatch(dtype):
        raise WireError(f"an array's dtype is {_shown(dtype)}; numbers such as '|u1' or '<f4' are expected")
    return np.dtype(dtype)


def _shown(value) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None | list) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else f"{text[:100]}..."
