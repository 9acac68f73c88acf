"""What clients do wrong, in the log: a line each, without a traceback, and no more than the log can bear."""

import logging
import time

from lapa_jax.core.escape import one_line

A_SECOND = 10
"""Lines; what is more is counted."""


class Remarks:
    """Lines of a logger, `A_SECOND` at most. Args: logger: that gets them."""

    def __init__(self, logger: logging.Logger):
        self._logger, self._second, self._said, self._more = logger, 0, 0, 0

    def say(self, text: str) -> None:
        """One line, or one more that is counted."""
        second = int(time.monotonic())
        if second != self._second:
            if self._more:
                self._logger.warning("%d more of such lines", self._more)
            self._second, self._said, self._more = second, 0, 0
        if self._said < A_SECOND:
            self._said += 1
            self._logger.warning("%s", one_line(text))
        else:
            self._more += 1

    @classmethod
    def logger(cls, name: str, known: bool) -> logging.Logger:
        """The logger for aiohttp, which gives a traceback for bytes that are no HTTP.

        Args:
          name: of the logger. known: whether such lines are wanted: not from strangers, where a token is asked for.
        """
        logger = logging.getLogger(f"{name}.{'known' if known else 'strangers'}")
        remarks = cls(logging.getLogger(name))

        def shorten(record: logging.LogRecord) -> bool:
            error = record.exc_info[1] if record.exc_info else None
            if known and record.levelno >= logging.WARNING:
                remarks.say(record.getMessage() + (f": {type(error).__name__}: {error}" if error else ""))
            return False

        logger.filters.clear()
        logger.addFilter(shorten)
        return logger
