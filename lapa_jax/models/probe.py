"""Probes, linear and by a small network: how much of an action can be read off latent codes. Plain numpy."""

import dataclasses

import numpy as np

# One-hot codes and standardised deltas differ in size. Both penalties matter only where episodes are few: they keep the
# solution unique, since the one-hot features of a position sum to 1 and deltas can be nearly dependent.
CODES_PENALTY = 1.0
DELTA_PENALTY = 10.0
MLP_HIDDEN, MLP_STEPS, MLP_RATE = 64, 400, 0.01
"""Of the probe that is a small network."""


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


def mlp_probe_codes(codes: np.ndarray, action: np.ndarray, episode: np.ndarray, codebook_size: int) -> Probe | None:
    """A network of one hidden layer from one-hot codes int [M, N] to actions [M, A], which also reads what codes say
    only together. Fitted and scored on the same halves as `probe`; a fifth of the fitted episodes says when to stop."""
    linear = probe_codes(codes, action, episode, codebook_size)
    fitted = np.unique(episode[episode % 2 == 0])
    if linear is None or len(fitted) < 2:
        return None
    x, y = np.eye(codebook_size)[codes].reshape(len(codes), -1), action.astype(np.float64)
    fit = episode % 2 == 0
    stop = fit & np.isin(episode, fitted[:: min(5, len(fitted))])
    fit &= ~stop
    mean, std = y[fit].mean(0), y[fit].std(0)
    std = np.where(std > 1e-8, std, 1.0)
    prediction = _fit_mlp(x, (y - mean) / std, fit, stop) * std + mean
    r2 = r2_score(prediction[linear.scored], y[linear.scored])
    return Probe(float(np.nanmean(r2)), r2, prediction, linear.scored)


def _fit_mlp(x: np.ndarray, y: np.ndarray, fit: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The predictions [M, A] of the step with the least error on the rows `stop`, of 400 steps of Adam on `fit`."""
    rng = np.random.default_rng(0)
    sizes = ((x.shape[1], MLP_HIDDEN), (MLP_HIDDEN, y.shape[1]))
    weights = [rng.normal(0, 1 / np.sqrt(rows), (rows, columns)) for rows, columns in sizes]
    weights += [np.zeros(columns) for _, columns in sizes]
    moments, best = [(np.zeros_like(w), np.zeros_like(w)) for w in weights], (np.inf, weights)

    def forward(weights: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second, bias, last = weights
        hidden = np.tanh(x @ first + bias)
        return hidden, hidden @ second + last

    x_fit, y_fit, x_stop, y_stop = x[fit], y[fit], x[stop], y[stop]
    for step in range(1, MLP_STEPS + 1):
        hidden, predicted = forward(weights, x_fit)
        error = 2 * (predicted - y_fit) / y_fit.size
        back = (error @ weights[1].T) * (1 - hidden**2)
        gradients = [x_fit.T @ back, hidden.T @ error, back.sum(0), error.sum(0)]
        moments = [(0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g) for (m, v), g in zip(moments, gradients)]
        size = MLP_RATE * np.sqrt(1 - 0.99**step) / (1 - 0.9**step)
        weights = [w - size * m / (np.sqrt(v) + 1e-8) for w, (m, v) in zip(weights, moments)]
        held_out = np.mean((forward(weights, x_stop)[1] - y_stop) ** 2)
        best = min(best, (held_out, weights), key=lambda each: each[0])
    return forward(best[1], x)[1]


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
