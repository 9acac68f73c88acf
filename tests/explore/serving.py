"""An explorer on a free port, in a thread of its own, and questions to it."""

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator

from aiohttp import web

from lapa_jax.explore import server


@contextlib.contextmanager
def serving(explorer) -> Iterator[str]:
    """Prepares an explorer and gives "127.0.0.1:PORT", where its server listens while the block runs."""
    explorer.prepare()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    call = lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result()  # noqa: E731
    runner = server.runner(explorer, "127.0.0.1")

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    try:
        yield call(start())
    finally:
        call(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def get(address: str, path: str, body=None, method: str | None = None, **headers) -> tuple[int, str, bytes]:
    """Status, type and body of an answer. body: sent with POST, as JSON or as it is."""
    connection = http.client.HTTPConnection(address, timeout=60)
    if body is not None and not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    response = connection.getresponse()
    answer = response.status, response.headers.get_content_type(), response.read()
    connection.close()
    return answer


def ask(address: str, name: str, **fields) -> dict:
    """The answer of a call, which must be one."""
    status, kind, body = get(address, f"/api/{name}", fields)
    assert (status, kind) == (200, "application/json"), body
    return json.loads(body)


def refused(address: str, name: str, body) -> str:
    """Why a call is refused: one line."""
    status, kind, body = get(address, f"/api/{name}", body)
    assert (status, kind) == (400, "application/json"), body
    (text,) = json.loads(body).values()
    assert "\n" not in text
    return text
