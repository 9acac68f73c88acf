"""How much a server takes on: sizes, how many requests wait, and how fast one address may ask."""

import asyncio
import dataclasses
import time
from collections.abc import Callable

from lapa_jax.core.errors import UserError

FREE = 2**20
"""Bytes of each message that `Limits.held_bytes` does not count, so that messages of usual size always find room."""
UNFINISHED = 2**16
"""Bytes from which on a message that is still arriving over a websocket takes one of the places of `Limits.pending`."""
SHARED_RATE = 64 * 2**20
"""Bytes a second at which large messages are taken in while there are several. A connection that is ready gives 256 KiB
in each pass of the event loop, and one with a short request needs some passes: beside 40 senders of large messages they
would take 20 ms each."""
ADDRESSES = 4096
"""How many addresses are remembered; those that were silent the longest are forgotten first."""


class Refused(Exception):
    """A request that is not answered now, though nothing is wrong with it. Attributes: status: of HTTP."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
      message_bytes: of one message. picture_side: pixels of an image's longer side. instruction_characters: of a text.
      rate: requests a second from one address, on the average; twice as many may come at once.
      pending: requests that may arrive, wait or be computed at a time, of all clients.
      held_bytes: of messages that arrive or wait, of all clients, beyond the first `FREE` of each.
      sockets: websockets that may be open at a time.
    """

    message_bytes: int = 16 * 2**20
    picture_side: int = 2048
    instruction_characters: int = 1000
    rate: float = 500.0
    pending: int = 256
    held_bytes: int = 256 * 2**20
    sockets: int = 1024

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"{field.name} is {getattr(self, field.name)}; it must be more than 0")


class Room:
    """The places for requests and the bytes for their messages, of all clients. One event loop uses it, in one thread.

    Attributes: places: taken ones. large: messages of more than `FREE` bytes. bytes: of those, as far as they count.
    """

    def __init__(self, limits: Limits):
        self._limits, self.places, self.large, self.bytes = limits, 0, 0, 0
        self._turns = asyncio.Lock()

    def place(self) -> "Place":
        """Takes a place; `Refused` with status 503 if there is none."""
        if self.places >= self._limits.pending:
            raise Refused(503, f"{self.places} requests are open already; ask again later")
        return Place(self, self._limits.held_bytes)

    async def turn(self, size: int) -> None:
        """Waits until more of a message may be read behind a part of so many bytes: at `SHARED_RATE`, in turns."""
        async with self._turns:
            await asyncio.sleep(size / SHARED_RATE)


class Place:
    """A request's place, and the bytes of its message. A context manager, which gives both back."""

    def __init__(self, room: Room, most: int):
        self._room, self._most, self._bytes = room, most, 0
        room.places += 1

    def hold(self, size: int) -> None:
        """So many bytes have come; `Refused` with status 503 if all messages together hold too many."""
        self._count(max(0, size - FREE))
        if self._bytes and self._room.bytes > self._most:
            raise Refused(503, f"large messages hold {self._most / 2**20:g} MiB already; ask again later, or send less")

    async def turn(self, size: int) -> None:
        """Before more is read behind a part of so many bytes: a large message waits for its turn where there are
        others, an only one and small ones do not."""
        if self._bytes and self._room.large > 1:
            await self._room.turn(size)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *error) -> None:
        self._room.places -= 1
        self._count(0)

    def _count(self, counted: int) -> None:
        self._room.bytes += counted - self._bytes
        self._room.large += (counted > 0) - (self._bytes > 0)
        self._bytes = counted


class Rate:
    """Counts requests by address, as a bucket that fills at `rate` a second up to twice that (at least one).

    Args:
      rate: requests a second. clock: gives seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self._rate, self._most, self._clock = rate, max(1.0, 2 * rate), clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def count(self, address: str) -> None:
        """Counts one request; `Refused` with status 429 if there were too many."""
        now = self._clock()
        # Taken out and put back: a dict keeps the order of insertion, so that the first address is the one silent for
        # longest.
        left, since = self._buckets.pop(address, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        # Refused requests take nothing from the bucket: a client that is too fast is slowed down, not locked out.
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        if left < 1:
            raise Refused(429, f"more than {self._rate:g} requests a second from {address}; ask less often")
