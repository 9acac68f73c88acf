"""Chunks as control points of B-splines, each as a bin: after BEAST (Zhou et al. 2025, arXiv 2506.06072).

Each dimension is fitted by least squares with `points` control points over clamped knots: cubic, of lower degree where
there are fewer than four points. A binary dimension is piecewise constant, with a bit a piece. Knots are averages of
`degree` neighbours among evenly spaced numbers (de Boor): evenly spaced knots are hardly different while control points
are few, but with as many of them as steps their errors are 7 times larger (16 steps).
"""

from collections.abc import Mapping

import numpy as np
from scipy.interpolate import BSpline, make_lsq_spline

from lapa_jax.core.errors import UserError
from lapa_jax.data.action_bins import ActionBins
from lapa_jax.data.statistics import column_statistics, kinds
from lapa_jax.evaluate.codecs.base import FixedLength

DEGREE = 3


class Spline(FixedLength):
    """One token a control point and dimension.

    Args:
      points: control points of each dimension, at most T.
      bins: of each control point, from the least to the largest of the training data.
    """

    family = "B-spline"

    def __init__(self, points: int, bins: int = 256, *, usual: bool = False):
        self.points, self.bins, self.usual = points, bins, usual
        self.name = f"B-spline, {points} points, {bins} bins"

    def _fit(self, chunks: np.ndarray, summary: Mapping) -> None:
        steps = self.shape[0]
        if not 1 <= self.points <= steps:
            raise UserError(f"a B-spline of {self.points} control points does not suit chunks of {steps} steps")
        self._binary = np.array([word == "binary" for word in kinds(summary)])
        self._smooth = operators(steps, self.points, min(DEGREE, self.points - 1))
        # Degree 0, a constant a piece: a smooth curve between two values would be wrong at most steps.
        self._stepwise = operators(steps, self.points, 0)
        # Control points may lie outside of the actions' range, so that bins are laid over them and not over the
        # actions.
        seen = column_statistics([self.control_points(chunks).reshape(-1, self.shape[1])])
        self._laid = ActionBins(seen, "uniform_min_max", self.bins, binary=np.flatnonzero(self._binary).tolist())
        self._sizes = np.tile(self._laid.counts.astype(np.int64), self.points)
        self._groups = np.tile(np.arange(self.shape[1]), self.points)

    def control_points(self, chunks: np.ndarray) -> np.ndarray:
        """f64[n, points, A] of chunks f[n, T, A]: the least-squares fit, before any rounding."""
        return self._apply(0, chunks)

    def curves(self, points: np.ndarray) -> np.ndarray:
        """f64[n, T, A]: what control points f[n, points, A] stand for."""
        return self._apply(1, points)

    def _apply(self, which: int, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        smooth, stepwise = self._smooth[which] @ values, self._stepwise[which] @ values
        return np.where(self._binary, stepwise, smooth)

    def _symbols(self, chunks: np.ndarray) -> np.ndarray:
        return self._laid.encode(self.control_points(chunks)).reshape(len(chunks), -1)

    def _actions(self, symbols: np.ndarray) -> np.ndarray:
        points = self._laid.decode(symbols.reshape(-1, self.points, self.shape[1]))
        return self.curves(points).astype(np.float32)


def operators(steps: int, points: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """The fit f64[points, steps] and the evaluation f64[steps, points]; both are linear, so they are made once."""
    if steps == 1:
        return np.ones((1, 1)), np.ones((1, 1))
    if degree:
        spaced = np.linspace(0.0, 1.0, points)
        # Greville's averages, as of the module's text: each control point has steps to be fitted to.
        inner = np.array([spaced[j : j + degree].mean() for j in range(1, points - degree)])
    else:
        inner = np.linspace(0.0, 1.0, points + 1)[1:-1]
    knots = np.concatenate([np.zeros(degree + 1), inner, np.ones(degree + 1)])
    times = np.linspace(0.0, 1.0, steps)
    # Fitting is linear: the fit of unit vectors is the matrix that fits any chunk.
    fit = make_lsq_spline(times, np.eye(steps), knots, k=degree).c
    return fit, BSpline.design_matrix(times, knots, degree).toarray()
