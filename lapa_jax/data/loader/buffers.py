"""Memory for batches: fresh pages cost as much as decoding a small image, so memory is used again.

A source allocates what it decodes into with `empty(shape, dtype)`, as if it were `numpy.empty`. While the loader
assembles a batch, that memory comes from the loader: from a `Pool` of this process or, in a worker process, from memory
that is shared with the training process. What `empty` returned belongs to that one batch: a source must not keep it.
"""

import collections
import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np

ALIGNMENT = 64
"""Bytes; jax takes arrays that begin at a multiple of it over without copying them, on a CPU."""
SMALL = 1 << 16
"""Bytes; smaller arrays come from numpy, which is fast at them."""

_current = threading.local()


def empty(shape, dtype) -> np.ndarray:
    """An uninitialised array of the batch that is being assembled by this thread."""
    return getattr(_current, "empty", np.empty)(shape, dtype)


@contextlib.contextmanager
def allocator(allocate: Callable) -> Iterator[None]:
    """Within the block, `empty` of this thread is `allocate(shape, dtype)`."""
    previous = getattr(_current, "empty", np.empty)
    _current.empty = allocate
    try:
        yield
    finally:
        _current.empty = previous


class Pool:
    """Arrays whose memory returns when nobody sees it any more, neither a view, nor jax. Thread-safe.

    Args:
      keep: free pieces of memory that are kept for each size; more are given back to the system.
    """

    def __init__(self, keep: int):
        self._free: dict[int, collections.deque] = collections.defaultdict(lambda: collections.deque(maxlen=keep))

    def empty(self, shape, dtype) -> np.ndarray:
        """An uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        # Batches repeat the same few sizes, so that pieces of exactly this size are what comes back.
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = aligned(size)
        return lease(block.data, free.append, block).view(dtype).reshape(shape)


def lease(memory: memoryview, give_back: Callable, *args) -> np.ndarray:
    """uint8[n] over `memory`; `give_back(*args)` is called when it and all that was made from it are gone.

    The array is made from a buffer, not from an array: numpy lets views hold on to the first array over the memory, and
    that must be this one. `give_back` may run in any thread and at any moment, so it must not take locks.
    """
    array = np.frombuffer(memory, np.uint8)
    weakref.finalize(array, give_back, *args).atexit = False
    return array


def aligned(size: int) -> np.ndarray:
    """uint8[size] that begins at a multiple of `ALIGNMENT`."""
    block = np.empty(size + ALIGNMENT, np.uint8)
    # numpy promises 16 bytes only, hence the allocation of `ALIGNMENT` bytes more.
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


def round_up(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
