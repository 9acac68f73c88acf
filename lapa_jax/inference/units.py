"""Models that take numbers in the units of the data: whose units, how they are scaled, and what is refused."""

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import pipeline
from lapa_jax.data.normalize import Normalizer
from lapa_jax.inference.trained import TrainedModel


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
        if key not in self._normalizers:
            mode = pipeline.normalization_of(self.config.get("data", {}), name)
            known = None if mode == "none" else Normalizer(self.datasets[name]["statistics"][column], mode)
            self._normalizers[key] = known
        return self._normalizers[key]

    def dataset(self, name: str | None = None) -> str | None:
        """The name of the dataset whose units are meant: the given one, or the only one there is; None: unknown."""
        if name is None and len(self.datasets) > 1:
            known = ", ".join(self.datasets)
            raise UserError("this model was trained on several datasets, each with its own scaling; say whose "
                            f"units are meant with dataset=... (--dataset; one of {known})")  # fmt: skip
        if name is not None and name not in self.datasets:
            raise UserError(f"dataset '{name}' is none that this model was trained on"
                            f"{did_you_mean(name, self.datasets)}")
        return name or next(iter(self.datasets), None)

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
