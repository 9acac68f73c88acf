"""Work in a thread of its own, which does not keep the process from ending, as the threads of a pool do."""

import threading
from collections.abc import Callable


class Background:
    """Runs a function; `result` waits for it and raises what it raised."""

    def __init__(self, function: Callable[[], None]):
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), name="background", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return not self._thread.is_alive()

    def result(self) -> None:
        """Waits for the end."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            self._error = error
