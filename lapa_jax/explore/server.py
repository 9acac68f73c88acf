"""The explorer's page over HTTP: three files of the package, images as PNG, and questions as JSON. Needs aiohttp."""

import asyncio
import concurrent.futures
import importlib.resources
import json
import logging
from collections.abc import Sequence

from lapa_jax.core import web
from lapa_jax.core.errors import UserError
from lapa_jax.core.escape import one_line, say
from lapa_jax.core.remarks import Remarks
from lapa_jax.explore import fields as ask
from lapa_jax.explore.base import Explorer

_LOG = logging.getLogger(__name__)
FILES = ("page.css", "page.js", "common.js", "codes.js", "policy.js")
PAGE = {"/": "index.html"} | {f"/{name}": name for name in FILES}
"""{path: file}."""
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
MOST_BYTES = 2**16
"""Of a question."""
GRACE = 10.0
"""Seconds for what is in flight when the server stops."""
HEADERS = {
    # Whatever a data set's texts hold, only the page's own script and style run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The next server on this port has other runs and data.
    "Cache-Control": "no-store",
}


def serve(explorer: Explorer, host: str, port: int) -> None:
    """Serves the page until SIGTERM or SIGINT. Port 0 takes a free one. UserError: the address cannot be used."""
    asyncio.run(_serve(explorer, host, port))


async def _serve(explorer: Explorer, host: str, port: int) -> None:
    async with web.listening(runner(explorer, host), host, port) as (address, stop):
        if not web.is_local(host):
            say(f"warning: {host} is open to other machines; whoever reaches the port sees the data", flush=True)
        say(f"ready: http://{address} (Ctrl-C ends it)", flush=True)
        await stop.wait()
    say("stopped", flush=True)


def runner(explorer: Explorer, host: str):
    """The `aiohttp.web.AppRunner` of an explorer, for a server that listens on `host`."""
    aiohttp = web.need_aiohttp()
    front = Front(explorer, () if web.is_local(host) else None)

    @aiohttp.middleware
    async def guard(request, handler):
        return await front.guard(request, handler)

    app = aiohttp.Application(middlewares=[guard], client_max_size=MOST_BYTES)
    app.add_routes([
        *(aiohttp.get(path, front.file) for path in PAGE),
        aiohttp.get("/image/{episode}/{step}/{camera}.png", front.image), aiohttp.post("/api/{name}", front.answer),
    ])  # fmt: skip
    app.on_cleanup.append(front.close)
    # Its own logger, so that bytes which are no HTTP are a line of the log and no traceback.
    return aiohttp.AppRunner(app, access_log=None, shutdown_timeout=GRACE, logger=Remarks.logger(__name__, known=True))


class Front:
    """The handlers. Every error is an answer: JSON {"error": text} with a status."""

    def __init__(self, explorer: Explorer, names: Sequence[str] | None):
        """Args: names: by which it may be called, beside localhost and addresses; None: any."""
        self._explorer, self._names, self._web, self._remarks = explorer, names, web.need_aiohttp(), Remarks(_LOG)
        # One thread: answers are computed one after the other, and programs are compiled once.
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        files = importlib.resources.files(__package__) / "page"
        self._files = {path: (files / name).read_bytes() for path, name in PAGE.items()}

    async def guard(self, request, handler):
        """Refuses other names of this machine and pages of other sites, and turns errors into answers."""
        try:
            if self._names is not None and (name := web.foreign_name(request, self._names)) is not None:
                response = self._error(403, f"this server is not called {name[:60]!r}; ask localhost or an address")
            elif web.of_another_site(request):
                response = self._error(403, "a page of another site may not ask")
            else:
                response = await handler(request)
        except self._web.HTTPException as error:
            response = self._error(error.status, f"{error.reason}: {request.method} {request.path[:60]}")
        except UserError as error:
            response = self._error(400, str(error))
        except Exception as error:  # asyncio.CancelledError, of a page that went away, is none
            _LOG.error("a request failed", exc_info=error)
            response = self._error(500, f"the explorer failed ({type(error).__name__}); its log says more")
        response.headers.update(HEADERS)
        return response

    async def file(self, request):
        """GET / and what the page loads."""
        kind = TYPES[PAGE[request.path].rpartition(".")[2]]
        return self._web.Response(body=self._files[request.path], content_type=kind, charset="utf-8")

    async def image(self, request):
        """GET /image/EPISODE/STEP/CAMERA.png: the image of a step."""
        numbers = {name: int(text) if text.isdecimal() else text for name, text in request.match_info.items()}
        episode, step = self._explorer.where(numbers)
        camera = ask.whole(numbers, "camera", len(self._explorer.cameras))
        drawn = await asyncio.to_thread(lambda: ask.png(self._explorer.image(episode, step, camera)))
        return self._web.Response(body=drawn, content_type="image/png")

    async def answer(self, request):
        """POST /api/NAME with the fields as JSON: what the explorer's call of that name gives."""
        name = request.match_info["name"]
        if name not in self._explorer.calls:
            raise self._web.HTTPNotFound()
        # A browser asks before it lets another site's page send JSON, and gets no answer.
        if request.content_type != "application/json":
            return self._error(415, "send the fields as JSON, with Content-Type: application/json")
        try:
            fields = json.loads(await request.read())
        except (ValueError, RecursionError):
            raise UserError("the body is not valid JSON") from None
        if not isinstance(fields, dict):
            raise UserError("the body must be a JSON object")
        loop = asyncio.get_running_loop()
        given = await loop.run_in_executor(self._pool, self._explorer.calls[name], fields)
        return self._json(given)

    async def close(self, app=None) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _json(self, value, status: int = 200):
        return self._web.Response(status=status, text=json.dumps(value, allow_nan=False),
                                  content_type="application/json")  # fmt: skip

    def _error(self, status: int, message: str):
        self._remarks.say(f"refused: {message}")
        return self._json({"error": one_line(message)}, status)
