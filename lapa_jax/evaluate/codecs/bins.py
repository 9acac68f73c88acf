"""Each number of a chunk as a bin of its dimension: what most policies with action tokens do (RT-2, OpenVLA, LAPA)."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.data.action_bins import ActionBins
from lapa_jax.data.statistics import BINS
from lapa_jax.evaluate.codecs.base import FixedLength

FAMILIES = {
    "uniform_quantile": "uniform bins, q01 to q99",
    "uniform_min_max": "uniform bins, min to max",
    "equal_frequency": "equal-frequency bins",
}


class Bins(FixedLength):
    """One token a step and dimension; two bins for a binary dimension, none for a constant one.

    Args:
      kind: how bins are laid, see `ActionBins`.
      bins: how many of each dimension.
    """

    def __init__(self, kind: str, bins: int = BINS):
        self.kind, self.bins, self.usual = kind, bins, bins == BINS
        self.family = FAMILIES[kind]
        self.name = f"{self.family}, {bins}"

    def _fit(self, chunks: np.ndarray, summary: Mapping) -> None:
        self._laid = ActionBins(summary, self.kind, self.bins)
        steps = self.shape[0]
        self._sizes = np.tile(self._laid.counts.astype(np.int64), steps)
        # All steps of a dimension share its frequencies; dimensions do not share theirs.
        self._groups = np.tile(np.arange(len(self._laid)), steps)

    def _symbols(self, chunks: np.ndarray) -> np.ndarray:
        return self._laid.encode(chunks).reshape(len(chunks), -1)

    def _actions(self, symbols: np.ndarray) -> np.ndarray:
        return self._laid.decode(symbols.reshape(-1, *self.shape))
