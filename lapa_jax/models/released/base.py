"""What readers of released checkpoints give to `tools/import_weights.py`, which streams it into a run folder."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models import pretrained

_SHOWN = 8
"""Names that a message lists; a checkpoint of another kind lacks all of them."""


class Tensors(Protocol):
    """The tensors of a checkpoint. shapes: {name: shape}, known without reading any."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32; nothing of it stays in memory when the caller drops it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor, or a part of it, goes.

    Attributes:
      path: of the parameter, "llm/decoder/layers/attention/query/kernel".
      change: makes the tensor ours; also called with arrays of zeros, for the shape of the result.
      layer: index on axis 0 of a parameter that is stacked over layers; None for a whole one.
    """

    path: str
    change: Callable[[np.ndarray], np.ndarray]
    layer: int | None = None


@dataclasses.dataclass(frozen=True)
class Release:
    """A released checkpoint, ready to be written as a run.

    Attributes:
      kind: what it is, in words. source: the folder or file.
      config: of the run, JSON values: {"model": spec, and perhaps "data"}.
      tensors: what it holds. places: {name of a tensor: where it goes}, one or several.
      unused: regular expression of names that are known and left out.
      meta: what else the checkpoint keeps, JSON values: {"datasets": ...}.
      files: {name within the run folder: file to copy}, such as those of a tokenizer.
      notes: lines for the user: what was chosen where the checkpoint says nothing.
      stored: what numbers are stored as, "float32" or "bfloat16"; None for what the user asks for.
      float32: regular expression of parameters that are stored as float32 whatever the others are.
    """

    kind: str
    source: pathlib.Path
    config: dict
    tensors: Tensors
    places: Mapping[str, Sequence[Place]]
    unused: str = ""
    meta: dict = dataclasses.field(default_factory=dict)
    files: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    stored: str | None = None
    float32: str = ""


def parameters(spec: Mapping) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters of the model of a spec with `example`; none is computed."""
    variables = pretrained.expected_variables(config_lib.build("lapa_jax.models", spec))
    return {path: leaf.shape for path, leaf in tree.flatten(variables["params"]).items()}


def check(release: Release, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Compares a checkpoint with the parameters `wanted`, {path: shape}.

    Returns:
      The names of the tensors that are left out.

    Raises:
      UserError: lists the tensors that are missing, unexpected or of a wrong shape, and parameters that none gives.
    """
    given, places = release.tensors.shapes, release.places
    unused = [name for name in given if name not in places and re.fullmatch(release.unused, name)]
    lists = {
        "missing": [name for name in places if name not in given],
        "unexpected": [name for name in given if name not in places and name not in unused],
        "parameters that no tensor gives": set(wanted) - {place.path for some in places.values() for place in some},
    }
    lines = [f"{what} ({len(names)}): {_few(sorted(names))}" for what, names in lists.items() if names]
    for name in sorted(set(places) & set(given)):
        lines += [line for place in places[name] if (line := _misfit(name, given[name], place, wanted))]
    if lines:
        raise UserError(f"{release.source} is no complete {release.kind}; {'; '.join(lines)}")
    return sorted(unused)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _misfit(name: str, shape: tuple[int, ...], place: Place, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with the shape of a tensor, in words; "" where nothing is."""
    expected = wanted.get(place.path)
    if expected is not None and place.layer is not None:
        expected = expected[1:]
    try:
        got = place.change(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):  # of a shape that cannot even be changed
        got = None
    instead = f" but {got}" if got is not None and expected is not None else ""
    return "" if got == expected else f"{name} has shape {shape}, which does not give {place.path} {expected}{instead}"


def same(x: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return x


def without_batch(x: np.ndarray) -> np.ndarray:
    """[1, N, D] -> [N, D]."""
    return x.reshape(x.shape[1:]) if x.ndim == 3 and len(x) == 1 else x


def patches_kernel(x: np.ndarray) -> np.ndarray:
    """The convolution over patches, [D, C, p, p] -> [C*p*p, D], in the order of `nn.patches.to_patches`."""
    return x.reshape(len(x), -1).T


def prefixed(places: Mapping[str, Sequence[Place]], name: str, path: str) -> dict[str, tuple[Place, ...]]:
    """The same with `name` before the tensors' names and `path` before the parameters'."""
    return {name + theirs: tuple(dataclasses.replace(place, path=path + place.path) for place in some)
            for theirs, some in places.items()}  # fmt: skip
