"""Worker processes for conversion: a few jobs in flight, and a worker that dies costs one file, not the run."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from lapa_jax.data.conversion.parts import Failure, Job, make_part

_IN_FLIGHT = 4


def run_jobs(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Failure | None]]:
    """Runs `make_part` on every job and yields (job, failure or None) as they finish, in any order.

    Args:
      jobs: taken as needed: at most four a worker are held.
      workers: processes; 0 runs in this process.
    """
    if workers == 0:
        yield from ((job, make_part(job)) for job in jobs)
        return
    jobs = iter(jobs)
    suspects: list[Job] = []
    while True:
        with worker_pool(workers) as pool:
            broken = yield from _feed(pool, jobs, workers * _IN_FLIGHT, suspects)
        if not broken:
            return
        # a worker was killed: by a bug in a decoder, or for want of memory. Alone, each job shows whether it is the one
        for job in suspects:
            yield job, _alone(job)
        suspects.clear()


def _feed(pool, jobs: Iterator[Job], limit: int, suspects: list[Job]) -> Iterator[tuple[Job, Failure | None]]:
    """Yields results; returns whether the pool broke, with the jobs without a result in `suspects`."""
    running: dict[concurrent.futures.Future, Job] = {}
    try:
        while True:
            while len(running) < limit and (job := next(jobs, None)) is not None:
                suspects.append(job)
                running[pool.submit(make_part, job)] = suspects.pop()
            if not running:
                return False
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                failure = future.result()
                yield running.pop(future), failure
    except BrokenProcessPool:
        suspects += running.values()
        return True


def _alone(job: Job) -> Failure | None:
    with worker_pool(1) as pool:
        try:
            return pool.submit(make_part, job).result()
        except BrokenProcessPool:
            return Failure(job.episode["id"], "the process that decoded it died (a decoder bug, or out of memory)")


def worker_pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle, and a worker must not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
