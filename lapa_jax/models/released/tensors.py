"""Tensors in safetensors files: one file, or shards with an index, as Hugging Face writes them."""

import contextlib
import pathlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from lapa_jax.core import torch_file
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder, read_json_object
from lapa_jax.core.torch_file import TorchFile
from lapa_jax.models.released.base import Tensors

FLOATS = ("F32", "F16", "BF16")
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFile:
    """The tensors of one file. shapes: {name: shape}.

    Raises:
      UserError: no such file, a damaged one, or tensors that are no floating-point numbers.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.shapes = path, {}
        with open_safetensors(path) as file:
            for name in file.keys():
                part = file.get_slice(name)
                if part.get_dtype() not in FLOATS:
                    raise UserError(f"{path}: {name} is {part.get_dtype()}; known: {', '.join(FLOATS)} (quantised "
                                    "weights cannot be imported)")
                self.shapes[name] = tuple(part.get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32. The file is mapped anew, so that what was read before does not stay in memory."""
        with open_safetensors(self.path) as file:
            return np.asarray(file.get_tensor(name), np.float32)


class SafetensorsFolder:
    """The tensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Raises:
      UserError: lists the files that are absent or damaged, and the tensors on which index and shards do not agree.
    """

    def __init__(self, folder: pathlib.Path):
        index = folder / INDEX
        weight_map = _weight_map(index) if index.is_file() else None
        files = sorted(set(weight_map.values())) if weight_map is not None else [FILE]
        self._files: dict[str, SafetensorsFile] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        wrong = []
        for name in files:
            try:
                file = SafetensorsFile(folder / name)
            except UserError as error:
                wrong.append(str(error))
                continue
            self._files |= dict.fromkeys(file.shapes, file)
            self.shapes |= file.shapes
        if wrong:
            raise UserError("; ".join(wrong))
        held = {name: file.path.name for name, file in self._files.items()}
        if weight_map is not None and weight_map != held:
            names = sorted(n for n in {*weight_map, *held} if weight_map.get(n) != held.get(n))
            raise UserError(f"{index} and its shards do not agree on {', '.join(names)}; download the checkpoint again")

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        return self._files[name].read(name)


class Renamed:
    """Tensors of one or several sources under other names. names: {new name: (tensors, name there)}."""

    def __init__(self, names: Mapping[str, tuple[Tensors, str]]):
        self._names = dict(names)
        self.shapes = {name: tensors.shapes[theirs] for name, (tensors, theirs) in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        tensors, theirs = self._names[name]
        return tensors.read(theirs)


def aligned(tensors: Tensors, wanted: Collection[str]) -> tuple[Tensors, list[str]]:
    """Tensors under the names that a reader wants, where all of them have a prefix more, or lack one.

    A model that is saved as a part of a larger one has its name before all names (`language_model.`, `dinov2.`), and
    one that is saved without its head lacks the `model.` of those that have one.

    Args:
      tensors: of a checkpoint. wanted: the names that the reader knows.

    Returns:
      The tensors, those outside of the prefix left out; and what was done, as lines for the user. The tensors
      themselves where no prefix makes more than half of the names known.
    """
    votes: Counter[tuple[str, str]] = Counter()
    for name in tensors.shapes:
        parts = name.split(".")
        for start in range(len(parts)):
            prefix, rest = ".".join(parts[:start]), ".".join(parts[start:])
            for lacking in ("", "model."):
                votes[prefix, lacking] += lacking + rest in wanted
    prefix, lacking = max(votes, key=lambda pair: (votes[pair], -len(pair[0]), -len(pair[1])), default=("", ""))
    if (prefix, lacking) == ("", "") or 2 * votes[prefix, lacking] <= len(wanted):
        return tensors, []
    before = f"{prefix}." if prefix else ""
    names, outside = {}, 0
    for name in tensors.shapes:
        if name.startswith(before):
            rest = name.removeprefix(before)
            names[lacking + rest if lacking + rest in wanted else rest] = (tensors, name)
        elif name in wanted:  # a head may lie beside the part that has the prefix
            names[name] = (tensors, name)
        else:
            outside += 1
    notes = [f"names of tensors begin with '{before}', which was taken off"] if before else []
    notes += [f"names of tensors lack the prefix '{lacking}', which was put before them"] if lacking else []
    notes += [f"left out: {outside} tensors outside of '{before}'"] if outside else []
    return Renamed(names), notes


@contextlib.contextmanager
def open_safetensors(path: pathlib.Path) -> Iterator:
    """The opened file; a `UserError` that names it where that fails."""
    import safetensors

    if not path.is_file():
        raise UserError(f"{path} does not exist; a Hugging Face folder has config.json and {FILE}, or {INDEX} and the "
                        "shards that it names")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise UserError(placeholder(path) or f"{path} is not a readable safetensors file ({error})") from None


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map {{tensor: file}}; download the checkpoint again")
    if away := sorted({name for name in weight_map.values() if pathlib.PurePath(name).name != name}):
        raise UserError(f"{index} names files outside of its folder: {', '.join(away)}")
    return dict(weight_map)


class TorchTensors:
    """Tensors of a file of `torch.save`, by name. shapes: {name: shape}."""

    def __init__(self, file: TorchFile, tensors: Mapping[str, torch_file.Tensor]):
        self._file, self._tensors = file, dict(tensors)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        return np.asarray(self._file.read(self._tensors[name]), np.float32)
