"""Worker processes that prepare batches, in the order asked for, whatever happens to a worker.

Grain's process prefetch ends the run when a worker is killed ("terminated unexpectedly") and ties each process to a
part of the stream. Here the training process asks for batches by number, so a worker that was killed (by the kernel,
for want of memory) is replaced, its batches are asked for again, and the stream stays what it was. Batches are decoded
into memory that both processes see, and are used where they lie.
"""

import atexit
import collections
import contextlib
import logging
import mmap
import multiprocessing
import multiprocessing.util  # registers an exit handler that waits for workers: ours, registered later, runs before it
import os
import signal
import tempfile
import traceback
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing import connection, reduction
from multiprocessing.reduction import ForkingPickler

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import buffers
from lapa_jax.data.loader.batches import Assembler, Batch, Plan

DEATHS = 3
"""How many workers one batch may cost."""
HANGS = 300.0
"""Seconds without any answer after which the worker with the batch that is waited for counts as dead."""
SPARE = 4
"""Batches that may be in use in shared memory besides those that are prepared; further ones are copied out of it."""
LOG = logging.getLogger("lapa_jax")

_open: "weakref.WeakSet[WorkerBatches]" = weakref.WeakSet()


class WorkerBatches:
    """An iterator of `Batch` k for k = start, start + 1, ..., prepared by processes.

    Args:
      assembler: makes a batch. It and the plan are pickled for the workers.
      plan: the rows of each batch.
      start: the first batch.
      workers: processes, 1 or more.
      prefetch: batches prepared ahead.

    `next` raises what the work on that batch raised, and a `UserError` where workers die again and again. After an
    error, and after `close`, there is nothing more.
    """

    def __init__(self, assembler: Assembler, plan: Plan, start: int, workers: int, prefetch: int):
        self._assembler, self._plan, self._next, self._asked = assembler, plan, start, start
        # With fewer batches ahead than workers some would never have anything to do.
        self._depth = max(prefetch, workers)
        self._memory: _Memory | None = None
        self._answers: dict[int, tuple[int, object]] = {}
        self._deaths: collections.Counter[int] = collections.Counter()
        self._workers = [_Worker() for _ in range(workers)]
        self._end = weakref.finalize(self, _end_all, self._workers)
        self._end.atexit = False
        _open.add(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._end.alive or self._next >= self._plan.batches:
            self.close()
            raise StopIteration
        try:
            if self._memory is None:
                self._begin()
            self._ask()
            while self._next not in self._answers:
                self._receive()
            batch = self._deliver()
            self._ask()
            return batch
        except BaseException:
            self.close()  # an interrupt may have come in the middle of a message, after which no other can be read
            raise

    def close(self) -> None:
        """Ends the workers. Batches that were given out stay valid."""
        self._end()

    def _begin(self) -> None:
        """Makes room for batches as large as one row of the first promises."""
        rows = self._plan[self._next]
        row = self._assembler(type(rows)(*(values[:1] for values in rows))).arrays
        size = sum(buffers.round_up(np.asarray(values).nbytes * len(rows.samples)) for values in row.values())
        self._memory = _Memory(self._depth + SPARE, size + buffers.ALIGNMENT)
        pickled = self._pickle()
        for worker in self._workers:
            worker.begin(pickled, self._memory)

    def _pickle(self) -> bytes:
        try:
            return bytes(ForkingPickler.dumps((self._assembler, self._plan)))
        except Exception as error:  # whatever an object that cannot be sent raises
            raise UserError(f"data.workers > 0 needs data that can be sent ({error}): set it to 0") from None

    def _ask(self) -> None:
        """Asks for batches up to `prefetch` ahead, each from the worker with the least to do."""
        while self._asked < min(self._next + self._depth, self._plan.batches):
            worker = min(self._workers, key=lambda worker: len(worker.tasks))
            worker.ask(self._asked, self._memory.free.pop())
            self._asked += 1

    def _receive(self) -> None:
        """Waits for an answer or a death, and takes in what there is. A worker that hangs dies of it."""
        workers = {worker.connection: worker for worker in self._workers}
        if not (answers := connection.wait(list(workers), HANGS)):
            hanging = next(worker for worker in self._workers if self._next in worker.tasks)
            LOG.warning("a data worker has not answered for %.0f s", HANGS)
            return self._replace(hanging)
        for ready in answers:
            worker = workers[ready]
            try:
                k, answer = ready.recv()
            except (EOFError, OSError):
                self._replace(worker)
            else:
                self._answers[k] = worker.tasks.pop(k), answer

    def _deliver(self) -> Batch:
        slot, answer = self._answers.pop(self._next)
        self._next += 1
        if isinstance(answer, Exception):
            raise answer
        pending = len(self._answers) + sum(len(worker.tasks) for worker in self._workers)
        # What is neither free nor pending is still seen by somebody. Too much of that, and asking would find no free
        # slot.
        in_use = self._depth + SPARE - len(self._memory.free) - pending - 1
        return self._memory.take(slot, answer, copy=in_use >= SPARE)

    def _replace(self, worker: "_Worker") -> None:
        reason = worker.end()
        lost = next(iter(worker.tasks), None)  # tasks are done in order: it died at the first, or with nothing to do
        self._deaths[lost] += 1
        if self._deaths[lost] >= DEATHS:
            raise UserError(
                f"data workers died {DEATHS} times at batch {lost} ({reason}): there is too little memory (set fewer "
                "data.workers or a smaller data.prefetch), or a sample crashes the decoder (data.workers=0 shows where)"
            )
        LOG.warning("a data worker died (%s); another takes over with the same batches", reason)
        replacement = _Worker()
        self._workers[self._workers.index(worker)] = replacement
        replacement.begin(self._pickle(), self._memory)
        # The slots are written again from the start, so that half a batch of the dead worker does no harm.
        for k, slot in worker.tasks.items():
            replacement.ask(k, slot)


@atexit.register
def _close_all() -> None:
    for batches in list(_open):
        _end_all(batches._workers)  # not `close`: finalizers do nothing any more by now


def _end_all(workers: list["_Worker"]) -> None:
    for worker in workers:
        worker.end()


class _Worker:
    """One process, seen from the training process.

    Attributes:
      connection: its end of the pipe. tasks: {batch: slot} that it has not answered, in the order they were asked.
    """

    def __init__(self):
        # Not fork: jax's threads and locks do not survive it.
        context = multiprocessing.get_context("spawn")
        self.tasks: dict[int, int] = {}
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="lapa_jax data worker", daemon=True)
        # Ctrl-C and Slurm's signals go to all processes, but it is for the training process to decide what they mean
        ours = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()  # so that the worker's death closes the pipe

    def begin(self, pickled: bytes, memory: "_Memory") -> None:
        """Tells it what to read and where to write."""
        with contextlib.suppress(OSError):  # a death is noticed when its answer is waited for
            self.connection.send((pickled, memory.count, memory.size))
            reduction.send_handle(self.connection, memory.file.fileno(), self._process.pid)

    def ask(self, k: int, slot: int) -> None:
        """Asks for batch k in a slot."""
        self.tasks[k] = slot
        with contextlib.suppress(OSError):
            self.connection.send((k, slot))

    def end(self) -> str:
        """Kills it, if it lives, and says how it died. A worker keeps nothing that could be lost."""
        self.connection.close()
        # A worker whose pipe is closed ends by itself; one that crashed should be able to leave its exit code.
        self._process.join(0.01)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Memory:
    """Slots for batches that several processes see. It has no name, so it is gone when the last of them ends.

    Attributes:
      file: what it is a map of. count, size: slots and bytes of each. free: the slots that nobody uses.
    """

    def __init__(self, count: int, size: int):
        self.count, self.size = count, buffers.round_up(size)
        # not in /dev/shm, which containers often make as small as 64 MB
        named = not hasattr(os, "memfd_create")
        self.file = tempfile.TemporaryFile() if named else open(os.memfd_create("lapa_jax batches"), "r+b")
        self.file.truncate(self.count * self.size)
        self._map = _map(self.file.fileno(), self.count * self.size)
        self.free = collections.deque(range(count))

    def take(self, slot: int, answer: tuple[Mapping, dict], copy: bool) -> Batch:
        """The batch in a slot, which is free again when nobody sees the batch any more, or at once if it is copied."""
        arrays, damaged = answer
        memory = self._map[slot * self.size : (slot + 1) * self.size]
        lease = np.frombuffer(memory, np.uint8).copy() if copy else buffers.lease(memory, self.free.append, slot)
        if copy:
            self.free.append(slot)
        return Batch({name: value.view(lease) if isinstance(value, _ArrayInSlot) else value
                      for name, value in arrays.items()}, damaged)  # fmt: skip


