"""A server on a free port of this machine in a thread of its own: for measurements and tests, beside the client."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from lapa_jax.core.web import need_aiohttp
from lapa_jax.serve import http
from lapa_jax.serve.service import Service


@contextlib.contextmanager
def background(
    service_of: Callable[[], Service], token: str | None = None, ready: bool = True
) -> Iterator["Background"]:
    """Serves while the `with` block runs. Arguments as of `run.serve`; ready: compiled before the block begins."""
    server = Background()
    try:
        server.call(server.start(service_of, token))
        if ready:
            server.call(server.service.compile())
        yield server
    finally:
        server.stop()


class Background:
    """Attributes: service. address: "127.0.0.1:PORT"."""

    def __init__(self):
        self._loop, self._runner = asyncio.new_event_loop(), None
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()

    async def start(self, service_of: Callable[[], Service], token: str | None) -> None:
        """Listens."""
        web, self.service = need_aiohttp(), service_of()
        self._runner = http.runner(self.service, token, hosts=())
        await self._runner.setup()
        # Port 0: the system picks a free one, so that tests do not meet.
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    def call(self, coroutine):
        """The result of a coroutine that runs in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """As at a signal; the second time nothing happens."""
        if not self._thread.is_alive():
            return
        if self._runner is not None:
            self.call(self._runner.cleanup())
            self.service.close()
        # `stop` is not thread-safe: the loop has to be woken up from this thread.
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
