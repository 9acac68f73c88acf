"""Memory that is freed stays with the process, so that the next training step finds it again.

XLA's CPU client allocates the temporary buffers of a program when it runs, and frees them when it ends. By default
glibc gives such large pieces back to the kernel at once, which clears the same pages again for the next step: in a
training step of a small LAQ that is 124,000 page faults, a quarter of the time. Kept memory alone gains little on
machines where looking up the address of a page is slow, as in virtual ones: in huge pages there are 512 times fewer.
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
_HUGE_PAGE, _MADV_HUGEPAGE = 2 << 20, 14
_MOST_RESERVED = 8 << 30


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, and the kernel to use huge pages for it; to be called before the first large
    allocation. Returns whether glibc did.

    Elsewhere than with glibc on Linux, and where `VARIABLE` is "0", nothing is changed. The process then holds on to
    the most memory that it ever used; one arena lets all threads find it.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or os.environ.get(VARIABLE) == "0":
        return False
    libc = ctypes.CDLL(None)
    settings = _TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX
    accepted = [libc.mallopt(name, value) == 1 for name, value in settings]
    if all(accepted):
        _ask_for_huge_pages(libc)
    return all(accepted)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Makes the heap a quarter of the machine's memory long, without using any of it, and advises huge pages there.

    glibc has no setting for this but a variable that must be there when a process starts (glibc.malloc.hugetlb=1).
    """
    import resource  # not on every system that Python runs on

    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return  # Where addresses are few, what is reserved would be missing elsewhere.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = min(memory // 4, _MOST_RESERVED)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block is None:
        return
    # Freed, it stays the top of the heap, from which all else is taken.
    libc.free(block)
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(start, block + size - start, _MADV_HUGEPAGE)


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
