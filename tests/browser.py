"""Pages in headless Chromium, driven over a pipe with the DevTools protocol, so that nothing but the browser is needed.

    def test_a_page(browser):                # the fixture of tests/conftest.py
        page = browser.open(path_or_url, width=390)
        page.check()                         # no errors, no sideways scroll, every image loads
        page.click("#next")
        assert page.run("document.title") == "..."
        page.picture(tmp_path / "page.png")  # to look at
"""

import base64
import contextlib
import fcntl
import functools
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
TIMEOUT = 60
"""Seconds for an answer of the browser; pages here answer in milliseconds, a busy machine may be slow."""


@functools.cache
def executable() -> tuple[str | None, str]:
    """Chromium's path, or None and the reason why there is none; root installs it where a Debian has none."""
    with contextlib.suppress(StopIteration):
        return next(filter(None, map(shutil.which, NAMES))), ""
    if os.geteuid() or not shutil.which("apt-get"):
        return None, "Chromium is not installed (apt-get install chromium)"
    install = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends", "chromium"]
    for command in (install, ["apt-get", "update"], install):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return None, f"Chromium is not installed, and '{' '.join(command)}' took too long"
        if done.returncode == 0 and (path := shutil.which("chromium")):
            return path, ""
    return None, f"Chromium is not installed, and apt-get could not: {done.stderr.strip()[-200:]}"


