"""Shares of a conversion beside each other, and one process alone that packs what they made."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from lapa_jax.core.errors import UserError

NAME = "shares"


class Busy(UserError):
    """Others are at work in the folder."""


def one_of_several(work: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """While the `with` block runs, nobody packs; `Busy` where somebody does."""
    return _held(work, fcntl.LOCK_SH, f"the parts of {work.parent} are being packed; nothing is left to do")


def no_other(work: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """While the `with` block runs, no share is at work; `Busy` where one is."""
    return _held(work, fcntl.LOCK_EX, f"shares of {work.parent} are still being converted; wait for them, or end them")


@contextlib.contextmanager
def _held(work: pathlib.Path, kind: int, words: str) -> Iterator[None]:
    # A record lock goes with its process, however it ends, and reaches other hosts on network file systems.
    with open(work / NAME, "a+") as file:
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise Busy(words) from None
        yield
