"""Stacks of layers: parameters of all layers in one array, and how many of the first layers are frozen.

The training step knows which layers `config.optim` freezes, and the stack of a model can leave out their gradients.
What lies between the two, the model, need not know of it: the step says it for the time of its trace, see `frozen`.
"""

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping, Sequence

from lapa_jax.core import tree

# The name of a parameter of a stack, [layers, ...] by its first axis; group 1 is the path of the stack.
STACK = re.compile(r"((?:.*/)?layers)/.*")

_FROZEN: contextvars.ContextVar[Mapping[str, int] | None] = contextvars.ContextVar("frozen_layers", default=None)


@contextlib.contextmanager
def frozen(counts: Mapping[str, int]) -> Iterator[None]:
    """Within it the first layers of stacks get no gradients: {path of a stack, "llm/decoder/layers": how many}."""
    token = _FROZEN.set(dict(counts))
    try:
        yield
    finally:
        _FROZEN.reset(token)


def frozen_in(path: Sequence[str]) -> int:
    """How many of the first layers of the stack with this path, ("llm", "decoder", "layers"), are frozen."""
    return (_FROZEN.get() or {}).get(tree.SEPARATOR.join(path), 0)
