"""Tokenizers of numeric columns at inference: what those of actions and of features share."""

import functools
import inspect
from collections.abc import Mapping

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference.units import ColumnModel


class ColumnTokenizer(ColumnModel):
    """A trained tokenizer of rows of numbers in the units of the data. Attributes as of `ColumnModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._encode = jax.jit(functools.partial(_apply_encode, model))
        self._decode = jax.jit(functools.partial(_apply_decode, model))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes there are at each place of a row of codes."""
        return tuple(int(size) for size in jax.tree.leaves(self.model.codebook_sizes))

    @property
    def codebook_size(self) -> int | tuple[int, ...]:
        """K where all places have the same number of codes, else `codebook_sizes`."""
        sizes = self.codebook_sizes
        return sizes[0] if len(set(sizes)) == 1 else sizes

    @property
    def code_length(self) -> int:
        """Codes a row."""
        return len(self.codebook_sizes)

    def check_codes(self, codes, axes: tuple[int, ...]) -> np.ndarray:
        """`codes` as an int32 array with so many axes, the last of one code each; else a `UserError`."""
        codes, sizes = np.asarray(codes), np.array(self.codebook_sizes)
        if codes.dtype.kind not in "iu" or codes.ndim not in axes or 0 in codes.shape or codes.shape[-1] != len(sizes):
            raise UserError(f"codes is {codes.dtype} {codes.shape}; integers with {' or '.join(map(str, axes))} axes, "
                            f"the last of {len(sizes)}, are expected")  # fmt: skip
        flat = codes.reshape(-1, len(sizes))
        if wrong := np.flatnonzero((flat.min(0) < 0) | (flat.max(0) >= sizes)).tolist():
            place = wrong[0]
            raise UserError(f"codes holds {flat[:, place].min()}..{flat[:, place].max()} at place {place}, whose "
                            f"codebook has 0..{sizes[place] - 1}")
        return codes.astype(np.int32)


def _apply_encode(model, variables, batch: Mapping):
    found = model.apply(variables, *_arguments(model, batch), method="encode")
    return found["codes"] if isinstance(found, Mapping) else found


def _arguments(model, batch: Mapping) -> list:
    """A model's `encode` takes a batch, or the arrays of one by the order of the example's fields."""
    names = [name for name in inspect.signature(type(model).encode).parameters if name != "self"]
    return [batch] if names[0] == "batch" else [batch[name] for name in model.example(1)]


def _apply_decode(model, variables, *arrays):
    return model.apply(variables, *arrays, method="decode").astype("float32")
