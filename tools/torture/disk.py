"""Disks that are full in the middle of a job: one line with the path, nothing lost, and the same command finishes.

A small file system in memory (tmpfs) is mounted, of a size that ends somewhere within what the job writes; then it is
given room. Where mounting is not allowed, each process may write files up to a size only (RLIMIT_FSIZE).
"""

import contextlib
import functools
import os
import pathlib
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

from lapa_jax.core.errors import EXIT_BAD_INPUT
from tools.torture.processes import Process, still_carrying
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Workshop

ROOM = 1 << 30


def fill(job: str, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Lets a job run out of room `count` times, each at another amount that it has written."""
    whole, _ = workshop.whole(job)
    means = "a full tmpfs" if _can_mount(workshop.folder) else "RLIMIT_FSIZE"
    most = _most_used(workshop, job) if means == "a full tmpfs" else _largest(whole)
    tally.figures.append(f"by {means}; it needs {most / 1e6:.2f} MB at most")
    for number in range(count):
        size = max(4096, round(most * (number + rng.random()) / count * 0.98))
        folder = workshop.new(f"disk-{job}").parent
        with _limited(folder, size, means) as (limit, give_room):
            out = folder / "out"
            process = workshop.start(job, out, largest_file=limit)
            code, wrong = process.wait(), []
            ended = f"code {code}"
            if code == 0:
                ended = "done without that room: what failed was a line of the log, or a copy to spare"
            elif code != EXIT_BAD_INPUT or not _one_line(process):
                wrong.append(f"code {code}: {process.last_words()}")
            elif not _names_path(process.last_words(), folder):
                wrong.append(f"no path: {process.last_words()}")
            if alive := still_carrying(process.mark, 5.0):
                wrong.append(f"{len(alive)} process(es) live on")
            give_room()
            wrong += workshop.finish(job, out)
            tally.ended(ended, wrong)
            workshop.log(f"{job} with {size / 1e6:.2f} MB: {process.last_words()[:150]} {'; '.join(wrong)}")


@contextlib.contextmanager
def _limited(folder: pathlib.Path, size: int, means: str) -> Iterator[tuple]:
    """A folder with so much room: the largest file, 0 where the folder itself is limited; and what gives it room."""
    if means == "RLIMIT_FSIZE":
        yield size, lambda: None
        shutil.rmtree(folder, ignore_errors=True)
        return
    _mount(folder, size)
    try:
        yield 0, lambda: _mount(folder, ROOM, "remount,")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(folder: pathlib.Path, size: int, how: str = "") -> None:
    # An inode for each file: the kernel's own limit for a small tmpfs would come first.
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size},nr_inodes=100000", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _can_mount(folder: pathlib.Path) -> bool:
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    try:
        _mount(place, 1 << 20)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def _most_used(workshop: Workshop, job: str) -> int:
    """The most bytes that a job needs at a time, on a file system with room."""
    folder, most, done = workshop.new(f"disk-{job}").parent, [0], threading.Event()
    with _limited(folder, ROOM, "a full tmpfs"):

        def watch():
            while not done.wait(0.005):
                status = os.statvfs(folder)
                most[0] = max(most[0], (status.f_blocks - status.f_bfree) * status.f_frsize)

        thread = threading.Thread(target=watch)
        thread.start()
        start = time.monotonic()
        process = workshop.start(job, folder / "out")
        code = process.wait()
        done.set()
        thread.join()
    if code:
        raise RuntimeError(f"{job} with room: {process.last_words()}")
    workshop.log(f"{job} needs {most[0] / 1e6:.2f} MB at most ({time.monotonic() - start:.1f} s)")
    return most[0]


def _largest(whole: pathlib.Path) -> int:
    return max(path.stat().st_size for path in whole.rglob("*") if path.is_file())


def _one_line(process: Process) -> bool:
    printed = process.printed()
    return process.last_words().startswith("error: ") and "Traceback" not in printed


def _names_path(words: str, folder: pathlib.Path) -> bool:
    return str(folder) in words


EACH = {"train": (6, 30), "evaluate": (3, 25), "label": (3, 25), "convert": (4, 10), "export": (2, 25),
        "record": (2, 18)}  # fmt: skip
KINDS = {job: Kind(functools.partial(fill, job), count, (count + 1) * each) for job, (count, each) in EACH.items()}
