"""Low-rank adapters as the library PEFT writes them (`adapter_config.json`, `adapter_model.safetensors`), added to the
tensors of the model that they were trained on (LoRA, Hu et al. 2021)."""

import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json_object
from lapa_jax.models.released.base import Tensors
from lapa_jax.models.released.tensors import SafetensorsFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OFF = ("use_dora", "fan_in_fan_out", "lora_bias")
"""Options of adapters that change what is computed, and that are not supported."""


class Merged:
    """The tensors of a model with an adapter added: W + scale * B @ A, in float32.

    Attributes:
      shapes: those of the model. count: how many tensors change.
    """

    def __init__(self, base: Tensors, folder: pathlib.Path):
        """Args: base: the model's tensors. folder: of the adapter.

        Raises:
          UserError: an adapter of another kind, or one that does not fit the model; the names are listed.
        """
        config = _config(folder)
        self._base, self._adapter = base, SafetensorsFile(folder / WEIGHTS)
        self.shapes = base.shapes
        plain = {name.removeprefix(PREFIX): name for name in self._adapter.shapes}
        products = {m[1] for name in plain if (m := re.fullmatch(r"(.+)\.lora_[AB](\.default)?\.weight", name))}
        self._pairs, unknown = {}, []
        for module in sorted(products):
            pair = [plain.get(f"{module}.lora_{side}.weight") or plain.get(f"{module}.lora_{side}.default.weight")
                    for side in "AB"]  # fmt: skip
            if f"{module}.weight" not in base.shapes or None in pair:
                unknown += [name.removeprefix(PREFIX) for name in pair if name]
                continue
            self._pairs[f"{module}.weight"] = (*pair, _scale(config, module, self._adapter.shapes[pair[0]][0]))
        # what was trained as a whole stands in the file as a whole
        self._whole = {name.replace(".modules_to_save", "").replace(".default", ""): theirs
                       for name, theirs in plain.items() if not re.search(r"\.lora_[AB]\.", name)}  # fmt: skip
        unknown += [name for name in self._whole if name not in base.shapes]
        wrong = [f"{plain_name} {self._shape(plain_name)}, there {base.shapes[plain_name]}"
                 for plain_name in (*self._pairs, *(n for n in self._whole if n in base.shapes))
                 if self._shape(plain_name) != base.shapes[plain_name]]  # fmt: skip
        lines = [f"{what} ({len(names)}): {', '.join(names)}"
                 for what, names in (("unexpected", unknown), ("of another shape", wrong)) if names]  # fmt: skip
        if lines or not (self._pairs or self._whole):
            raise UserError(f"{folder} is no adapter of this model; {'; '.join(lines) or 'it holds no tensors'}")
        self.count = len(self._pairs) + len(self._whole)

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        if name in self._whole:
            return self._adapter.read(self._whole[name])
        tensor = self._base.read(name)
        if name not in self._pairs:
            return tensor
        a, b, scale = self._pairs[name]
        a, b = self._adapter.read(a), self._adapter.read(b)
        product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)  # a convolution's B is one of single pixels
        return tensor + np.float32(scale) * product.reshape(tensor.shape)

    def _shape(self, name: str) -> tuple[int, ...]:
        """That of the tensor `name` as the adapter has it."""
        if name in self._whole:
            return self._adapter.shapes[self._whole[name]]
        a, b, _ = self._pairs[name]
        return (self._adapter.shapes[b][0], *self._adapter.shapes[a][1:])


def is_adapter(folder: pathlib.Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def _config(folder: pathlib.Path) -> Mapping:
    config = read_json_object(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG} has peft_type {config.get('peft_type')!r}; LORA can be merged")
    for name in OFF:
        if config.get(name):
            raise UserError(f"{folder / CONFIG} has {name} {config[name]!r}, which cannot be merged")
    return config


def _scale(config: Mapping, module: str, rank: int) -> float:
    """The product's weight: alpha / rank, or with rank-stabilised adapters alpha / sqrt(rank)."""
    alpha = next((value for pattern, value in (config.get("alpha_pattern") or {}).items()
                  if re.fullmatch(rf"(.*\.)?({pattern})", module)), config.get("lora_alpha", 8))  # fmt: skip
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
