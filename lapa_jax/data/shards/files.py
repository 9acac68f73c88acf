"""Positioned reads from many files: open files are shared by threads, and left behind by pickling."""

import errno
import os
import pathlib
import threading

from lapa_jax.core.errors import UserError


class DamagedSample(UserError):
    """A stored sample that cannot be read. The loader may leave it out and count it; see `data.max_bad_samples`."""


class Files:
    """Reads with `os.pread`, which has no file position: threads need no lock to share a descriptor."""

    def __init__(self):
        self._descriptors: dict[pathlib.Path, int] = {}
        self._lock = threading.Lock()

    def read(self, path: pathlib.Path, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset`; a file that is too short is a `DamagedSample` that names it."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._open(path)
        parts = []
        while size > 0:
            # pread may return less than was asked for, on network file systems and above 2 GiB.
            try:
                part = os.pread(descriptor, size, offset)
            except (MemoryError, OverflowError):  # a damaged index asks for what no file holds
                part = b""
            if not part:
                missing = f"{size} more were expected"
                raise DamagedSample(f"{path} ends at byte {offset}, {missing}: copy or convert it again")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _open(self, path: pathlib.Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                try:
                    self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    hint = "; raise the limit with `ulimit -n`" if error.errno == errno.EMFILE else ""
                    raise UserError(f"cannot read {path}: {error.strerror}{hint}") from None
            return self._descriptors[path]

    def __getstate__(self) -> dict:
        # Descriptors are of this process; another opens its own when it first reads.
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()

    def __del__(self, close=os.close):  # bound now: when the interpreter ends, the module may be empty already
        for descriptor in self._descriptors.values():
            close(descriptor)
