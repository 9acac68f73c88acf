"""What all tokenizers are at inference: a model with its variables on the devices, run in padded batches."""

import functools
import hashlib
import json

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lapa_jax.core import tree
from lapa_jax.core.config import to_json
from lapa_jax.train.sharding import batch_sharding, make_mesh

LARGEST_BATCH = 256


class TrainedModel:
    """A trained model that computes on numpy arrays.

    Batches are padded to the number of devices times a power of two, up to 256 examples, and spread over the devices:
    few programs are compiled however many examples the calls bring.

    Attributes:
      model: the Flax module.
      mesh: the devices it runs on, all on the "data" axis.
      replicated: the sharding of its variables.
      variables: its variables, `{"params": ..., ...}`, a copy on every device.
      config: the run's config.
      datasets: what it was trained on, {name: {"statistics", "features", ...}}; see `lapa_jax.data.samples.meta`.
      step: the training step of the weights.
    """

    def __init__(self, model, variables, *, config, datasets, step: int = 0, devices=None):
        self.model, self.config, self.datasets, self.step = model, config, dict(datasets or {}), int(step)
        self.mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices or jax.local_devices())
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.variables = jax.device_put(variables, self.replicated)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the model's config and every variable's name, shape, type and bytes; labels carry it."""
        return fingerprint(to_json(self.config)["model"], self.variables)

    def save_pretrained(self, folder) -> None:
        """Writes `config.json` and `model.safetensors`; `lapa_jax.load(folder)` gives the same model to the bit."""
        from lapa_jax.models import pretrained

        config = to_json(self.config)
        meta = {"config": config, "datasets": self.datasets, "step": self.step}
        pretrained.save_pretrained(folder, config["model"], self.variables, meta)

    def run(self, function, *arrays) -> np.ndarray:
        """Runs `function(variables, *arrays)`, jitted, over the leading axis in padded batches; the result on the host.

        The arrays are numpy arrays of one length, at least 1, or dicts of such; the function gives one array.
        """
        parts, place = [], batch_sharding(self.mesh)
        count = len(jax.tree.leaves(arrays)[0])
        size = self._padded_size(count)
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            padded = jax.device_put(jax.tree.map(lambda a, rows=rows: a[rows], arrays), place)
            parts.append(np.asarray(function(self.variables, *padded))[: count - start])
        return np.concatenate(parts)

    def _padded_size(self, count: int) -> int:
        """The batch size for `count` examples: devices times a power of two, and no more than needed or allowed."""
        size = self.mesh.size
        while size < count and size * 2 <= LARGEST_BATCH:
            size *= 2
        return size


def fingerprint(model_config: dict, variables) -> str:
    """sha256 (hex) of a model: its config as canonical JSON, then each variable's name, type, shape and bytes.

    Codebooks that moving averages update are variables, but no parameters: all collections count.
    """
    digest = hashlib.sha256(json.dumps(model_config, sort_keys=True).encode())
    for name, leaf in tree.flatten(variables).items():
        value = np.asarray(jax.device_get(leaf), order="C")
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
