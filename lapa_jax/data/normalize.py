"""Normalisation of numeric columns, and its inverse, from the statistics that travel with the data.

Every mode is `(x - offset) / scale` per dimension, so that un-normalising mirrors normalising by construction.
What a dimension is like (`statistics.kinds`) goes before the mode, except in mode "none":
  constant  becomes 0, and comes back as the constant whatever a model says
  binary    two values, as of a gripper, become -1 and 1
  sparse    minimum and maximum become -1 and 1: the percentiles of a dimension that hardly ever moves coincide, and
            its standard deviation is so small that its few movements would explode. Mode "q01_q99_clip", in which
            nothing can explode, keeps to the percentiles of those that merely have a few values very far out
Mode "openvla" is OpenVLA's: q01 and q99 become -1 and 1 in the dimensions that the summary's "mask" names, whatever
they are like, and the others stay as they are. Without a mask it names those that are continuous or constant.
"""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.statistics import far, kinds, values

MODES = ("none", "mean_std", "q01_q99", "q01_q99_clip", "min_max", "openvla")


class Normalizer:
    """Scales one column of one dataset.

    Args:
      summary: the column's statistics; see `lapa_jax.data.statistics`.
      mode: "none"; "mean_std", mean 0 and standard deviation 1; "q01_q99", those percentiles become -1 and 1;
        "q01_q99_clip", and what lies beyond becomes -1 or 1 as well, so 2 % of the rows are lost; "min_max";
        and "openvla", see above. But for what is clipped and for constant dimensions `unnormalize(normalize(x))` is
        x, to float32 rounding.

    Attributes:
      mode: as given. offset, scale: f64[A]; a scale of 0 marks a constant dimension.
    """

    def __init__(self, summary: Mapping, mode: str):
        _check(mode)
        self.mode = mode
        low, high, q01, q99, mean, std = values(summary, "min", "max", "q01", "q99", "mean", "std")
        self.offset, self.scale = np.zeros_like(low), np.ones_like(low)
        if mode == "none":
            return
        if mode == "openvla":
            mask, (offset, scale) = _mask(summary, len(low)), _middle(q01, q99)
            self.offset, self.scale = np.where(mask, offset, 0.0), np.where(mask, scale, 1.0)
            return
        if mode == "mean_std":
            self.offset, self.scale = mean, std
        else:
            bounds = (q01, q99) if mode.startswith("q01_q99") else (low, high)
            self.offset, self.scale = _middle(*bounds)
        dimension_kinds = np.array(kinds(summary))
        by_range = np.isin(dimension_kinds, ("binary", "sparse"))
        if mode == "q01_q99_clip":
            by_range &= ~far(summary) | (dimension_kinds == "binary")
        middle, half = _middle(low, high)
        self.offset = np.where(by_range, middle, self.offset)
        self.scale = np.where(by_range, half, self.scale)
        constant = dimension_kinds == "constant"
        self.offset, self.scale = np.where(constant, mean, self.offset), np.where(constant, 0.0, self.scale)

    def normalize(self, rows: np.ndarray) -> np.ndarray:
        """Numbers f[..., A] in the data's units as f32[..., A]. NaN stays NaN."""
        constant = self.scale == 0
        # In float64, rounded once at the end: a small movement about a large offset would lose its digits in float32.
        result = (self._rows(rows) - self.offset) / np.where(constant, 1.0, self.scale)
        result[..., constant] = 0.0
        if self.mode == "q01_q99_clip":
            result = np.clip(result, -1.0, 1.0)
        return result.astype(np.float32)

    def unnormalize(self, rows: np.ndarray) -> np.ndarray:
        """Normalised numbers f[..., A] in the data's units: f64[..., A] of f64, else f32[..., A]."""
        # Models give float32; a caller who keeps float64 wants an exact inverse.
        dtype = np.float64 if np.asarray(rows).dtype == np.float64 else np.float32
        result = self._rows(rows) * self.scale + self.offset
        constant = self.scale == 0
        result[..., constant] = self.offset[constant]
        return result.astype(dtype)

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.float64)
        if rows.shape[-1:] != self.offset.shape:
            raise ValueError(f"rows of shape {list(rows.shape)} for statistics of {len(self.offset)} dimensions")
        return rows

    def to_json(self) -> dict:
        """The normaliser as JSON values; `from_json` makes an equal one, without the statistics."""
        return {"mode": self.mode, "offset": self.offset.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, saved: Mapping) -> "Normalizer":
        """The inverse of `to_json`."""
        _check(saved["mode"])
        normalizer = cls.__new__(cls)
        normalizer.mode = saved["mode"]
        normalizer.offset, normalizer.scale = values(saved, "offset", "scale")
        return normalizer

    def __repr__(self) -> str:
        return f"Normalizer({self.mode}, {len(self.offset)} dimensions)"


def _check(mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"normalisation mode '{mode}' does not exist{did_you_mean(mode, MODES)}")


def _mask(summary: Mapping, width: int) -> np.ndarray:
    """bool[A]: which dimensions mode "openvla" scales."""
    stated = summary.get("mask")
    if stated is None:
        return np.isin(kinds(summary), ("continuous", "constant"))
    mask = np.asarray(stated)
    if mask.dtype != bool or mask.shape != (width,):
        raise UserError(f"these statistics are damaged: their mask is {stated!r}, not {width} times true or false")
    return mask


def _middle(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (low + high) / 2, (high - low) / 2
