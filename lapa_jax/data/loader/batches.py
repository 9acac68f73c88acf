"""One batch: which samples are its rows, and how they are read, replaced where damaged, and augmented.

Everything here is a function of the batch's number, so threads, processes and hosts can prepare batches in any order.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader.orders import Order
from lapa_jax.data.shards.files import DamagedSample

_AT_ONCE = 4096
"""Positions whose samples are looked up together: orders are fast on whole arrays."""
_SUBSTITUTES = 100


class Rows(NamedTuple):
    """The rows of one host in one batch.

    Attributes:
      positions: int64[rows], in the global stream.
      samples: int64[rows], their numbers in the source.
    """

    positions: np.ndarray
    samples: np.ndarray


class Batch(NamedTuple):
    """A finished batch.

    Attributes:
      arrays: {name: array[rows, ...]}.
      damaged: {sample number: what is wrong with it}, for those that were replaced and for damaged substitutes.
    """

    arrays: dict[str, np.ndarray]
    damaged: dict[int, str]


class Plan:
    """Batch k is positions k*B to (k+1)*B - 1 of the stream; host h of H has the rows h*B/H to (h+1)*B/H - 1 of each.

    Args:
      order: of the endless stream over `length` samples.
      batch_size: of all hosts together.
      host: (index, count).
      batches: how many there are; None for endless.
    """

    def __init__(
        self, order: Order, length: int, batch_size: int, host: tuple[int, int] = (0, 1), batches: int | None = None
    ):
        index, count = host
        if not 0 <= index < count:
            raise UserError(f"host {index} of {count} does not exist")
        if batch_size < 1 or batch_size % count:
            raise UserError(f"the global batch size {batch_size} must be a multiple of the {count} hosts")
        # an endless stream is given a length that no run comes near and no arithmetic overflows
        self.batches = (1 << 60) // batch_size if batches is None else batches
        self.rows = batch_size // count
        self._order, self._batch_size, self._first = order, batch_size, index * self.rows
        self._together = max(1, min(_AT_ONCE, length) // self.rows)
        self._cache()

    def _cache(self) -> None:
        self._groups: collections.OrderedDict[int, Rows] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        # A lock cannot be pickled, and the cache is cheaper to fill than to send to a worker.
        return {name: value for name, value in vars(self).items() if name not in ("_groups", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._cache()

    def __getitem__(self, k: int) -> Rows:
        group, index = divmod(k, self._together)
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._look_up(group)
                # Threads and prefetching look a few batches ahead and seldom back: four groups serve them.
                if len(self._groups) > 4:
                    self._groups.popitem(last=False)
            positions, samples = self._groups[group]
        return Rows(positions[index], samples[index])

    def _look_up(self, group: int) -> Rows:
        batches = np.arange(group * self._together, (group + 1) * self._together, dtype=np.int64)
        positions = batches[:, None] * self._batch_size + self._first + np.arange(self.rows)
        return Rows(positions, self._order(positions.ravel()).reshape(positions.shape))


@dataclasses.dataclass(frozen=True)
class Assembler:
    """Makes batches of a source.

    Attributes:
      source: samples by number: `source.batch(numbers)` where it has that, else `source[i]`.
      augment: changes a sample with a generator, or None. The generator of position p is a function of (seed, p).
      seed: of augmentation and substitutes.
      replace: whether damaged samples are replaced; else they are errors.
      real: positions from here on are padding; the batch gets a "mask" f32[rows], 1 for what counts. None: no mask.
    """

    source: object
    augment: Callable | None = None
    seed: int = 0
    replace: bool = False
    real: int | None = None

    def __call__(self, rows: Rows) -> Batch:
        damaged: dict[int, str] = {}
        samples = rows.samples.tolist()
        try:
            arrays = self._read(samples)
        except DamagedSample:
            if not self.replace:
                raise
            arrays = self._read([self._sound(sample, damaged) for sample in samples])
        if self.augment is not None:
            self._change(arrays, rows.positions.tolist())
        if self.real is not None:
            # A substitute fills the row of an evaluation, and must not count.
            lost = np.isin(rows.samples, list(damaged))
            arrays = {**arrays, "mask": ((rows.positions < self.real) & ~lost).astype(np.float32)}
        return Batch(arrays, damaged)

    def _read(self, samples: Sequence[int]) -> dict[str, np.ndarray]:
        if hasattr(self.source, "batch"):
            return self.source.batch(samples)
        each = [self.source[i] for i in samples]
        return {name: np.stack([sample[name] for sample in each]) for name in each[0]}

    def _sound(self, sample: int, damaged: dict[int, str]) -> int:
        """The sample itself if it can be read, else its first substitute that can; damage is noted."""
        for candidate in (sample, *self._substitutes(sample)):
            try:
                self._read([candidate])
                return candidate
            except DamagedSample as error:
                damaged[candidate] = str(error)
        raise UserError(f"{damaged[sample]}; so are {_SUBSTITUTES} others that were to take its place")

    def _substitutes(self, sample: int) -> list[int]:
        """What stands in for a damaged sample: others of the same part of a mixture, the same ones for every reader."""
        ends = np.cumsum(getattr(self.source, "lengths", (len(self.source),)))
        part = int(np.searchsorted(ends, sample, side="right"))
        length = int(ends[part]) - (first := int(ends[part - 1]) if part else 0)
        # Raw bits of Philox, whose stream no version of numpy may change; the counter keeps them apart from
        # augmentation's.
        draws = np.random.Philox(key=[self.seed, sample], counter=[0, 0, 0, 1]).random_raw(_SUBSTITUTES)
        return (first + (draws % np.uint64(length)).astype(np.int64)).tolist()

    def _change(self, arrays: Mapping[str, np.ndarray], positions: Sequence[int]) -> None:
        for row, position in enumerate(positions):
            sample = {name: values[row] for name, values in arrays.items()}
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, position], np.uint64)))
            for name, value in self.augment(sample, generator).items():
                arrays[name][row] = value