class _ArrayInSlot:
    """Where in its slot an array lies."""

    def __init__(self, start: int, array: np.ndarray):
        self.start, self.shape, self.dtype = start, array.shape, array.dtype
        self.end = start + array.nbytes

    def view(self, slot: np.ndarray) -> np.ndarray:
        return slot[self.start : self.end].view(self.dtype).reshape(self.shape)


class _Slot:
    """A slot, seen from a worker: arrays are put one behind the other."""

    def __init__(self, memory: memoryview):
        self._bytes = np.frombuffer(memory, np.uint8)
        self._used = 0

    def empty(self, shape, dtype) -> np.ndarray:
        """An uninitialised array; in ordinary memory if there is no room."""
        array = np.empty(0, dtype)
        size = int(np.prod(shape)) * array.itemsize
        if not size or array.dtype.hasobject or self._used + size > len(self._bytes):
            return np.empty(shape, dtype)
        start, self._used = self._used, self._used + buffers.round_up(size)
        return self._bytes[start : start + size].view(dtype).reshape(shape)

    def store(self, value) -> object:
        """Where an array lies, after copying it here if need be; the value itself if it cannot lie here."""
        if not isinstance(value, np.ndarray):
            return value
        start = value.ctypes.data - self._bytes.ctypes.data
        if not (0 <= start < len(self._bytes) and value.flags.c_contiguous):
            copy = self.empty(value.shape, value.dtype)
            start = copy.ctypes.data - self._bytes.ctypes.data
            if not 0 <= start < len(self._bytes):
                return value
            copy[...] = value
        return _ArrayInSlot(start, value)