class Browser:
    """One Chromium with a folder of its own; a context manager that ends it."""

    def __init__(self, path: str, folder: pathlib.Path):
        # Chromium reads commands from descriptor 3 and writes answers to 4. Ours are duplicated to numbers above these
        # first: else one could be overwritten while bash moves them there.
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (theirs_in, theirs_out)]
        command = [path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--remote-debugging-pipe", "--allow-file-access-from-files", "--hide-scrollbars",
                   "--autoplay-policy=no-user-gesture-required",
                   f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", *command],
            pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for number in (theirs_in, theirs_out, *theirs):
            os.close(number)
        self._numbers, self._buffer, self._events = itertools.count(1), b"", {}

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, where, width: int = 1200, height: int = 900, *, touch: bool = False, dark: bool = False,
             scripts: bool = True) -> "Page":  # fmt: skip
        """A page in a tab of its own, loaded.

        Args:
          where: a file's path, or a URL.
          width, height: of the window, in CSS pixels. touch: a phone, that is touched. dark: it prefers dark colours.
          scripts: whether those of the page run.
        """
        url = where.resolve().as_uri() if isinstance(where, pathlib.Path) else where
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session, width)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        page.call("Emulation.setDeviceMetricsOverride", size)
        page.call("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        page.call("Emulation.setFocusEmulationEnabled", {"enabled": True})  # keys reach it, whichever tab is in front
        page.call("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        page.media(dark=dark)
        if "errorText" in (answer := page.call("Page.navigate", {"url": url})):
            raise OSError(f"{url}: {answer['errorText']}")
        page.wait("document.readyState === 'complete'")
        return page

    def check(self, where, widths=(390, 1200), **options) -> "Page":
        """What holds for every page (`Page.check`), on a phone and on a desk, light and dark; returns the last one."""
        for width, dark in zip(widths, (True, False)):
            page = self.open(where, width, touch=width < 600, dark=dark, **options)
            page.check()
            if width != widths[-1]:
                page.close()
        return page

    def call(self, method: str, params: dict | None = None, session: str | None = None) -> dict:
        """The result of a method of the DevTools protocol. Events that come meanwhile are kept by session."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params or {}}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + TIMEOUT
        while True:
            answer = self._read(end, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._events.setdefault(answer.get("sessionId"), []).append(answer)

    def events(self, session: str) -> list[dict]:
        """What a session's tab has told since it was opened."""
        return self._events.get(session, [])

    def _read(self, end: float, method: str) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError(f"Chromium does not answer {method}; it {'has ended' if ready else 'is silent'}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A tab, see `Browser.open`."""

    def __init__(self, browser: Browser, session: str, width: int):
        self._browser, self._session, self.width = browser, session, width

    def call(self, method: str, params: dict | None = None) -> dict:
        """A method of the DevTools protocol on this tab."""
        return self._browser.call(method, params, self._session)

    def run(self, expression: str):
        """The value of a JavaScript expression; a promise is awaited.

        Raises:
          RuntimeError: the expression throws.
        """
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", params)
        if "exceptionDetails" in answer:
            raise RuntimeError(_thrown(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = TIMEOUT):
        """Waits until a JavaScript expression is truthy; returns its value.

        Raises:
          TimeoutError: it stays falsy.
        """
        end = time.monotonic() + seconds
        while not (value := self.run(condition)):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is still {value!r}; {self.errors()}")
            time.sleep(0.02)
        return value

    def errors(self) -> list[str]:
        """Errors that the console shows: exceptions, console.error, and what could not be loaded."""
        found = []
        for event in self._browser.events(self._session):
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(_thrown(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def requests(self) -> list[str]:
        """The URLs that the page has asked for, other than what lies in it."""
        events = self._browser.events(self._session)
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def check(self) -> None:
        """What holds for every page: no errors in the console, nothing wider than the window, every image loads."""
        broken = self.run("""Promise.all([...document.images].map(async image => {
          image.loading = "eager";  // those further down too
          await image.decode().catch(() => {});
          return image.naturalWidth ? null : image.alt || image.src.slice(0, 80);
        })).then(names => names.filter(name => name !== null))""")
        assert broken == [], f"images that do not load: {broken}"
        wide = self.run("""[document.documentElement.scrollWidth, [...document.querySelectorAll("body *")]
          .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
          .slice(0, 5).map(e => e.tagName + "." + e.className)]""")
        assert wide[0] <= self.width, f"{wide[0]} pixels wide in a window of {self.width}; {wide[1]}"
        assert self.errors() == []

    def media(self, *, dark: bool = False, printed: bool = False) -> None:
        """Sets what the page's style is asked for."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"media": "print" if printed else "", "features": [scheme]})

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """x, y, width and height of the first element, in the window, after scrolling it to its middle."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        return tuple(self.run(f"""(() => {{ const r = document.querySelector({json.dumps(selector)})
          .getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }})()"""))

    def click(self, selector: str, count: int = 1) -> None:
        """Clicks the middle of the first element, as a mouse does; `count` 2 is a double click."""
        x, y, width, height = self.box(selector)
        for k in range(count):
            self._mouse("mousePressed", x + width / 2, y + height / 2, clickCount=k + 1)
            self._mouse("mouseReleased", x + width / 2, y + height / 2, clickCount=k + 1)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags the mouse over an element, between two places in shares of its width and height."""
        x, y, width, height = self.box(selector)
        points = [(x + a * width, y + b * height) for a, b in (start, end)]
        middle = tuple((a + b) / 2 for a, b in zip(*points))
        self._mouse("mouseMoved", *points[0], button="none")
        self._mouse("mousePressed", *points[0])
        self._mouse("mouseMoved", *middle, buttons=1)
        self._mouse("mouseMoved", *points[1], buttons=1)
        self._mouse("mouseReleased", *points[1])

    def hover(self, selector: str, where: tuple[float, float] = (0.5, 0.5)) -> None:
        """Moves the mouse to a place in an element, in shares of its width and height."""
        x, y, width, height = self.box(selector)
        self._mouse("mouseMoved", x + where[0] * width, y + where[1] * height, button="none")

    def swipe(self, selector: str, up: float = 0, right: float = 0) -> None:
        """A finger on the middle of an element moves by so many pixels."""
        x, y, width, height = self.box(selector)
        for kind, share in (("touchStart", 0), *(("touchMove", k / 8) for k in range(1, 9)), ("touchEnd", None)):
            point = {"x": x + width / 2 + (share or 0) * right, "y": y + height / 2 - (share or 0) * up}
            self.call("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if share is None else [point]})
        # Two frames, so that what the finger has moved is drawn.
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def key(self, key: str, code: int = 0) -> None:
        """Presses a key, as "ArrowRight" (give its code, 39), "Enter" (13), "a"."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        params = {"key": key, "code": key if len(key) > 1 else "", "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", **params, **text})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **params})

    def picture(self, path: pathlib.Path, whole: bool = True) -> None:
        """A screenshot as PNG, of the whole page or of the window."""
        answer = self.call("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: pathlib.Path) -> None:
        """The page as it is printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", {"printBackground": False})["data"]))

    def close(self) -> None:
        """Closes the tab: what runs in it ends."""
        self.call("Page.close")

    def _mouse(self, kind: str, x: float, y: float, **more) -> None:
        params = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, **more}
        self.call("Input.dispatchMouseEvent", params)


def _thrown(details: dict) -> str:
    return f"{details['text']} {details.get('exception', {}).get('description', '')}".strip()
