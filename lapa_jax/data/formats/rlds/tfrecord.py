"""TFRecord files without TensorFlow: the framing of records, which is all that the format consists of.

A record is its length (uint64, little endian), the masked CRC-32C of those eight bytes, the payload, and the masked
CRC-32C of the payload. The mask rotates a checksum by 15 bits and adds a constant, so that checksums of data that hold
checksums stay good ones (TensorFlow's `core/lib/io/record_writer.h`). A CRC-32C notices every change within 32
neighbouring bits, so no flipped byte goes unseen.
"""

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

from lapa_jax.core.files import atomic_path

HEADER, FOOTER = 12, 4
"""Bytes of a record before and after its payload."""

_MASK = 0xA282EAD8
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstandard", b"\x78": "zlib"}
_BUFFER = 1 << 12


class Record(NamedTuple):
    """Where a record lies: the offset of its first byte in the file, and the length of its payload in bytes."""

    offset: int
    length: int


def index(path: str | os.PathLike) -> list[Record]:
    """Every record of a file, in order. Reads the headers only, never a payload.

    Raises:
      ValueError: the file is truncated, compressed or no TFRecord; says at which byte.
      OSError: it cannot be read.
    """
    records, offset = [], 0
    with open(path, "rb", buffering=_BUFFER) as file:
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            file.seek(offset)
            length = _length(file.read(HEADER), offset)
            end = offset + HEADER + length + FOOTER
            if end > size:
                here = f"record {len(records)} at byte {offset} needs {end - offset} bytes"
                raise ValueError(f"the file is truncated: {here}, {size - offset} are there")
            records.append(Record(offset, length))
            offset = end
    return records


def read(path: str | os.PathLike, offset: int, length: int) -> bytes:
    """The payload of one record, by its place in `index`.

    Raises:
      ValueError: the record is damaged, or is not the one that was indexed; says at which byte.
      OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = _pread(descriptor, HEADER + length + FOOTER, offset)
    finally:
        os.close(descriptor)
    if _length(data[:HEADER], offset) != length:
        raise ValueError(f"the record at byte {offset} has another length than when the file was indexed")
    if len(data) < HEADER + length + FOOTER:
        raise ValueError(f"the file is truncated: it ends {len(data)} bytes after the record's start at byte {offset}")
    payload = data[HEADER : HEADER + length]
    if checksum(payload) != struct.unpack("<I", data[HEADER + length :])[0]:
        raise ValueError(f"the record at byte {offset} is damaged: its payload does not match its checksum")
    return payload


def write(path: str | os.PathLike, payloads: Iterable[bytes]) -> list[Record]:
    """Writes payloads as a TFRecord file, atomically. Returns where each of them lies."""
    records, offset = [], 0
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for payload in payloads:
            file.write(frame(payload))
            records.append(Record(offset, len(payload)))
            offset += HEADER + len(payload) + FOOTER
    return records


def frame(payload: bytes) -> bytes:
    """One record as it stands in a file."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", checksum(length)) + payload + struct.pack("<I", checksum(payload))


def checksum(data: bytes) -> int:
    """The masked CRC-32C of `data`."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _length(header: bytes, offset: int) -> int:
    """The payload's length in bytes that a header states."""
    if len(header) < HEADER:
        raise ValueError(f"the file is truncated: {len(header)} bytes of a record's header are left at byte {offset}")
    length, crc = struct.unpack("<QI", header)
    if checksum(header[:8]) == crc:
        return length
    if offset == 0:
        for start, name in _COMPRESSED.items():
            if header.startswith(start):
                raise ValueError(f"it begins like a {name}-compressed file; uncompress it first")
    raise ValueError(f"there is no TFRecord header at byte {offset} (the checksum of the length does not match)")


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