def _map(file: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(file, size))


def _serve(parent: connection.Connection) -> None:
    """What a worker does until the training process closes the pipe, or ends in whatever way."""
    with contextlib.suppress(EOFError, OSError):
        pickled, count, size = parent.recv()
        file = reduction.recv_handle(parent)
        memory = _map(file, count * size)
        # The map keeps the memory alive without the descriptor.
        os.close(file)
        make = None
        while True:
            k, slot = parent.recv()
            try:
                if make is None:
                    make, pickled = ForkingPickler.loads(pickled), None
                answer = _answer(*make, k, _Slot(memory[slot * size : (slot + 1) * size]))
            except Exception as error:
                answer = _portable(error)
            parent.send((k, answer))


def _answer(assembler: Assembler, plan: Plan, k: int, slot: _Slot) -> tuple[dict, dict]:
    with buffers.allocator(slot.empty):
        batch = assembler(plan[k])
    return {name: slot.store(value) for name, value in batch.arrays.items()}, batch.damaged


def _portable(error: Exception) -> Exception:
    """The error as it can be sent, with the place in the worker where it happened, unless it is meant for the user."""
    if not isinstance(error, UserError):
        error.add_note("in a data worker:\n" + traceback.format_exc())
    try:
        # Tried here, since an error that cannot be pickled would kill the worker while it sends.
        return ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
