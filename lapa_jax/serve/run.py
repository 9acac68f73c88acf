"""Serving a policy from start to end: listen, compile, say ready, answer, finish what is in flight, stop."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from lapa_jax.core import escape, web
from lapa_jax.core.allocator import keep_objects
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
    web.need_aiohttp()
    asyncio.run(_serve(service_of, host, port, token, say, allowed))


async def _serve(service_of, host: str, port: int, token: str | None, say, allowed: Sequence[str]) -> None:
    service = service_of()
    runner = http.runner(service, token, allowed if allowed or web.is_local(host) else None)
    try:
        # Listening comes before compiling, which takes minutes: a signal in the meantime must not be lost.
        async with web.listening(runner, host, port) as (address, stop):
            if not web.is_local(host) and token is None:
                say(f"warning: {host} is open to other machines and no token is asked for; see --token_file")
            say(f"listening on {address}, compiling")
            await _until_stopped(service, stop, address, say)
            say("stopping: answering what is in flight")
    finally:
        service.close()
    say("stopped")


async def _until_stopped(service: Service, stop: asyncio.Event, address: str, say) -> None:
    start = time.perf_counter()
    compiling, stopped = asyncio.create_task(service.compile()), asyncio.create_task(stop.wait())
    await asyncio.wait((compiling, stopped), return_when=asyncio.FIRST_COMPLETED)
    if compiling.done():
        sizes = ", ".join(map(str, compiling.result()))
        keep_objects()
        say(f"ready: ws://{address} and http://{address}/act (batches of {sizes} compiled in "
            f"{time.perf_counter() - start:.1f} s)")  # fmt: skip
        await stopped
    with contextlib.suppress(asyncio.CancelledError):
        await compiling  # a compiler cannot be interrupted
