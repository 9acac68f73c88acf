"""Shares of a conversion beside each other, and one process alone that packs what they made."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from lapa_jax.core.errors import UserError
from lapa_jax.core.lock import held, locked, refusal
from lapa_jax.core.share import at_work, locks_of_shares

SHARES, PACKS = "shares", "lock"
"""Files in the state folder: locked by all shares together, and held by who packs."""


class Busy(UserError):
    """Others are at work in the folder."""


@contextlib.contextmanager
def one_of_several(work: pathlib.Path, share: tuple[int, int]) -> Iterator[None]:
    """While the `with` block runs, nobody packs; `Busy` where somebody does, a `UserError` as of `at_work`."""
    doing = "converting share {}/{} to {}".format(*share, work.parent)
    packed = f"the parts of {work.parent} are being packed; nothing is left to do"
    with at_work(work, share, doing), _all_or_one(work, fcntl.LOCK_SH, packed) as locks_work:
        if not locks_work and held([work / PACKS]):
            raise Busy(packed)
        yield


@contextlib.contextmanager
def no_other(work: pathlib.Path) -> Iterator[None]:
    """While the `with` block runs, no share and no other conversion is at work; `Busy` where one is."""
    doing = f"converting to {work.parent}"
    busy = f"shares of {work.parent} are still being converted; wait for them, or end them"
    with _all_or_one(work, fcntl.LOCK_EX, busy) as locks_work, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(work / PACKS, doing))
        except UserError as error:
            raise Busy(str(error)) from None
        if not locks_work and held(locks_of_shares(work)):
            raise Busy(busy)
        yield


@contextlib.contextmanager
def _all_or_one(work: pathlib.Path, kind: int, busy: str) -> Iterator[bool]:
    """Gives whether this file system has locks. Where it has, they alone decide: of two that finish together exactly
    one packs."""
    # A record lock goes with its process, however it ends, and reaches other hosts on network file systems.
    with open(work / SHARES, "a+") as file:
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            locks_work = True
        except (BlockingIOError, PermissionError):
            converting = held([work / PACKS]) if kind == fcntl.LOCK_EX else None
            raise Busy(refusal(converting, f"converting to {work.parent}") if converting else busy) from None
        except OSError:
            locks_work = False
        yield locks_work
