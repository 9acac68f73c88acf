"""What all trained models are at inference: a model with its variables on the devices, run in padded batches."""

import functools
import hashlib
import json

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lapa_jax.core import tree
from lapa_jax.core.config import to_json
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.normalize import Normalizer
from lapa_jax.inference import observations
from lapa_jax.inference.kinds import Kind, kind_of
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

    @property
    def kind(self) -> Kind:
        """The row of the table of kinds that says who evaluates, labels, serves and exports it."""
        return kind_of(self.model)

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

    def run(self, function, *arrays) -> np.ndarray | dict[str, np.ndarray]:
        """Runs `function(variables, *arrays)`, jitted, over the leading axis in padded batches; the result on the host.

        The arrays are numpy arrays of one length, at least 1, or dicts of such; so is what the function gives.
        """
        parts, sharding = [], batch_sharding(self.mesh)
        count = len(jax.tree.leaves(arrays)[0])
        size = self._padded_size(count)
        for start in range(0, count, size):
            # The last row is repeated as padding: zeros could be no legal input of a model.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            padded = jax.device_put(jax.tree.map(lambda a, rows=rows: a[rows], arrays), sharding)
            given = function(self.variables, *padded)
            parts.append(jax.tree.map(lambda a, left=count - start: np.asarray(a)[:left], given))
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

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
    # Sorted keys: configs that say the same in another order are the same model.
    digest = hashlib.sha256(json.dumps(model_config, sort_keys=True).encode())
    for name, leaf in tree.flatten(variables).items():
        value = np.asarray(jax.device_get(leaf), order="C")
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


class ColumnModel(TrainedModel):
    """A trained model of rows of numbers in the units of the data. Attributes as of `TrainedModel`, and:

    Attributes:
      column: the column of the data that it gives back, one of `COLUMNS`; the first names it in the model's batches.
      width: numbers a row that the model takes; datasets with narrower rows are filled up with zeros.
    """

    COLUMNS: tuple[str, ...]

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        fields = self.config.get("data", {}).get("fields") or ()
        self.column = next((name for name in fields if name in self.COLUMNS), self.COLUMNS[0])
        self.width = model.example(1)[self.COLUMNS[0]].shape[-1]
        self._normalizers: dict[tuple, Normalizer | None] = {}

    def normalizer(self, dataset: str | None = None, column: str | None = None) -> Normalizer | None:
        """How a column of a dataset is scaled for the model, from the statistics that it was trained with; None: not.

        Args:
          dataset: which; not needed where there is one. column: the model's own if None.

        Raises:
          UserError: an unknown dataset, or none given where there are several.
        """
        key = name, column = self.dataset(dataset), column or self.column
        # A policy is asked at each step; its normalisers do not change.
        if key not in self._normalizers:
            mode = pipeline.normalization_of(self.config.get("data", {}), name)
            normalizer = None if mode == "none" else Normalizer(self.datasets[name]["statistics"][column], mode)
            self._normalizers[key] = normalizer
        return self._normalizers[key]

    def dataset(self, name: str | None = None) -> str | None:
        """The name of the dataset whose units are meant: the given one, or the only one there is; None: unknown."""
        return observations.chosen_dataset(self.datasets, name)

    def dataset_of(self, fingerprint: str, name: str | None = None) -> str | None:
        """The dataset whose scaling data of this fingerprint get: the given one, the one it is, or the only one."""
        same = [key for key, entry in self.datasets.items() if entry.get("fingerprint") == fingerprint]
        return self.dataset(name or next(iter(same), None))

    def width_of(self, dataset: str | None = None, column: str | None = None) -> int:
        """Numbers a row of a dataset's column, the model's own if None."""
        entry = self.datasets.get(self.dataset(dataset)) or {}
        shape = entry.get("features", {}).get(column or self.column, {}).get("shape")
        return int(shape[0]) if shape else self._model_width(column)

    def _model_width(self, column: str | None) -> int:
        return self.width if column in (None, self.column) else self.model.example(1)[column].shape[-1]

    def to_model(self, rows: np.ndarray, dataset: str | None, column: str | None = None) -> np.ndarray:
        """Rows f[..., A] in a dataset's units as the model takes them, f32[..., width]."""
        normalizer = self.normalizer(dataset, column)
        rows = np.asarray(rows, np.float32) if normalizer is None else normalizer.normalize(rows)
        # At the end, where a mixture's batches are padded too.
        return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, self._model_width(column) - rows.shape[-1])])

    def to_units(self, rows: np.ndarray, dataset: str | None) -> np.ndarray:
        """What the model gives, f32[..., width], in a dataset's units, f32[..., A]."""
        rows, normalizer = rows[..., : self.width_of(dataset)], self.normalizer(dataset)
        return rows if normalizer is None else normalizer.unnormalize(rows)

    def check_rows(self, rows, name: str, axes: tuple[int, ...], width: int) -> np.ndarray:
        """`rows` as a float array with so many axes, the last of `width`; else a `UserError`."""
        rows = np.asarray(rows)
        if rows.dtype.kind not in "fiu" or rows.ndim not in axes or 0 in rows.shape or rows.shape[-1] != width:
            raise UserError(f"{name} is {rows.dtype} {rows.shape}; numbers with {' or '.join(map(str, axes))} axes, "
                            f"the last of {width}, are expected")  # fmt: skip
        return rows.astype(np.float32)


def finite(rows: np.ndarray, name: str) -> np.ndarray:
    """`rows`, all of them finite; else a `UserError` that says where."""
    if not np.isfinite(rows).all():
        raise UserError(f"{name} holds a number that is not finite, at {np.argwhere(~np.isfinite(rows))[0].tolist()}")
    return rows
