"""Reading messages beside the event loop: small ones in a thread, large ones in a process that can be ended.

A thread cannot be ended, and readers of JSON and msgpack hold Python's global lock (JPEG decoders and resizing give it
back), during which nothing else of the server runs. So what the thread does is bounded beforehand: `LIGHT_BYTES` of
JSON hold the lock for 5 ms, `LIGHT_PACKED` of msgpack for 2 ms, `LIGHT_WORK` pixels of a JPEG take 10 ms. All else that
the limits allow, in the worst case 1 s for a JPEG of 2048 x 2048 pixels in 32 scans, is done by a process of low
priority, the least work first, which is killed after `SECONDS` or when the server stops. It loads no jax.
"""

import asyncio
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lapa_jax.core.errors import UserError
from lapa_jax.serve import messages, msgpack_numpy
from lapa_jax.serve.limits import Limits, Refused

LIGHT_BYTES, LIGHT_PACKED, LIGHT_WORK = 2**20, 4 * 2**20, 2**20
"""Of JSON, of msgpack, and pixels as `messages.work` counts them: what the thread reads. 1280 x 720 pixels are
light."""
SECONDS = 5.0
"""That a large message may take in its process."""
_ROOT = pathlib.Path(__file__).parents[2]
_LENGTH = struct.Struct(">I")


class Job(NamedTuple):
    """One message for the processes. data, packed: see `messages.decode`."""

    data: bytes | bytearray
    packed: bool
    future: concurrent.futures.Future


class Decoding:
    """The thread for small messages and the processes for large ones.

    Args:
      contract: of messages. finish: makes of `Parts` what is asked for, in the thread. processes: how many.
    """

    def __init__(self, contract: messages.Contract, finish: Callable[[messages.Parts], object], processes: int = 1):
        self._reader, self._finish = messages.Reader(contract), finish
        # One thread: cores are left for the policy.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "reading")
        self._jobs: queue.PriorityQueue = queue.PriorityQueue()
        self._number = itertools.count()
        self._processes = [_Process(contract, self._jobs) for _ in range(processes)]

    async def read(self, data: bytes | bytearray, packed: bool) -> tuple[object, dict[str, bool]]:
        """What `finish` makes of a message, and which kind of answer is expected.

        Raises:
          UserError, WireError: a message that cannot be answered. Refused: it took too long, or the server stops.
        """
        loop = asyncio.get_running_loop()
        result, replies, work = await loop.run_in_executor(self._thread, self._try, data, packed)
        if work:
            future: concurrent.futures.Future = concurrent.futures.Future()
            # The least work first: who sends the worst that is allowed waits for those who do not. The number keeps
            # equals in order, and jobs from being compared.
            self._jobs.put((work, next(self._number), Job(data, packed, future)))
            parts, replies = await asyncio.wrap_future(future)
            result = await loop.run_in_executor(self._thread, self._finish, parts)
        return result, replies

    def stop(self) -> None:
        """Refuses what waits for a process."""
        while True:
            try:
                _, _, job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(Refused(503, "the server is stopping"))

    def close(self) -> None:
        """Ends the processes at once, and the thread when it has read what it reads."""
        self.stop()
        # Each of their threads takes one sign from the queue that they share, whichever.
        for process in self._processes:
            process.end()
        for process in self._processes:
            process.join()
        self._thread.shutdown()

    def _try(self, data: bytes | bytearray, packed: bool) -> tuple[object, dict[str, bool], int]:
        """(result, replies, 0) of a light message, (None, {}, work) of a heavy one."""
        if len(data) > (LIGHT_PACKED if packed else LIGHT_BYTES):
            return None, {}, len(data)
        message, replies = messages.decode(data, packed)
        if (work := messages.work(message)) > LIGHT_WORK:
            return None, {}, work
        return self._finish(self._reader.read(message)), replies, 0


class _Process:
    """A process that reads large messages one by one, and the thread that talks to it. It starts with the first one."""

    def __init__(self, contract: messages.Contract, jobs: queue.PriorityQueue):
        self._contract, self._jobs, self._process, self._closed = contract, jobs, None, False
        self._thread = threading.Thread(target=self._loop, name="large messages", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._closed = True
        self._jobs.put((-1, 0, None))
        if self._process is not None:
            self._process.kill()

    def join(self) -> None:
        self._thread.join()

    def _loop(self) -> None:
        while (job := self._jobs.get()[2]) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue  # the client went away
            try:
                job.future.set_result(self._read(job))
            except Exception as error:
                job.future.set_exception(error)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _read(self, job: Job) -> tuple[messages.Parts, dict[str, bool]]:
        if self._process is None or self._process.poll() is not None:
            self._process = _started(self._contract)
        process, late = self._process, threading.Event()

        def end():
            late.set()
            process.kill()

        timer = threading.Timer(SECONDS, end)
        timer.start()
        try:
            _send(process.stdin, bytes([job.packed]), job.data)
            answer = _receive(process.stdout)
        except BrokenPipeError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            process.kill()
            process.communicate()
            if self._closed:
                raise Refused(503, "the server is stopping")
            if late.is_set():
                raise UserError(f"reading the message took more than {SECONDS:g} s; send smaller images")
            raise RuntimeError(f"the process that reads messages ended with code {process.returncode}")
        return _unpacked(answer)


def _started(contract: messages.Contract) -> subprocess.Popen:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    flags = ["-B"] if sys.dont_write_bytecode else []
    process = subprocess.Popen([sys.executable, *flags, "-m", "lapa_jax.serve.decoding"], env=environment,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    _send(process.stdin, msgpack_numpy.pack(dataclasses.asdict(contract)))
    return process


def _unpacked(answer: bytes) -> tuple[messages.Parts, dict[str, bool]]:
    fields = msgpack_numpy.unpack(answer)
    if "refused" in fields:
        raise UserError(fields["refused"])
    if "fault" in fields:
        raise RuntimeError(fields["fault"])
    return messages.Parts(*fields["parts"]), fields["replies"]


def _send(file, *parts: bytes) -> None:
    file.write(_LENGTH.pack(sum(map(len, parts))))
    for part in parts:
        file.write(part)
    file.flush()


def _receive(file) -> bytes | None:
    """None at the end of the file."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return data if len(data) == length else None


def _answer(reader: messages.Reader, packed: bool, data: bytes) -> Mapping:
    try:
        message, replies = messages.decode(data, packed)
        return {"parts": list(reader.read(message)), "replies": replies}
    except (UserError, msgpack_numpy.WireError) as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"}


def main() -> None:
    """The process: a contract, then messages on the standard input; answers on the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the server ends this
    os.nice(10)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    fields = msgpack_numpy.unpack(_receive(requests))
    fields["limits"] = Limits(**fields["limits"])
    reader = messages.Reader(messages.Contract(**fields))
    while (request := _receive(requests)) is not None:
        _send(answers, msgpack_numpy.pack(_answer(reader, bool(request[0]), request[1:])))


if __name__ == "__main__":
    main()
