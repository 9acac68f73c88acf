"""Memory that is freed stays with the process: the kernel's own count of page faults. Collections of garbage."""

import gc
import os
import subprocess
import sys

import pytest

from lapa_jax.core.allocator import keep_objects, without_collection

# 64 MiB are taken, written and freed again and again, as a training step does with its temporary buffers.
PROGRAM = """
import resource
from lapa_jax.core.allocator import keep_freed_memory
kept = keep_freed_memory()
def step():
    piece = bytearray(64 << 20)
    piece[::4096] = b"1" * (len(piece) // 4096)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> tuple[int, int]:
    environment = os.environ | {"LAPA_JAX_KEEP_MEMORY": keep}
    out = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True)
    return tuple(map(int, out.stdout.split()))


def test_pages_of_freed_memory_are_not_cleared_again():
    kept, ours = faults("1")
    if not kept:
        pytest.skip("glibc's allocator is not the one here")
    kept, default = faults("0")
    assert not kept and default > 1000 and ours < default / 20


ADVISED = """
import ctypes, re, resource, sys
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from lapa_jax.core.allocator import keep_freed_memory
kept = keep_freed_memory()
piece = ctypes.create_string_buffer(64 << 20)
place, flags = ctypes.addressof(piece) + (32 << 20), ""
for line in open("/proc/self/smaps"):
    if of := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
        within = int(of[1], 16) <= place < int(of[2], 16)
    elif within and line.startswith("VmFlags"):
        flags = line
print(int(kept), int("hg" in flags.split()))
"""


@pytest.mark.parametrize("limit", [0, 8 << 30])
def test_large_pieces_are_advised_to_be_huge_pages_unless_addresses_are_limited(limit):
    out = subprocess.run([sys.executable, "-c", ADVISED, str(limit)], env=os.environ | {"LAPA_JAX_KEEP_MEMORY": "1"},
                         capture_output=True, check=True)  # fmt: skip
    kept, advised = map(int, out.stdout.split())
    if not kept or not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        pytest.skip("no glibc, or a kernel without huge pages")
    assert advised == (not limit)


def test_nothing_is_collected_while_it_says_so():
    collections = []
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        with without_collection(), without_collection():
            objects = [[] for _ in range(10**6)]
            meanwhile = len(collections)
        assert meanwhile == 0 and len(objects) == 10**6
        gc.collect()
        assert gc.isenabled() and collections
    finally:
        gc.callbacks.pop()


def test_what_is_kept_is_no_longer_looked_through():
    objects = [[] for _ in range(10**5)]
    try:
        keep_objects()
        assert not {id(x) for x in objects} & {id(x) for x in gc.get_objects()}
    finally:
        gc.unfreeze()
    assert len({id(x) for x in objects} & {id(x) for x in gc.get_objects()}) == 10**5
