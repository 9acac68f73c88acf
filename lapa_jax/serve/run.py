"""Serving a policy from start to end: listen, compile, say ready, answer, finish what is in flight, stop."""

import asyncio
import contextlib
import ipaddress
import signal
import time
from collections.abc import Callable, Sequence

from lapa_jax.core import escape
from lapa_jax.core.errors import UserError
from lapa_jax.serve import http
from lapa_jax.serve.service import Service


def serve(
    service_of: Callable[[], Service],
    host: str,
    port: int,
    token: str | None,
    say=escape.say,
    allowed: Sequence[str] = (),
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
      service_of: makes the service, within the running loop. host, port: where; port 0 takes a free one.
      token: that clients must send; None for none. say: is told what happens, in lines.
      allowed: names of the server, if only requests to these, to localhost and to addresses are answered, as is always
        the case on addresses of this machine alone.

    Raises:
      UserError: the address cannot be used.
    """
    http.need_aiohttp()
    asyncio.run(_serve(service_of, host, port, token, say, allowed))


async def _serve(service_of, host: str, port: int, token: str | None, say, allowed: Sequence[str]) -> None:
    web = http.need_aiohttp()
    service, stop = service_of(), asyncio.Event()
    runner = http.runner(service, token, allowed if allowed or _is_local(host) else None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from None
        address = f"{host}:{runner.addresses[0][1]}"
        # Before compiling, which takes minutes: a signal in the meantime must not be lost.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        if not _is_local(host) and token is None:
            say(f"warning: {host} is open to other machines and no token is asked for; see --token_file")
        say(f"listening on {address}, compiling")
        await _until_stopped(service, stop, address, say)
        say("stopping: answering what is in flight")
    finally:
        await runner.cleanup()
        service.close()
    say("stopped")


async def _until_stopped(service: Service, stop: asyncio.Event, address: str, say) -> None:
    start = time.perf_counter()
    compiling, stopped = asyncio.create_task(service.compile()), asyncio.create_task(stop.wait())
    await asyncio.wait((compiling, stopped), return_when=asyncio.FIRST_COMPLETED)
    if compiling.done():
        sizes = ", ".join(map(str, compiling.result()))
        say(f"ready: ws://{address} and http://{address}/act (batches of {sizes} compiled in "
            f"{time.perf_counter() - start:.1f} s)")  # fmt: skip
        await stopped
    with contextlib.suppress(asyncio.CancelledError):
        await compiling  # a compiler cannot be interrupted


def _is_local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
