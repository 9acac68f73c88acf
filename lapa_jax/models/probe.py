"""A linear probe: how much of an action can be read off latent codes. Plain numpy."""

import dataclasses

import numpy as np

# One-hot codes and standardised deltas differ in size. Both penalties matter only where episodes are few: they keep the
# solution unique, since the one-hot features of a position sum to 1 and deltas can be nearly dependent.
CODES_PENALTY = 1.0
DELTA_PENALTY = 10.0


@dataclasses.dataclass(frozen=True)
class Probe:
    """The result of a probe.

    Attributes:
      r2: mean of `r2_per_dimension` over the dimensions that have one.
      r2_per_dimension: coefficient of determination on the scored rows; NaN for a dimension that does not vary there.
      prediction: f64 [M, A] for all rows.
      scored: bool [M], the rows that were not fitted.
    """

    r2: float
    r2_per_dimension: np.ndarray
    prediction: np.ndarray
    scored: np.ndarray


def probe_codes(codes: np.ndarray, action: np.ndarray, episode: np.ndarray, codebook_size: int) -> Probe | None:
    """Ridge from one-hot codes int [M, N] to actions [M, A]; see `probe`."""
    one_hot = np.eye(codebook_size)[codes].reshape(len(codes), -1)
    return probe(one_hot, action, episode, CODES_PENALTY)


def probe_delta(delta: np.ndarray, action: np.ndarray, episode: np.ndarray) -> Probe | None:
    """Ridge from standardised continuous deltas [M, N, Q] to actions [M, A]; see `probe`."""
    x = delta.reshape(len(delta), -1).astype(np.float64)
    # One penalty for all features is fair only if all have the same spread.
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    return probe(x, action, episode, DELTA_PENALTY)


def probe(features: np.ndarray, action: np.ndarray, episode: np.ndarray, penalty: float) -> Probe | None:
    """Ridge regression fitted on episodes with an even index and scored on those with an odd one.

    Args:
      features: [M, F].
      action: [M, A].
      episode: int [M], index of each row's episode.
      penalty: weight of the squared coefficients against the summed squared error; the intercept is free.

    Returns:
      The probe; None where one half is empty or no dimension varies in the scored half, so that there is no score.
    """
    x, y = features.astype(np.float64), action.astype(np.float64)
    # By episode, not by step: neighbouring steps are nearly copies, and the fit would be scored on what it has seen.
    scored = episode % 2 == 1
    if scored.all() or not scored.any():
        return None
    fit_x, fit_y = x[~scored], y[~scored]
    mean_x, mean_y = fit_x.mean(0), fit_y.mean(0)
    centred = fit_x - mean_x
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (fit_y - mean_y))
    prediction = (x - mean_x) @ weights + mean_y
    r2 = r2_score(prediction[scored], y[scored])
    if np.isnan(r2).all():
        return None
    return Probe(float(np.nanmean(r2)), r2, prediction, scored)


def r2_score(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficient of determination per dimension of [M, A]; NaN where the target does not vary."""
    residual = np.sum((target - prediction) ** 2, axis=0)
    total = np.sum((target - target.mean(0)) ** 2, axis=0)
    # A constant target leaves rounding in `total`, and the score would be a quotient of rounding.
    varies = total > 1e-10 * len(target)
    return np.where(varies, 1 - residual / np.where(varies, total, 1.0), np.nan)
