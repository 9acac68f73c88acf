"""What a codec does to held-out chunks: bits, errors, grippers, failures, time; and curves of error against bits."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lapa_jax.data.normalize import Normalizer
from lapa_jax.evaluate.codecs.base import Codec
from lapa_jax.evaluate.codecs.chunks import ActionChunks

BATCHES = (1, 64)
"""Chunks encoded at once, for the times."""

DAMAGED = 256
"""About how many damaged sequences are decoded."""

_LEAST_SECONDS, _LEAST_CALLS, _MOST_CALLS = 0.02, 5, 200


def measure(codec: Codec, chunks: ActionChunks) -> dict:
    """Figures of a fitted codec on `chunks.val`, as JSON values.

    Returns:
      "name", "family", "usual"; "tokens" a chunk; "bits_per_step" as `Codec.bits`; "coded_bits_per_step", see
      `coded_bits`; "bits_per_second" of either where the data have a clock, else None; "rmse", "mae",
      "p99_error" (which 1 % of the absolute errors exceed) and "max_error", lists of one number a dimension in the
      data's units; "normalized_rmse", see `normalized_rmse`; "gripper_accuracy", None
      without grippers, and "gripper_accuracies" by dimension; "failures", the number of chunks whose own tokens do not
      decode; "failures_damaged", see `damaged_failures`; "microseconds", see `times`.
    """
    tokens = codec.encode(chunks.val)
    decoded, failed = codec.decode(tokens)
    steps = len(tokens) * chunks.length
    bits, coded = codec.bits(tokens).sum() / steps, coded_bits(codec, tokens, codec.encode(chunks.train_apart)) / steps
    error = decoded.astype(np.float64) - chunks.val
    grippers = gripper_accuracies(decoded, chunks.val, chunks.grippers)
    return {
        "name": codec.name, "family": codec.family, "usual": codec.usual,
        "tokens": float(np.mean([len(sequence) for sequence in tokens])),
        "bits_per_step": float(bits), "coded_bits_per_step": float(coded),
        "bits_per_second": None if chunks.seconds is None else float(bits / chunks.seconds),
        "coded_bits_per_second": None if chunks.seconds is None else float(coded / chunks.seconds),
        "rmse": np.sqrt((error**2).mean((0, 1))).tolist(), "mae": np.abs(error).mean((0, 1)).tolist(),
        "p99_error": np.percentile(np.abs(error), 99, (0, 1)).tolist(), "max_error": np.abs(error).max((0, 1)).tolist(),
        "normalized_rmse": normalized_rmse(error, chunks.summary),
        "gripper_accuracy": float(np.mean(list(grippers.values()))) if grippers else None,
        "gripper_accuracies": {str(i): value for i, value in grippers.items()},
        "failures": int(failed.sum()), "failures_damaged": damaged_failures(codec, tokens),
        "microseconds": times(codec, chunks.val),
    }  # fmt: skip


def normalized_rmse(error: np.ndarray, summary: Mapping) -> float:
    """Root mean square of errors f[..., A] over all dimensions that are not constant, where 1 is half the range that
    the training data's q01 to q99 span (of binary and sparse dimensions: minimum to maximum)."""
    scale = Normalizer(summary, "q01_q99").scale
    moving = scale != 0
    return float(np.sqrt(np.mean((error[..., moving] / scale[moving]) ** 2))) if moving.any() else 0.0


def gripper_accuracies(decoded: np.ndarray, true: np.ndarray, grippers: Mapping[int, np.ndarray]) -> dict[int, float]:
    """{dimension: share of the steps at which the level next to the decoded value is that next to the true one}."""
    accuracies = {}
    for i, levels in grippers.items():
        # By the nearest level and not by a distance: a gripper is open or closed.
        said, was = (np.abs(values[..., i, None] - levels).argmin(-1) for values in (decoded, true))
        accuracies[i] = float((said == was).mean())
    return accuracies


def coded_bits(codec: Codec, tokens: Sequence[np.ndarray], training: Sequence[np.ndarray]) -> float:
    """Bits of all tokens together if each cost what an entropy coder pays that knows the training frequencies.

    That is the sum of -log2 p, with p = (count + 1/2) / (tokens + size / 2) among the `training` tokens of the same
    alphabet: an upper bound of the entropy that can be reached, not an estimate that too few data make too small.
    """
    # Laplace-Jeffreys counts of 1/2: a token that training never showed costs bits, and not infinitely many.
    symbols, groups, sizes = _flat(codec, tokens)
    learned, of, _ = _flat(codec, training)
    total = 0.0
    for group in np.unique(groups):
        size = int(sizes[groups == group].max())
        counts = np.bincount(learned[of == group], minlength=size) + 0.5
        total -= np.log2(counts / counts.sum())[symbols[groups == group]].sum()
    return float(total)


