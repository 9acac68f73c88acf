"""Memory that is freed stays with the process, so that the next training step finds it again.

XLA's CPU client allocates the temporary buffers of a program when it runs, and frees them when it ends. By default
glibc gives such large pieces back to the kernel at once, which clears the same pages again for the next step: in a
training step of a small LAQ that is 124,000 page faults, a quarter of the time.
"""

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Iterator

VARIABLE = "LAPA_JAX_KEEP_MEMORY"
"""Set to 0 it leaves the allocator as it is: where memory is short and shared with other programs."""

# Names and numbers of <malloc.h>. -1 is the largest threshold there is: nothing at the top of the heap is given back.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = (-1, -1), (-2, 128 << 20), (-4, 0), (-8, 1)


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; to be called before the first large allocation. Returns whether it did.

    Elsewhere than with glibc on Linux, and where `VARIABLE` is "0", nothing is changed. The process then holds on to
    the most memory that it ever used; one arena lets all threads find it.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or os.environ.get(VARIABLE) == "0":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = _TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)


def keep_objects() -> None:
    """Python's search for reference cycles leaves out all objects that there are now, which then are never collected.

    For a program that has loaded all it needs and has to answer: a search through the 230,000 objects of a server with
    jax takes a quarter of a second, in which no other thread of Python runs.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Within it Python looks for no reference cycles; also a decorator.

    For tracing: it makes millions of small objects that live on in the trace, and looking through all of them over and
    over is a fifth of its time. Objects without cycles are freed at once, as ever.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
