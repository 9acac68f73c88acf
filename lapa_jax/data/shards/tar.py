"""The little of the tar format that shards need: members with fixed headers, and a strict scan.

Equal contents give equal bytes: owner 0, time 0, mode 0644, members in the order given. The scan reads headers only and
refuses whatever could surprise a reader: links, devices, names that leave the folder, damaged or missing blocks.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks end an archive."""

_REGULAR = (b"0", b"\0", b"7")
_LONG_NAME, _PAX, _PAX_GLOBAL, _FOLDER = b"L", b"x", b"g", b"5"
_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_BUFFER = 1 << 20
_CRC = b"crc32c:"
"""The archive format has no checksum of the data. Ours stands in the header field for the owner's name, which no reader
of our shards uses and every other tool ignores."""


class Member(NamedTuple):
    """A regular file of a tar: its name, offset and bytes of its data, and their CRC-32C where the header has it."""

    name: str
    offset: int
    size: int
    crc: int | None


def checksum(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    return google_crc32c.value(data)


def member(name: str, data: bytes) -> bytes:
    """One regular file as it stands in a tar (POSIX ustar): header, data, padding to a multiple of 512 bytes."""
    encoded = name.encode()
    if not encoded or len(encoded) > 100:
        raise UserError(f"tar member name '{name}' has {len(encoded)} bytes; 1 to 100 are possible")
    header = bytearray(BLOCK)
    header[0 : len(encoded)] = encoded
    header[100:124] = b"0000644\0" + b"0000000\0" * 2  # mode, owner, group
    header[124:136] = b"%011o\0" % len(data)
    header[136:148] = b"00000000000\0"  # time
    header[148:156] = b" " * 8  # the checksum counts itself as blanks
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[265:280] = _CRC + b"%08x" % checksum(data)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


def scan(path: str | os.PathLike) -> Iterator[Member]:
    """Yields every regular file of a tar, in order.

    Raises:
      UserError: names the tar, the offset and the remedy when the archive is truncated, damaged, compressed, or holds a
        link, a device, or a name that points outside the folder it would be unpacked to.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        file = open(path, "rb", buffering=_BUFFER)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield from _scan(path, file, size)


def _scan(path: pathlib.Path, file, size: int) -> Iterator[Member]:
    offset, long_name = 0, None
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise _damage(path, offset, "the end mark is missing, the archive is truncated")
        if not any(header):
            _check_end(path, file, offset)
            return
        kind, name, length = _header(path, offset, header, "replace" if long_name else "strict")
        data = offset + BLOCK
        if data + length > size:
            raise _damage(path, offset, f"member '{name}' is truncated ({length} bytes, {size - data} are there)")
        # Data are padded to whole blocks.
        offset = data + length + -length % BLOCK
        if kind in (_LONG_NAME, _PAX):
            try:
                # A pax header without a path leaves an earlier GNU long name as it is.
                long_name = _long_name(kind, file.read(length)) or long_name
            except ValueError:
                raise _damage(path, data - BLOCK, "the long name here is damaged") from None
        elif kind in _REGULAR:
            yield Member(_safe_name(path, data, long_name or name), data, length, _stated_checksum(header))
            long_name = None
        elif kind in (_FOLDER, _PAX_GLOBAL):
            long_name = None
        else:
            what = _REFUSED.get(kind, f"of unknown type {kind!r}")
            raise _damage(path, data - BLOCK, f"member '{name}' is {what}; only regular files are read")


def _check_end(path: pathlib.Path, file, offset: int) -> None:
    """Only zeros may follow the end mark: archives that were joined would lose all but the first."""
    while block := file.read(_BUFFER):
        if any(block):
            raise _damage(path, offset, "data follow the end mark (two archives joined into one file?)")


def _header(path: pathlib.Path, offset: int, header: bytes, errors: str) -> tuple[bytes, str, int]:
    """Type, name and size. `errors`: the short copy of a long name may end within a character."""
    if header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:6] == b"\xfd7zXZ\0":
        raise UserError(f"{path} is compressed; random access needs a plain tar, decompress it first")
    try:
        checksum = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
        if header[124] & 0x80:  # sizes from 8 GiB on are written in base 256
            length = int.from_bytes(header[125:136], "big")
        else:
            length = int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
        name = header[:100].split(b"\0")[0].decode(errors=errors)
        # POSIX ustar splits names of more than 100 bytes; GNU's magic "ustar  " has other fields there.
        if header[257:262] == b"ustar" and header[262:263] == b"\0" and header[345]:
            name = header[345:500].split(b"\0")[0].decode() + "/" + name
    except ValueError:
        raise _damage(path, offset, "this is no tar header") from None
    if checksum != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise _damage(path, offset, "the checksum of this header is wrong")
    return header[156:157], name, length


def _stated_checksum(header: bytes) -> int | None:
    owner = header[265:297]
    try:
        return int(owner[len(_CRC) : len(_CRC) + 8], 16) if owner.startswith(_CRC) else None
    except ValueError:
        return None


def _long_name(kind: bytes, data: bytes) -> str | None:
    """The name in a GNU long-name member, or in a pax header of "length key=value" records."""
    if kind == _LONG_NAME:
        return data.rstrip(b"\0").decode()
    while data:
        length = int(data.split(b" ", 1)[0])
        key, _, value = data[:length].split(b" ", 1)[-1].partition(b"=")
        if key == b"path":
            return value.rstrip(b"\n").decode()
        if length <= 0:
            raise ValueError("a record without a length")
        data = data[length:]
    return None


def _safe_name(path: pathlib.Path, data: int, name: str) -> str:
    name = name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/"):
        raise _damage(path, data - BLOCK, f"member '{name}' points outside the archive")
    return name


def _damage(path: pathlib.Path, offset: int, what: str) -> UserError:
    return UserError(placeholder(path) or f"{path} at byte {offset}: {what}; copy or convert this shard again")
