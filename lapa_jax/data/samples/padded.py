"""A dataset as a model of several robots takes it: rows filled up with zeros to the widths that the model has."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.data.samples.base import NOWHERE, Rows
from lapa_jax.data.samples.mixture import PADDED


class Padded:
    """The samples of a source, with what a mixture would do to them; in all else it is the source.

    Args:
      source: the samples. widths: {field: numbers in its last axis}; narrower rows are filled up.
    """

    def __init__(self, source, widths: Mapping[str, int]):
        self.source, self.widths = source, dict(widths)

    def __getattr__(self, name: str):
        # Copying and pickling look for special methods before `source` is set, and would recurse.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["source"], name)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"Padded({self.source!r}, {self.widths})"

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """One sample: what `batch` gives, without the first axis."""
        return {name: values[0] for name, values in self.batch([i]).items()}

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """What the source gives, filled up, and "<field>_dims" f32[B, A] of actions and states where it has none."""
        batch = self.source.batch(indices, into) if into else self.source.batch(indices)
        dims = {}
        for name, width in self.widths.items():
            values, width_before = batch[name], batch[name].shape[-1]
            batch[name] = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, width - width_before)])
            if name in ("action", "state"):
                own_dims = np.broadcast_to((np.arange(width) < width_before).astype(np.float32), (len(values), width))
                source_dims = batch.get(f"{name}_dims")
                padded = own_dims if source_dims is None else np.pad(source_dims, [(0, 0), (0, width - width_before)])
                # broadcast_to gives a read-only view of one row; batches are written to.
                dims[f"{name}_dims"] = padded.copy()
        return {**batch, **dims}


def as_wide_as(source, shapes: Mapping[str, Sequence[int]]):
    """`source` with rows as wide as in samples of these shapes; the source itself where they are already.

    Args:
      source: the samples. shapes: {field: shape of a sample}. Only fields that a mixture would fill up are.
    """
    widths = {}
    for name, values in source.batch([]).items():
        shape, target = values.shape[1:], tuple(shapes.get(name, ()))
        if name in PADDED and len(shape) == len(target) and shape[:-1] == target[:-1] and shape[-1] <= target[-1]:
            missing = f"{name}_dims" in shapes and f"{name}_dims" not in source.batch([])
            if shape[-1] < target[-1] or missing:
                widths[name] = target[-1]
    return Padded(source, widths) if widths else source
