"""Batches that are on the devices before their step asks for them, and how long the devices had nothing to do."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import jax

from lapa_jax.train.profiler import WAIT

# Seconds between two looks at whether the devices are still at work, while there is no batch for them.
POLL = 0.0005
# Seconds between two looks at whether anybody still waits for a batch that does not come.
PATIENCE = 1.0


class Feed:
    """Takes batches from an iterator and puts them on the devices, in a thread, two ahead of the step in progress.

    Attributes: idle: seconds in which no batch was there and the devices had finished all that was asked of them. A
      host that waits while they are at work loses nothing.
    """

    def __init__(self, batches: Iterator, place: Callable):
        """Args: batches: the host's own, each used once. place: puts a batch on the devices; gives what `take` does."""
        self.idle = 0.0
        # One lies in the queue, another one in the hands of the thread, which waits for room.
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, place), name="feed", daemon=True)
        self._thread.start()

    def take(self, busy: Callable[[], bool], stopped: Callable[[], bool] = lambda: False):
        """The next batch, on the devices.

        Args:
          busy: whether the devices still have something to do.
          stopped: whether nobody waits for it any more; looked at once a second.

        Returns:
          None where nobody waits any more and it is not there.

        Raises:
          What the iterator raised in place of this batch; StopIteration at its end.
        """
        with contextlib.suppress(queue.Empty):
            return self._delivered(self._queue.get_nowait())
        while busy():
            with contextlib.suppress(queue.Empty):
                return self._delivered(self._queue.get(timeout=POLL))
        start = time.perf_counter()
        item = None
        with jax.profiler.TraceAnnotation(WAIT):
            while item is None:
                with contextlib.suppress(queue.Empty):
                    item = self._queue.get(timeout=PATIENCE)
                if item is None and stopped():
                    return None
        self.idle += time.perf_counter() - start
        return self._delivered(item)

    def close(self) -> None:
        """Stops the thread; what it has taken from the iterator is lost."""
        self._stopped.set()
        self._thread.join(timeout=PATIENCE)  # a batch that hangs is not waited for

    def _fill(self, batches: Iterator, place: Callable) -> None:
        try:
            for batch in batches:
                if not self._put((place(batch), None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:
            self._put((None, error))

    def _put(self, item) -> bool:
        """Whether there was room for it before the feed was closed."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    @staticmethod
    def _delivered(item):
        batch, error = item
        if error is not None:
            raise error
        return batch
