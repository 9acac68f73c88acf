"""In which type the gradients of linear layers are computed, and so sent between devices: said by the training step to
the layers of a model for the time of its trace."""

import contextlib
import contextvars
from collections.abc import Iterator

CHOICES = (None, "float32")

_DTYPE: contextvars.ContextVar[str | None] = contextvars.ContextVar("gradient_dtype", default=None)


@contextlib.contextmanager
def in_dtype(dtype: str | None) -> Iterator[None]:
    """Within it linear layers compute the gradients of their kernels in this type; None: in that of the layer."""
    token = _DTYPE.set(dtype)
    try:
        yield
    finally:
        _DTYPE.reset(token)


def in_float32() -> bool:
    """Whether gradients of kernels are float32, whatever the layer computes in."""
    return _DTYPE.get() == "float32"
