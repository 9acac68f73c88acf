"""Messages that arrive over a websocket: aiohttp gathers their parts, each up to a limit, but all without one."""

import asyncio
import contextlib

from lapa_jax.serve.limits import UNFINISHED, Place, Refused, Room


class Arriving(asyncio.Protocol):
    """Stands between a websocket's transport and aiohttp, and counts the bytes of the message that is not complete yet.

    From `UNFINISHED` bytes on it holds a place of `room`, as a request does, and a large one is read in turns with
    others. Where there is no place, where large messages hold too much, and after `seconds`, the websocket is closed.
    A context manager.

    Args:
      transport: of the connection. room: of all clients. seconds: that a message may take to arrive.
      close: closes the websocket: `aiohttp.web.WebSocketResponse.close`.
    """

    def __init__(self, transport: asyncio.Transport, room: Room, seconds: float, close):
        self._transport, self._room, self._seconds, self._close = transport, room, seconds, close
        self._inner, self._bytes, self._place, self._timer, self._closing = None, 0, None, None, None
        self._turn: asyncio.Task | None = None

    def __enter__(self) -> "Arriving":
        if self._transport is not None:  # None: the client is gone already
            self._inner = self._transport.get_protocol()
            self._transport.set_protocol(self)
        return self

    def __exit__(self, *error) -> None:
        self._release()

    def complete(self, size: int) -> None:
        """A message of so many bytes was taken out."""
        # What is left is the next message's beginning, or no more than the frames' heads and pings, which are let go:
        # else they would add up.
        self._bytes = rest if (rest := self._bytes - size) > UNFINISHED else 0
        self._release()
        self._count()

    def data_received(self, data: bytes) -> None:
        if self._closing is not None:
            return  # nothing more is gathered; the client's farewell is not waited for longer than `CLOSING`
        self._bytes += len(data)
        self._count()
        if self._closing is None:
            self._inner.data_received(data)
            if self._place is not None and self._turn is None:
                self._transport.pause_reading()
                self._turn = asyncio.get_running_loop().create_task(self._go_on(self._place, len(data)))

    def eof_received(self):
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._release()
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _count(self) -> None:
        if self._bytes <= UNFINISHED:
            return
        try:
            if self._place is None:
                self._place = self._room.place()
                late = Refused(408, f"the message did not arrive within {self._seconds:g} s")
                self._timer = asyncio.get_running_loop().call_later(self._seconds, self._refuse, late)
            self._place.hold(self._bytes)
        except Refused as error:
            self._refuse(error)

    def _refuse(self, error: Refused) -> None:
        self._release()
        # A reason of a closed websocket may have 123 bytes. 1013: try again later; 1008: against the rules.
        code = 1013 if error.status == 503 else 1008
        self._closing = asyncio.get_running_loop().create_task(self._end(code, str(error).encode()[:123]))

    async def _end(self, code: int, reason: bytes) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._close(code=code, message=reason)

    async def _go_on(self, place: Place, size: int) -> None:
        await place.turn(size)
        self._turn = None
        self._transport.resume_reading()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._place is not None:
            self._place.__exit__()
        self._timer = self._place = None
