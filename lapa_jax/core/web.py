"""What the servers of this package share: where they listen, whom they answer, and how they stop. Needs aiohttp, which
is imported where it is used."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import urllib.parse
from collections.abc import AsyncIterator, Sequence

from lapa_jax.core.errors import UserError


def need_aiohttp():
    """`aiohttp.web`; a `UserError` that names the extra where it is not installed."""
    try:
        from aiohttp import web
    except ImportError:
        raise UserError("this needs aiohttp, which is not installed; run: pip install 'lapa_jax[serve]'") from None
    return web


def check_address(host: str, port: int) -> None:
    """Refuses a port that is none, and an address that cannot be listened on, before a model is loaded; it is free
    again at once."""
    if not 0 <= port < 65536:
        raise UserError(f"--port {port} is no port; give 1 to 65535, or 0 for a free one")
    try:
        # As asyncio does: a port whose last server has just stopped is free.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from None


@contextlib.asynccontextmanager
async def listening(runner, host: str, port: int) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Listens while the block runs, and then lets an `aiohttp.web.AppRunner` answer what is in flight.

    Gives "HOST:PORT", with the port that was free where `port` is 0, and an event that SIGTERM and SIGINT set.
    """
    web, stop = need_aiohttp(), asyncio.Event()
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        yield f"{host}:{runner.addresses[0][1]}", stop
    finally:
        await runner.cleanup()


def is_local(host: str) -> bool:
    """Whether an address that is listened on belongs to this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def of_another_site(request) -> bool:
    """Whether a browser asks for a page that does not come from here: localhost is open to every page that is looked at
    on the machine. Programs send no Origin."""
    origin = request.headers.get("Origin")
    return origin is not None and urllib.parse.urlsplit(origin).netloc != request.host


def foreign_name(request, names: Sequence[str]) -> str | None:
    """The name by which a server is called where it has no such name; None where all is well.

    A browser may have been led here under another site's name, which then resolves to this machine (DNS rebinding): to
    the browser we are that site. Addresses are no names, and programs may send none.

    Args:
      request: of aiohttp. names: of the server, in lower case, beside localhost.
    """
    try:
        name = urllib.parse.urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    except ValueError:
        return "?"
    if not name or name == "localhost" or name.endswith(".localhost") or name in names:
        return None
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return None
    return name
