"""A trace whose operations are counted and never run; models leave out then what only serves to run them."""

import contextlib
import contextvars
from collections.abc import Iterator

_RECOMPUTATION: contextvars.ContextVar[bool | None] = contextvars.ContextVar("recomputation", default=None)


@contextlib.contextmanager
def counting(recomputation: bool) -> Iterator[None]:
    """Within it traces are only counted. recomputation: whether what the backward pass computes again is to be seen."""
    token = _RECOMPUTATION.set(recomputation)
    try:
        yield
    finally:
        _RECOMPUTATION.reset(token)


def counted() -> bool:
    """Whether this trace is only counted: kernels whose operations do not show in it are replaced by plain ones."""
    return _RECOMPUTATION.get() is not None


def recomputes() -> bool:
    """Whether the backward pass may compute again what it does not keep."""
    return _RECOMPUTATION.get() is not False
