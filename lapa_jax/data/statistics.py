"""Statistics of numeric columns: exact mergeable moments, and quantiles from a mergeable sample.

Each column keeps count, mean, sum of squared deviations, minimum and maximum per dimension, merged by the pairwise
formula of Chan, Golub and LeVeque (1979), in float64. Quantiles come from the `SAMPLE` rows with the smallest hash of
their global step number: all rows up to that count (then they are exact), beyond it a uniform sample that does not
depend on how the data were split or in which order the parts were merged. With 2^18 rows the rank of an estimated 1 %
quantile has a standard error of 0.02 percentage points.
"""

from collections.abc import Iterable

import numpy as np

SAMPLE = 1 << 18


class ColumnStatistics:
    """Running statistics of one column of rows f[A]."""

    def __init__(self, sample: int = SAMPLE):
        self.limit = sample
        self.count = 0
        self.mean = self.squares = self.min = self.max = None
        self.rows = self.priority = None

    def update(self, rows: np.ndarray, start: int) -> None:
        """Adds rows f[N, A]; `start` is the global number of the first, which only decides what is sampled."""
        rows = np.asarray(rows, np.float64)
        if len(rows) == 0:
            return
        other = ColumnStatistics(self.limit)
        other.count = len(rows)
        other.mean, other.min, other.max = rows.mean(0), rows.min(0), rows.max(0)
        other.squares = ((rows - other.mean) ** 2).sum(0)
        other.rows, other.priority = rows, _hash(np.arange(start, start + len(rows), dtype=np.uint64))
        self.merge(other)

    def merge(self, other: "ColumnStatistics") -> None:
        """Adds what `other` has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self.squares = other.count, other.mean.copy(), other.squares.copy()
            self.min, self.max = other.min.copy(), other.max.copy()
            self.rows, self.priority = other.rows, other.priority
        else:
            total = self.count + other.count
            delta = other.mean - self.mean
            self.mean = self.mean + delta * (other.count / total)
            self.squares = self.squares + other.squares + delta**2 * (self.count * other.count / total)
            self.min, self.max = np.minimum(self.min, other.min), np.maximum(self.max, other.max)
            self.count = total
            self.rows = np.concatenate([self.rows, other.rows])
            self.priority = np.concatenate([self.priority, other.priority])
        if len(self.rows) > self.limit:
            kept = np.argpartition(self.priority, self.limit)[: self.limit]
            self.rows, self.priority = self.rows[kept], self.priority[kept]

    def summary(self) -> dict:
        """{"count", "mean", "std", "min", "max", "q01", "q99"}: a number, then one list of A numbers each."""
        q01, q99 = np.quantile(self.rows, [0.01, 0.99], axis=0)
        values = {"mean": self.mean, "std": np.sqrt(self.squares / self.count), "min": self.min, "max": self.max}
        values |= {"q01": q01, "q99": q99}
        return {"count": self.count, **{name: [float(v) for v in value] for name, value in values.items()}}


def column_statistics(chunks: Iterable[np.ndarray], sample: int = SAMPLE) -> dict:
    """The summary of a column that comes as chunks f[N, A], in step order."""
    statistics, start = ColumnStatistics(sample), 0
    for chunk in chunks:
        statistics.update(chunk, start)
        start += len(chunk)
    return statistics.summary()


def _hash(numbers: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014): a bijection of uint64 that looks random."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
