"""What stands behind every way to ask: limits, one thread that reads messages, one that runs the policy, readiness."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

from lapa_jax.core.errors import UserError
from lapa_jax.serve import metadata
from lapa_jax.serve.batching import Answer, Batcher
from lapa_jax.serve.limits import Limits, Rate, Refused
from lapa_jax.serve.messages import Reader


@dataclasses.dataclass(frozen=True)
class Options:
    """How a policy is served. batch: largest one. wait: for a batch to fill, in seconds. renamed: see `Reader`."""

    batch: int = 8
    wait: float = 0.002
    renamed: tuple[tuple[str, str], ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self):
        if self.batch < 1 or self.wait < 0:
            raise UserError(f"batches of {self.batch} after {self.wait} s; at least 1 and no less than 0 are needed")


class Service:
    """A policy, and the threads that it takes to serve it.

    Args:
      policy: what `lapa_jax.load` gave. run: where it came from. options: how to serve it.

    Attributes:
      ready: set when everything is compiled. stopping: set when nothing new is taken on.
      metadata: see `metadata.metadata`.

    Raises:
      UserError: something else than a policy that gives actions.
    """

    def __init__(self, policy, run, options: Options | None = None):
        if policy.kind.not_served:
            raise UserError(f"{run} holds a {policy.kind.noun}, which {policy.kind.not_served}")
        self.options = options = options or Options()
        self.reader = Reader(policy, options.limits, options.renamed)
        self.metadata = metadata.metadata(policy, pathlib.Path(run).resolve().name, self.reader.keys)
        self.ready, self.stopping = asyncio.Event(), asyncio.Event()
        self._rate, self._open = Rate(options.limits.rate), 0
        self._batcher = Batcher(policy, options.batch, options.wait)
        # One thread: JPEGs and tokens are read off the event loop, which keeps answering, and cores are left for the
        # policy.
        self._reading = concurrent.futures.ThreadPoolExecutor(1, "reading")

    async def compile(self) -> Sequence[int]:
        """Compiles for every size of batches, reads an example, then says ready; returns the sizes."""
        loop = asyncio.get_running_loop()
        sizes = await loop.run_in_executor(None, self._batcher.compile)
        # The first message would otherwise wait for the tokenizer to be loaded.
        await loop.run_in_executor(self._reading, lambda: self.reader.read(self.reader.example()))
        self.ready.set()
        return sizes

    @contextlib.contextmanager
    def admitted(self, address: str) -> Iterator[None]:
        """Counts a request of `address`, and holds a place for it while the `with` block reads and answers it.

        Raises:
          Refused: too many requests, not ready, or about to stop.
        """
        self._rate.count(address)
        if self.stopping.is_set() or not self.ready.is_set():
            raise Refused(503, "the server is stopping" if self.stopping.is_set() else "still compiling; see /readyz")
        # A plain number is enough: the event loop runs this block in one thread.
        if self._open >= self.options.limits.pending:
            raise Refused(503, f"{self._open} requests are open already; ask again later")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def act(self, message: Callable[[], object]) -> tuple[Answer, dict[str, float]]:
        """The answer to an admitted request, and how long it took: "decode_ms", "wait_ms", "infer_ms", "total_ms", and
        "batch", its rows.

        Args:
          message: gives the decoded message; called in the thread that reads.

        Raises:
          UserError, WireError: a message that cannot be answered.
        """
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        observation = await loop.run_in_executor(self._reading, lambda: self.reader.read(message()))
        decoded = time.perf_counter()
        answer = await asyncio.wrap_future(self._batcher.submit(observation))
        seconds = {"decode": decoded - start, "wait": answer.wait, "infer": answer.infer,
                   "total": time.perf_counter() - start}  # fmt: skip
        return answer, {**{f"{name}_ms": 1000 * value for name, value in seconds.items()}, "batch": answer.batch}

    def close(self) -> None:
        """Ends the threads when what they do is done."""
        self._reading.shutdown()
        self._batcher.close()
