"""Batches as a function of the step: no iterator state, the same samples for any number of hosts.

The global stream is shuffle -> repeat (each epoch in its own order) -> random map. Batch k is samples k*B to
(k+1)*B - 1 of it, and host h of H holds the rows h*B/H to (h+1)*B/H - 1 of every batch. So the global array has the
same rows in the same order for 1, 2 or 4 hosts, and a run that starts at step k continues the stream of one that
started at 0.
"""

from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.transforms import Augment

THREADS, PREFETCH = 4, 8


class _HostRows:
    """The rows of one host out of a stream of global batches, as a source of its own."""

    def __init__(self, stream: Sequence, batch_size: int, host: tuple[int, int]):
        index, count = host
        if not 0 <= index < count:
            raise UserError(f"host {index} of {count} does not exist")
        if batch_size < 1 or batch_size % count:
            raise UserError(f"the global batch size {batch_size} must be a multiple of the {count} hosts")
        self.stream, self.batch_size = stream, batch_size
        self.rows = batch_size // count
        self.first = index * self.rows

    def __len__(self) -> int:
        # an endless stream has the largest length there is, which grain's own arithmetic overflows
        return min(len(self.stream), 1 << 60) // self.batch_size * self.rows

    def __getitem__(self, i: int):
        batch, row = divmod(int(i), self.rows)
        return self.stream[batch * self.batch_size + self.first + row]

    def __repr__(self) -> str:
        return f"_HostRows({self.batch_size}, {self.first}, {self.rows})"


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
    stream = grain.MapDataset.source(source).shuffle(seed=order).repeat()
    if augment is not None:
        stream = stream.random_map(augment, seed=changes)
    rows = grain.MapDataset.source(_HostRows(stream, batch_size, host))
    return _iterate(rows, batch_size // host[1], start_step, threads, prefetch)


class _EvalRows:
    """A fixed pseudo-random choice of samples, padded to whole batches by repeating, with a mask."""

    def __init__(self, source, batch_size: int, limit: int | None, seed: int):
        order = np.random.default_rng(seed).permutation(len(source))
        self.source, self.order = source, order[:limit]
        self.length = -(-len(self.order) // batch_size) * batch_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        sample: Mapping = self.source[int(self.order[i % len(self.order)])]
        return {**sample, "mask": np.float32(i < len(self.order))}

    def __repr__(self) -> str:
        return f"_EvalRows({self.source!r}, {self.length})"


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
    rows = _EvalRows(source, batch_size, limit, seed)
    stream = grain.MapDataset.source(_HostRows(rows, batch_size, host))
    return _iterate(stream, batch_size // host[1], 0, threads, prefetch)


def _iterate(rows, batch_size: int, start_step: int, threads: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    batches = rows.batch(batch_size)[start_step:]
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
