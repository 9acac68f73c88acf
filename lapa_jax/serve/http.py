"""HTTP and websockets on one port: what openpi's and OpenVLA's clients speak, and what ours does. Needs aiohttp."""

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core import web as sites
from lapa_jax.core.errors import UserError
from lapa_jax.core.remarks import Remarks
from lapa_jax.core.web import need_aiohttp
from lapa_jax.serve import msgpack_numpy
from lapa_jax.serve.arriving import Arriving
from lapa_jax.serve.limits import Place, Refused
from lapa_jax.serve.service import Service

_LOG = logging.getLogger(__name__)
MSGPACK = ("application/msgpack", "application/x-msgpack")
OPEN = ("/healthz", "/readyz")
"""Paths that need no token."""
PING = 60.0
GRACE = 10.0
"""Seconds between signs of life of a websocket, and for what is in flight when the server stops."""
CLOSING = 2.0
"""Seconds for a client to agree that its websocket is closed."""
BODY = 30.0
"""Seconds for the body of a request to arrive; it holds one of the places for open requests."""
LEFT, SILENT = 10.0, 1.0
"""Seconds for what is left of a refused request's body to arrive, and without a part of it."""


class _Socket(NamedTuple):
    """busy: held while a message is answered."""

    response: object
    busy: asyncio.Lock


def application(service: Service, token: str | None = None, hosts: Sequence[str] | None = None):
    """The `aiohttp.web.Application` of a service.

    Args:
      service: the service. token: that every path but `OPEN` asks for; None for none.
      hosts: names by which clients may call the server, beside localhost and addresses; None: any.
    """
    web = need_aiohttp()
    front = Front(service, token, hosts)

    @web.middleware
    async def guard(request, handler):
        return await front.guard(request, handler)

    app = web.Application(middlewares=[guard])
    app.add_routes([
        web.get("/", front.root), web.get("/healthz", front.healthz), web.get("/readyz", front.readyz),
        web.get("/metadata", front.metadata), web.post("/act", front.act),
    ])  # fmt: skip
    app.on_shutdown.append(front.stop)
    return app


def runner(service: Service, token: str | None, hosts: Sequence[str] | None):
    """The `aiohttp.web.AppRunner` of `application`."""
    return need_aiohttp().AppRunner(
        application(service, token, hosts),
        access_log=None,
        shutdown_timeout=GRACE,
        auto_decompress=False,  # a body of 16 MB could unfold to 16 GB
        lingering_time=0.0,  # `Front.guard` reads what is left of a refused body, in turns
        logger=Remarks.logger("lapa_jax.serve.requests", known=token is None),
    )


