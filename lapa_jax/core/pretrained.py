"""The file format of exported models: a folder with `config.json` and `model.safetensors`, all that inference needs.

`config.json` is `{"format": "lapa_jax.model", "version": 1, "model": {"name": ..., fields}, "meta": {...}}`. Tensors
are named by collection and path, "params/encoder/project/kernel". The weights carry the sha256 of their `config.json`,
so that files of two exports are never taken for one; `config.json` has the size and checksum of the weights, "weights".
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from lapa_jax.core import integrity, tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_path, placeholder, read_json, write_json

FORMAT, VERSION = "lapa_jax.model", 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CONFIG_DIGEST, WEIGHTS = "config_sha256", "weights"


def save_pretrained(folder: str | os.PathLike, model_spec: Mapping, variables: Mapping, meta: Mapping) -> None:
    """Writes an exported model.

    Args:
      folder: made if absent; an export that lies there is replaced.
      model_spec: `{"name": "tokenizers.laq", field: value, ...}`, JSON values (tuples become lists).
      variables: collections of arrays, `{"params": ..., "codebook": ...}`.
      meta: whatever inference should know besides (config, statistics, step, ...), JSON values.
    """
    import jax

    folder = pathlib.Path(folder)
    config = {"format": FORMAT, "version": VERSION, "model": dict(model_spec), "meta": dict(meta)}
    tensors = {name: np.asarray(jax.device_get(leaf), order="C") for name, leaf in tree.flatten(variables).items()}
    # The weights first: until their config lies beside them, the digests differ and the folder does not load.
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={CONFIG_DIGEST: _digest(config)})
    write_json(folder / CONFIG_FILE, {**config, WEIGHTS: _size_and_sum(folder / WEIGHTS_FILE)})


def load_pretrained(folder: str | os.PathLike) -> tuple[dict, dict, dict]:
    """Reads what `save_pretrained` wrote, exactly.

    Returns:
      The model spec (tuples have become lists), the variables as numpy arrays, and the meta data.

    Raises:
      UserError: a file is missing or damaged, is of another format or version, or the two are not of one export.
    """
    with open_pretrained(folder) as (config, file):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return config["model"], tree.unflatten(tensors), config["meta"]


@contextlib.contextmanager
def open_pretrained(folder: str | os.PathLike, verify: bool = True) -> Iterator[tuple[dict, safetensors.safe_open]]:
    """The `config.json` of an exported model, and its open weights, to take single tensors from.

    Args:
      verify: whether to compare the checksum of the weights, which reads all of them.

    Raises:
      UserError: as `load_pretrained`.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG_FILE} does not describe an exported model (its format is not '{FORMAT}')")
    if config.get("version") != VERSION:
        raise UserError(f"{folder / CONFIG_FILE} has version {config.get('version')}, this program reads {VERSION}; "
                        "use the release that wrote it")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise UserError(f"{weights} does not exist; export the model again")
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            if (file.metadata() or {}).get(CONFIG_DIGEST) != _digest(config):
                raise UserError(f"{weights} does not belong to the {CONFIG_FILE} beside it; export the model again")
            if verify and integrity.enabled() and _size_and_sum(weights) != config.get(WEIGHTS):
                raise UserError(f"{weights} is damaged: its checksum is not that in {CONFIG_FILE}; copy it again, or "
                                "export the model again")
            yield config, file
    except safetensors.SafetensorError as error:
        raise UserError(placeholder(weights) or f"{weights} is damaged ({error}); export the model again") from None


def _size_and_sum(weights: pathlib.Path) -> list:
    return [weights.stat().st_size, integrity.checksum(weights)]


def _digest(config: Mapping) -> str:
    """The sha256 of a config, which is in the weights; what it says about the weights themselves is left out."""
    config = {name: value for name, value in config.items() if name != WEIGHTS}
    return hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode()).hexdigest()
