"""Worker processes for conversion: a few jobs in flight; a worker that dies or hangs costs one episode, not the run.

Decoders are C libraries that damaged files can crash or send into an endless loop. So with workers everything that
opens the user's files runs in a process of its own: listing them (`call`) and converting them (`run_jobs`).
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from lapa_jax.core.errors import UserError
from lapa_jax.data.convert.parts import Failure, Job, make_part

_IN_FLIGHT = 4
PATIENCE = 3600.0
"""Seconds that one episode may take."""


def call(function: Callable, *args, workers: int):
    """`function(*args)`, in a process of its own when `workers` > 0, so that a crash there is one clear error here."""
    if workers == 0:
        return function(*args)
    with worker_pool(1) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process that listed {args[0]} died: a damaged file that crashes its decoder, or out of memory"
            ) from None
        except BaseException:
            _kill(pool)  # leaving the pool would wait for it
            raise


def run_jobs(
    jobs: Iterable[Job], workers: int, patience: float = PATIENCE
) -> Iterator[tuple[Job, Failure | None]]:
    """Runs `make_part` on every job and yields (job, failure or None) as they finish, in any order.

    Args:
      jobs: taken as needed: at most four a worker are held.
      workers: processes; 0 runs in this process.
      patience: seconds that one episode may take; only processes can be ended, so 0 workers wait for ever.
    """
    if workers == 0:
        yield from ((job, make_part(job)) for job in jobs)
        return
    jobs = iter(jobs)
    suspects: list[Job] = []
    while True:
        with worker_pool(workers) as pool:
            broken = yield from _feed(pool, jobs, workers * _IN_FLIGHT, suspects, patience)
        if not broken:
            return
        # a worker was killed: by a bug in a decoder, for want of memory, or because nothing came back for too long.
        # Alone, each job shows whether it is the one
        for job in suspects:
            yield job, _alone(job, patience)
        suspects.clear()


def _feed(
    pool, jobs: Iterator[Job], limit: int, suspects: list[Job], patience: float
) -> Iterator[tuple[Job, Failure | None]]:
    """Yields results; returns whether the pool broke, with the jobs without a result in `suspects`."""
    running: dict[concurrent.futures.Future, Job] = {}
    try:
        while True:
            while len(running) < limit and (job := next(jobs, None)) is not None:
                suspects.append(job)
                running[pool.submit(make_part, job)] = suspects.pop()
            if not running:
                return False
            finished, _ = concurrent.futures.wait(running, patience, return_when=concurrent.futures.FIRST_COMPLETED)
            if not finished:
                _kill(pool)
                concurrent.futures.wait(running)
            for future in finished:
                failure = future.result()
                yield running.pop(future), failure
    except BrokenProcessPool:
        suspects += running.values()
        return True
    except BaseException:
        _kill(pool)  # leaving the pool would wait for what stalls
        raise


def _alone(job: Job, patience: float) -> Failure | None:
    with worker_pool(1) as pool:
        future = pool.submit(make_part, job)
        try:
            return future.result(patience)
        except concurrent.futures.TimeoutError:
            _kill(pool)
            return Failure(job.entry["id"], f"decoding it took more than {patience:g} s (--episode_timeout)")
        except BrokenProcessPool:
            return Failure(job.entry["id"], "the process that decoded it died (a decoder bug, or out of memory)")
        except BaseException:
            _kill(pool)
            raise


def _kill(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    """Ends the workers of a pool, however busy they are; what they had becomes a BrokenProcessPool."""
    for process in list(pool._processes.values()):
        process.kill()


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