class Front:
    """The handlers. Every error is an answer: JSON {"error": text} with a status, or a text on websockets."""

    def __init__(self, service: Service, token: str | None, hosts: Sequence[str] | None):
        self._service, self._token, self._web = service, token, need_aiohttp()
        self._hosts = None if hosts is None else [name.lower() for name in hosts]
        self._sockets: set[_Socket] = set()
        self._remarks = Remarks(_LOG)

    async def guard(self, request, handler):
        """What `_guarded` answers, behind the request's whole body: else the connection would be closed on a client
        that is still sending, which would not see the answer."""
        answer = await self._guarded(request, handler)
        with contextlib.suppress(TimeoutError, ConnectionError, self._web.RequestPayloadError):
            async with asyncio.timeout(LEFT):
                while not request.content.at_eof():
                    async with asyncio.timeout(SILENT):
                        part = await request.content.readany()
                    await self._service.room.turn(len(part))
        return answer

    async def _guarded(self, request, handler):
        """Refuses pages of other sites, asks for the token, and turns errors into answers."""
        try:
            if self._hosts is not None and (name := sites.foreign_name(request, self._hosts)) is not None:
                return self._error(403, f"this server is not called {name[:60]!r}; --allow_host allows a name")
            # A robot would move.
            if sites.of_another_site(request):
                return self._error(403, "a page of another site may not ask; this server is for programs")
            if request.path not in OPEN and not self._allowed(request.headers.get("Authorization", "")):
                return self._error(401, "a token is needed: send the header 'Authorization: Bearer TOKEN'")
            return await handler(request)
        except self._web.HTTPException as error:
            return self._error(error.status, f"{error.reason}: {request.method} {request.path[:60]}")
        except Exception as error:  # asyncio.CancelledError, of clients that went away, is none
            return self._error(*self._explained(error, request.remote or ""))

    async def healthz(self, request):
        """GET /healthz: the process is alive."""
        return self._web.Response(text="OK\n")

    async def readyz(self, request):
        """GET /readyz: 200 when requests are answered, else 503."""
        service = self._service
        if service.stopping.is_set():
            return self._web.Response(status=503, text="stopping\n")
        return self._web.Response(text="ready\n") if service.ready.is_set() else self._web.Response(
            status=503, text="compiling\n")  # fmt: skip

    async def metadata(self, request):
        """GET /metadata: what websockets get on connecting, as JSON."""
        return self._json(self._service.metadata)

    async def act(self, request):
        """POST /act. msgpack gets {"actions", "server_timing"} in msgpack, JSON what OpenVLA's servers answer."""
        packed = request.content_type in MSGPACK
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "the body is compressed; send it as it is")
        with self._service.admitted(request.remote or "") as place:  # before the body, which may never come
            body = await _body(request, place, self._service.options.limits.message_bytes)
            answer, timing, replies = await self._service.act(body, packed)
        headers = {"Server-Timing": ", ".join(f"{name.removesuffix('_ms')};dur={value:.3f}"
                                           for name, value in timing.items() if name != "batch")}  # fmt: skip
        if packed:
            data = _packed(answer.actions, timing, replies)
            return self._web.Response(body=data, content_type=MSGPACK[0], headers=headers)
        actions = list(answer.actions) if replies["chunk"] else answer.actions[0]
        return self._json(msgpack_numpy.to_json(actions) if replies["twice"] else actions, headers)

    async def root(self, request):
        """GET /: a websocket; for a browser where to look."""
        limits = self._service.options.limits
        socket = self._web.WebSocketResponse(
            max_msg_size=limits.message_bytes, compress=False, heartbeat=PING, timeout=CLOSING)  # fmt: skip
        if not socket.can_prepare(request).ok:
            return self._web.Response(text="lapa_jax: a websocket here, POST /act, /metadata, /healthz, /readyz\n")
        if len(self._sockets) >= limits.sockets:
            raise Refused(503, f"{limits.sockets} websockets are open already; close one, or come back later")
        await socket.prepare(request)
        entry = _Socket(socket, asyncio.Lock())
        self._sockets.add(entry)
        with Arriving(request.transport, self._service.room, BODY, socket.close) as arriving:
            try:
                with contextlib.suppress(ConnectionError):  # the client went away before its answer
                    await self._converse(entry, arriving, request.remote or "")
            finally:
                self._sockets.discard(entry)
        return socket

    async def stop(self, app=None) -> None:
        """Takes on nothing new, and closes websockets behind their answers."""
        self._service.stop()
        if leaving := [asyncio.create_task(self._goodbye(entry)) for entry in self._sockets]:
            await asyncio.wait(leaving, timeout=GRACE)  # a client that reads nothing holds nobody up

    async def _converse(self, entry: _Socket, arriving: Arriving, address: str) -> None:
        """Metadata when all is ready, then an answer to each message."""
        await self._service.ready.wait()
        if self._service.stopping.is_set():
            return
        socket, last = entry.response, {}
        await socket.send_bytes(msgpack_numpy.pack(self._service.metadata))
        async for message in socket:
            if not isinstance(message.data, bytes | str):
                return  # too large, or no frame of websockets: the socket is closed, with a code that says so
            arriving.complete(len(message.data))
            async with entry.busy:
                start = time.perf_counter()
                reply = await self._reply(message.data, address, last)
                if isinstance(reply, str):
                    await socket.send_str(reply)
                else:
                    await socket.send_bytes(reply)
                last["prev_total_ms"] = 1000 * (time.perf_counter() - start)

    async def _reply(self, data, address: str, last: Mapping[str, float]) -> bytes | str:
        """The answer in msgpack; an error as a text, which openpi's clients raise."""
        try:
            if not isinstance(data, bytes):
                raise UserError("a text came; messages are msgpack in binary frames")
            with self._service.admitted(address) as place:
                place.hold(len(data))
                answer, timing, replies = await self._service.act(data, packed=True)
            return _packed(answer.actions, {**timing, **last}, replies)
        except Exception as error:
            return f"error: {self._explained(error, address)[1]}"

    async def _goodbye(self, entry: _Socket) -> None:
        async with entry.busy:
            await entry.response.close(code=1001, message=b"the server stops")

    def _explained(self, error: Exception, address: str) -> tuple[int, str]:
        """Status and words of what went wrong. A mistake of a client is one line of the log, our own a traceback."""
        if isinstance(error, Refused):
            return error.status, str(error)
        if isinstance(error, UserError | msgpack_numpy.WireError):
            self._remarks.say(f"refused a message of {address}: {error}")
            return 400, str(error)
        _LOG.error("a request failed", exc_info=error)
        return 500, f"the server failed ({type(error).__name__}); its log says more"

    def _allowed(self, header: str) -> bool:
        """Bearer as of RFC 6750, and Api-Key, which openpi's clients send."""
        if self._token is None:
            return True
        kind, _, token = header.partition(" ")
        # In constant time, so that a token cannot be guessed letter by letter from how long an answer takes.
        right = hmac.compare_digest(token.strip().encode(errors="surrogateescape"), self._token.encode())
        return right and kind.lower() in ("bearer", "api-key")

    def _json(self, value, headers: Mapping[str, str] | None = None):
        return self._web.Response(text=msgpack_numpy.to_json(value), content_type="application/json", headers=headers)

    def _error(self, status: int, message: str):
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return self._web.Response(status=status, text=msgpack_numpy.to_json({"error": message}),
                                  content_type="application/json", headers=headers)  # fmt: skip


async def _body(request, place: Place, most: int) -> bytearray:
    """The body of a request; `Refused` if it is too large (413), if large messages hold too much memory (503), or if it
    does not arrive in time (408)."""
    # It grows by parts: to put 16 MB together at the end would stop the event loop for 20 ms.
    body = bytearray()
    if (request.content_length or 0) > most:
        raise Refused(413, f"the message is larger than {most} bytes")
    try:
        async with asyncio.timeout(BODY):
            async for part in request.content.iter_any():
                body += part
                if len(body) > most:
                    raise Refused(413, f"the message is larger than {most} bytes")
                place.hold(len(body))
                await place.turn(len(part))
        return body
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY:g} s") from None


def _packed(actions: np.ndarray, timing: Mapping[str, float], replies: Mapping) -> bytes:
    """The answer in msgpack. To who wrote in the package msgpack-numpy's dialect, actions are lists: it would not take
    our arrays for such, and lists are the same to all."""
    return msgpack_numpy.pack({"actions": actions.tolist() if replies.get("package") else actions,
                               "server_timing": timing})  # fmt: skip
