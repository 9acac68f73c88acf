"""Batches as a function of the step: no iterator state, the same samples for any number of hosts.

The global stream is shuffle -> repeat (each epoch in its own order) -> random map. Batch k is samples k*B to
(k+1)*B - 1 of it, and host h of H holds the rows h*B/H to (h+1)*B/H - 1 of every batch. So the global array has the
same rows in the same order for 1, 2 or 4 hosts, and a run that starts at step k continues the stream of one that
started at 0. The order is computed on indices; a batch is assembled in one piece, by as many threads as there are
batches to prepare.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.transforms import Augment

THREADS, PREFETCH = 4, 8


class _Batches:
    """The rows of one host of batch k, as a random-access source.

    Args:
      source: samples by index.
      order: at position p of the global stream stands sample `order[p]`.
      batch_size: of all hosts together. host: (index, count).
      augment, seed: the random map; the generator of position p is a function of (seed, p).
    """

    def __init__(self, source, order: Sequence[int], batch_size: int, host: tuple[int, int], *, augment=None, seed=0):
        index, count = host
        if not 0 <= index < count:
            raise UserError(f"host {index} of {count} does not exist")
        if batch_size < 1 or batch_size % count:
            raise UserError(f"the global batch size {batch_size} must be a multiple of the {count} hosts")
        self.source, self.order, self.batch_size = source, order, batch_size
        self.augment, self.seed = augment, seed
        self.rows = batch_size // count
        self.first = index * self.rows

    def __len__(self) -> int:
        # an endless stream has the largest length there is, which grain's own arithmetic overflows
        return min(len(self.order), 1 << 60) // self.batch_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {self.batch_size}, {self.first}, {self.rows})"

    def positions(self, k: int) -> range:
        """Where this host's rows of batch k stand in the global stream."""
        start = k * self.batch_size + self.first
        return range(start, start + self.rows)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        positions = self.positions(int(k))
        batch = _assemble(self.source, [int(self.order[p]) for p in positions])
        if self.augment is not None:
            for row, position in enumerate(positions):
                key = np.array([self.seed, position], np.uint64)
                sample = {name: values[row] for name, values in batch.items()}
                for name, value in self.augment(sample, np.random.Generator(np.random.Philox(key=key))).items():
                    batch[name][row] = value
        return batch


class _PaddedBatches(_Batches):
    """Batches of a finite order, filled up by repeating it, with a mask."""

    def __init__(self, source, order: np.ndarray, batch_size: int, host: tuple[int, int]):
        padded = np.resize(order, -(-len(order) // batch_size) * batch_size)
        super().__init__(source, padded, batch_size, host)
        self.real = len(order)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        mask = np.array([position < self.real for position in self.positions(int(k))], np.float32)
        return {**super().__getitem__(k), "mask": mask}


def _assemble(source, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The samples at `indices`, stacked: by the source itself where it knows how."""
    if hasattr(source, "batch"):
        return source.batch(indices)
    samples = [source[i] for i in indices]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def train_batches(
    source,
    *,
    seed: int,
    batch_size: int,
    host: tuple[int, int] = (0, 1),
    augment: Augment | None = None,
    start_step: int = 0,
    threads: int = THREADS,
    prefetch: int = PREFETCH,
) -> Iterator[dict[str, np.ndarray]]:
    """An endless iterator of this host's part of each global batch.

    Args:
      source: random access to samples, dicts of arrays.
      seed: decides order and augmentation.
      batch_size: of all hosts together.
      host: (index, count).
      augment: applied to each sample with a generator that depends on seed and position only.
      start_step: the first batch to give.
      threads: readers; each prepares a whole batch.
      prefetch: batches prepared ahead.

    Yields:
      {name: array[batch_size / hosts, ...]}.
    """
    # grain gives epoch e the shuffle seed + e: neighbouring seeds would share epochs, so they are spread first
    order, changes = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    stream = grain.MapDataset.range(len(source)).shuffle(seed=order).repeat()
    batches = _Batches(source, stream, batch_size, host, augment=augment, seed=changes)
    return _iterate(batches, start_step, threads, prefetch)


def eval_batches(
    source,
    *,
    batch_size: int,
    host: tuple[int, int] = (0, 1),
    limit: int | None = None,
    seed: int = 0,
    threads: int = THREADS,
    prefetch: int = PREFETCH,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over the source, or over `limit` samples of it, in a fixed pseudo-random order.

    The order depends on `seed` and the length of the source only; neighbours in a batch are unrelated, as tests that
    swap codes within a batch need. The last batch is padded by repeating; "mask" f32[B] is 1 for real samples.
    """
    order = np.random.default_rng(seed).permutation(len(source))[:limit]
    return _iterate(_PaddedBatches(source, order, batch_size, host), 0, threads, prefetch)


def _iterate(batches: _Batches, start_step: int, threads: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    stream = grain.MapDataset.source(batches)[start_step:]
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
