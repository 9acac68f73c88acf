"""A trace whose operations are counted and never run; models leave out then what only serves to run them."""

import contextlib
import contextvars
from collections.abc import Iterator

KERNEL, RECOMPUTATION = "kernel", "recomputation"

_RECOMPUTATION: contextvars.ContextVar[bool | None] = contextvars.ContextVar("recomputation", default=None)
_MET: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("met", default=None)


@contextlib.contextmanager
def counting(recomputation: bool) -> Iterator[None]:
    """Within it traces are only counted. recomputation: whether what the backward pass computes again is to be seen."""
    token = _RECOMPUTATION.set(recomputation)
    try:
        yield
    finally:
        _RECOMPUTATION.reset(token)


@contextlib.contextmanager
def watching() -> Iterator[set[str]]:
    """Within it traces are made to be run. Yields what they met that a counted one does otherwise: `KERNEL`,
    `RECOMPUTATION`. Where that stays empty they can be counted themselves, which saves tracing a large model again."""
    token = _MET.set(set())
    try:
        yield _MET.get()
    finally:
        _MET.reset(token)


def counted() -> bool:
    """Whether this trace is only counted: kernels whose operations do not show in it are replaced by plain ones.

    To be asked only where there is such a kernel; see `watching`.
    """
    _meet(KERNEL)
    return _RECOMPUTATION.get() is not None


def recomputes() -> bool:
    """Whether the backward pass may compute again what it does not keep. To be asked only where it would."""
    _meet(RECOMPUTATION)
    return _RECOMPUTATION.get() is not False


def _meet(what: str) -> None:
    if (met := _MET.get()) is not None:
        met.add(what)
