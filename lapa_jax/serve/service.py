"""What stands behind every way to ask: limits, readers of messages, one thread that runs the policy, readiness."""

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.images import RESIZE
from lapa_jax.serve import messages, metadata, msgpack_numpy
from lapa_jax.serve.batching import Answer, Batcher, Observation
from lapa_jax.serve.decoding import Decoding
from lapa_jax.serve.limits import Limits, Place, Rate, Refused, Room


@dataclasses.dataclass(frozen=True)
class Options:
    """How a policy is served. batch: largest one. wait: for a batch to fill, in seconds. decoders: processes that read
    large messages. renamed: see `messages.Contract`."""

    batch: int = 8
    wait: float = 0.002
    decoders: int = 1
    renamed: tuple[tuple[str, str], ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self):
        if self.batch < 1 or self.wait < 0:
            raise UserError(f"batches of {self.batch} after {self.wait} s; at least 1 and no less than 0 are needed")
        if self.decoders < 1:
            raise UserError(f"--decoders {self.decoders}: at least 1 process has to read large messages")


class Service:
    """A policy, and the threads that it takes to serve it.

    Args:
      policy: what `lapa_jax.load` gave. run: where it came from. options: how to serve it.

    Attributes:
      ready: set when everything is compiled. stopping: set when nothing new is taken on. reader: of messages.
      room: see `Room`.
      metadata: see `metadata.metadata`.

    Raises:
      UserError: something else than a policy that gives actions.
    """

    def __init__(self, policy, run, options: Options | None = None):
        if policy.kind.not_served:
            raise UserError(f"{run} holds a {policy.kind.noun}, which {policy.kind.not_served}")
        self.options = options = options or Options()
        contract = contract_of(policy, options)
        self._policy, self.reader = policy, messages.Reader(contract)
        self.metadata = metadata.metadata(policy, pathlib.Path(run).resolve().name, self.reader.keys)
        self.ready, self.stopping = asyncio.Event(), asyncio.Event()
        self._rate, self.room = Rate(options.limits.rate), Room(options.limits)
        self._batcher = Batcher(policy, options.batch, options.wait)
        self._decoding = Decoding(contract, self.observation, options.decoders)

    async def compile(self) -> Sequence[int]:
        """Compiles for every size of batches, reads an example, then says ready; returns the sizes."""
        loop = asyncio.get_running_loop()
        sizes = await loop.run_in_executor(None, self._batcher.compile)
        # The first message would otherwise wait for the tokenizer to be loaded.
        await self._decoding.read(msgpack_numpy.pack(self._example()), packed=True)
        self.ready.set()
        return sizes

    @contextlib.contextmanager
    def admitted(self, address: str) -> Iterator[Place]:
        """Counts a request of `address`, and holds a place for it while the `with` block reads and answers it.

        Raises:
          Refused: too many requests, not ready, or about to stop.
        """
        self._rate.count(address)
        if self.stopping.is_set() or not self.ready.is_set():
            raise Refused(503, "the server is stopping" if self.stopping.is_set() else "still compiling; see /readyz")
        with self.room.place() as place:
            yield place

    async def act(self, data: bytes | bytearray, packed: bool) -> tuple[Answer, dict[str, float], dict[str, bool]]:
        """The answer to an admitted request, how long it took, "decode_ms", "wait_ms", "infer_ms", "total_ms", and
        "batch", its rows; and which kind of answer is expected.

        Args:
          data, packed: the message, see `messages.decode`.

        Raises:
          UserError, WireError: a message that cannot be answered. Refused: the server stops.
        """
        start = time.perf_counter()
        observation, replies = await self._decoding.read(data, packed)
        decoded = time.perf_counter()
        answer = await asyncio.wrap_future(self._batcher.submit(observation))
        seconds = {"decode": decoded - start, "wait": answer.wait, "infer": answer.infer,
                   "total": time.perf_counter() - start}  # fmt: skip
        timing = {f"{name}_ms": 1000 * value for name, value in seconds.items()} | {"batch": answer.batch}
        return answer, timing, replies

    def stop(self) -> None:
        """Takes on nothing new, and refuses large messages that still wait to be read."""
        self.stopping.set()
        self.ready.set()  # whoever waits for it goes on, and is told
        self._decoding.stop()

    def close(self) -> None:
        """Ends the threads when what they do is done, and the processes at once."""
        self._decoding.close()
        self._batcher.close()

    def observation(self, parts: messages.Parts) -> Observation:
        """A row for the policy."""
        image, instruction, state, dataset = parts
        batch, _ = self._policy.prepare(image, instruction, state, dataset=dataset, resized=True)
        return Observation(batch, parts.dataset)

    def _example(self) -> dict:
        """A message of black images."""
        message = {name: np.zeros((8, 8, 3), np.uint8) for name in metadata.cameras(self._policy)}
        message[messages.TEXT] = ""
        if self._policy.datasets:
            message[messages.DATASET] = next(iter(self._policy.datasets))
        if self._policy.model.state_dim:
            parts = self.reader.state_parts or [messages.STATE]
            width = self._policy.width_of(message.get(messages.DATASET), messages.STATE)
            message |= {key: np.zeros(width if key == parts[0] else 0) for key in parts}
        return message


def contract_of(policy, options: Options) -> messages.Contract:
    """What messages for a policy are checked against."""
    resize = policy.config.get("data", {}).get("resize")
    images = lambda entry: {name: {"codec": "jpeg", RESIZE: feature.get(RESIZE)}  # noqa: E731
                            for name, feature in (entry.get("features") or {}).items()
                            if feature.get("codec") == "jpeg"}  # fmt: skip
    return messages.Contract(
        cameras=metadata.cameras(policy),
        image_size=policy.model.image_size,
        takes_state=bool(policy.model.state_dim),
        datasets={name: {"features": images(entry)} for name, entry in policy.datasets.items()},
        resize=resize if resize is None or isinstance(resize, str) else dict(resize),
        limits=options.limits,
        renamed=options.renamed,
    )