def _flat(codec: Codec, tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens in a row, their alphabets, and the sizes of those: int64[all] each."""
    rows = [(sequence, *codec.alphabets(sequence)[::-1]) for sequence in tokens]
    return tuple(np.concatenate([np.asarray(row[k], np.int64) for row in rows]) for k in range(3))


def damaged_failures(codec: Codec, tokens: Sequence[np.ndarray], seed: int = 0) -> float:
    """The share of chunks that no longer decode when one token is another one of its alphabet, both drawn evenly: what
    befalls a policy that errs once in a chunk."""
    rng, damaged = np.random.default_rng(seed), []
    for sequence in list(tokens) * max(1, DAMAGED // len(tokens)):
        sizes, _ = codec.alphabets(sequence)
        positions = np.flatnonzero(sizes > 1)
        if len(positions):
            position, changed = rng.choice(positions), np.array(sequence)
            # 1 to size - 1 further, around the end: never the same token, and all others equally likely.
            changed[position] = (changed[position] + rng.integers(1, sizes[position])) % sizes[position]
            damaged.append(changed)
    return float(codec.decode(damaged)[1].mean()) if damaged else 0.0


def times(codec: Codec, chunks: np.ndarray) -> dict[str, dict[str, float]]:
    """{"encode" and "decode": {"1" and "64", the size of a batch: microseconds a chunk}}, medians over calls."""
    microseconds = {"encode": {}, "decode": {}}
    for size in BATCHES:
        # Repeats the chunks where there are fewer than the batch holds.
        batch = np.resize(chunks, (size, *chunks.shape[1:]))
        tokens = codec.encode(batch)
        microseconds["encode"][str(size)] = _median_seconds(lambda batch=batch: codec.encode(batch)) / size * 1e6
        microseconds["decode"][str(size)] = _median_seconds(lambda tokens=tokens: codec.decode(tokens)) / size * 1e6
    return microseconds


def _median_seconds(call: Callable[[], object]) -> float:
    call()  # compiles, and warms caches up
    taken: list[float] = []
    while len(taken) < _LEAST_CALLS or (sum(taken) < _LEAST_SECONDS and len(taken) < _MOST_CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


class Curve:
    """The best of a family: error against bits, of the settings that no other setting beats in both.

    Args:
      points: (bits, error) of the settings. Between two settings the logarithm of the error is interpolated; with more
        bits than any setting uses the error is that of the last.

    Attributes:
      bits, errors: f64[settings], bits rising and errors falling.
    """

    def __init__(self, points: Sequence[tuple[float, float]]):
        # The Pareto front: with rising bits only what lowers the error is kept.
        kept: list[tuple[float, float]] = []
        for bits, error in sorted(points):
            if not kept or error < kept[-1][1]:
                kept.append((bits, error))
        self.bits, self.errors = np.array(kept, np.float64).T

    def error_at(self, bits: float) -> float | None:
        """The error at so many bits; None for fewer than the most frugal setting uses."""
        if bits < self.bits[0]:
            return None
        return float(np.exp(np.interp(bits, self.bits, self._log())))

    def bits_at(self, error: float) -> float | None:
        """The bits that so small an error takes; None where no setting reaches it."""
        if error < self.errors[-1]:
            return None
        logs = self._log()
        return float(np.interp(-np.log(max(error, _TINY)), -logs, self.bits))

    def _log(self) -> np.ndarray:
        return np.log(np.maximum(self.errors, _TINY))


_TINY = 1e-12


def curves(measured: Sequence[Mapping]) -> dict[str, Curve]:
    """{family: its curve of normalised error against bits a step} of `measure`'s figures, in order of appearance."""
    families = dict.fromkeys(one["family"] for one in measured)
    points = {name: [(m["bits_per_step"], m["normalized_rmse"]) for m in measured if m["family"] == name]
              for name in families}  # fmt: skip
    return {name: Curve(family_points) for name, family_points in points.items()}
