"""Batches as a function of the step: no iterator state, the same samples for any number of hosts and workers.

The global stream is shuffle -> repeat (each epoch in its own order) -> random map. Batch k is samples k*B to
(k+1)*B - 1 of it, and host h of H holds the rows h*B/H to (h+1)*B/H - 1 of every batch. So the global array has the
same rows in the same order for 1, 2 or 4 hosts, and a run that starts at step k continues the stream of one that
started at 0. A batch is assembled in one piece, by as many threads or processes as there are batches to prepare.
"""

import logging
import os
from collections.abc import Iterator

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import buffers, orders
from lapa_jax.data.loader.batches import Assembler, Batch, Plan
from lapa_jax.data.transforms import Augment

THREADS, PREFETCH = 4, 8
LOG = logging.getLogger("lapa_jax")


def train_batches(
    source,
    *,
    seed: int,
    batch_size: int,
    host: tuple[int, int] = (0, 1),
    augment: Augment | None = None,
    start_step: int = 0,
    shuffle: str = "full",
    window: int = orders.WINDOW,
    max_bad_samples: int = 0,
    threads: int = THREADS,
    workers: int = 0,
    prefetch: int = PREFETCH,
) -> Iterator[dict[str, np.ndarray]]:
    """An endless iterator of this host's part of each global batch.

    Args:
      source: random access to samples, dicts of arrays. One with `lengths` and `weights` is a mixture, see `orders`.
      seed: decides order and augmentation.
      batch_size: of all hosts together.
      host: (index, count).
      augment: applied to each sample with a generator that depends on seed and position only.
      start_step: the first batch to give.
      shuffle: "full" or "window", see `orders`.
      window: samples that the window shuffle mixes.
      max_bad_samples: how many different damaged samples each host may replace by others, with a warning for each.
      threads: readers in this process, used where there are no workers, at most one a core; each prepares a whole
        batch.
      workers: reader processes; 0 reads in this process.
      prefetch: batches prepared ahead.

    Yields:
      {name: array[batch_size / hosts, ...]}.

    Raises:
      UserError: for a wrong argument; from `next`, for a damaged sample or more than `max_bad_samples` of them.
    """
    if workers < 0 or max_bad_samples < 0:
        raise UserError(f"data.workers={workers} and data.max_bad_samples={max_bad_samples} must be 0 or more")
    # epoch e has the seed + e: neighbouring seeds would share epochs, so they are spread first
    order, changes = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    plan = Plan(orders.train_order(source, order, shuffle, window), len(source), batch_size, host)
    assembler = Assembler(source, augment, changes, replace=max_bad_samples > 0)
    if workers:
        from lapa_jax.data.loader.workers import WorkerBatches

        batches = WorkerBatches(assembler, plan, start_step, workers, prefetch)
    else:
        batches = _in_threads(assembler, plan, start_step, threads, prefetch)
    return map(_Damage(max_bad_samples), batches)


def eval_batches(
    source,
    *,
    batch_size: int,
    host: tuple[int, int] = (0, 1),
    limit: int | None = None,
    seed: int = 0,
    max_bad_samples: int = 0,
    threads: int = THREADS,
    prefetch: int = PREFETCH,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over the source, or over `limit` samples of it, in a fixed pseudo-random order.

    The order depends on `seed` and the length of the source only. Of a mixture every part gives the same number of
    samples, as far as it has them, so that each can be judged however small its share is. Neighbours in a batch are
    unrelated, as tests that swap codes within a batch need. The last batch is padded by repeating; "mask" f32[B] is 1
    for real samples, and 0 for padding and for what stands in for one of at most `max_bad_samples` damaged samples.
    """
    order = _held_out(source, limit, seed)
    plan = Plan(orders.Repeated(order), len(order), batch_size, host, batches=-(-len(order) // batch_size))
    assembler = Assembler(source, seed=seed, replace=max_bad_samples > 0, real=len(order))
    return map(_Damage(max_bad_samples), _in_threads(assembler, plan, 0, threads, prefetch))


def _held_out(source, limit: int | None, seed: int) -> np.ndarray:
    """Which samples are evaluated, in which order: int64[at most limit]."""
    order = np.random.default_rng(seed).permutation(len(source))
    lengths = getattr(source, "lengths", (len(source),))
    if limit is None or len(lengths) == 1:
        return order[:limit]
    if limit < len(lengths):
        raise UserError(f"data.eval_examples={limit} is fewer than the {len(lengths)} parts of the mixture; raise it")
    # From the shortest part to the longest: what a short one cannot give is shared by those that follow.
    part_of, left, kept = np.searchsorted(np.cumsum(lengths), order, side="right"), limit, []
    for done, part in enumerate(np.argsort(lengths, kind="stable").tolist()):
        kept.append(np.flatnonzero(part_of == part)[: left // (len(lengths) - done)])
        left -= len(kept[-1])
    return order[np.sort(np.concatenate(kept))]


class _Damage:
    """Hands batches on, reports each damaged sample once, and stops at too many.

    It counts what is handed on, not what is prepared ahead: the same batch is the last one whoever prepares it.
    """

    def __init__(self, most: int):
        self._most, self._damaged = most, {}

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        for sample, what in batch.damaged.items():
            if sample not in self._damaged:
                self._damaged[sample] = what
                LOG.warning("damaged sample %d of at most %d replaced: %s", len(self._damaged), self._most, what)
        if len(self._damaged) > self._most:
            listed = "; ".join(list(self._damaged.values())[:_LISTED])
            more = f"; and {len(self._damaged) - _LISTED} more, see the log" if len(self._damaged) > _LISTED else ""
            raise UserError(f"{len(self._damaged)} damaged samples, data.max_bad_samples is {self._most}: "
                            f"{listed}{more}")
        return batch.arrays


_LISTED = 20


class _Source:
    """The batches of a plan as grain reads them."""

    def __init__(self, assembler: Assembler, plan: Plan, pool: buffers.Pool):
        self._assembler, self._plan, self._pool = assembler, plan, pool

    def __len__(self) -> int:
        return self._plan.batches

    def __repr__(self) -> str:
        return f"Batches({self._assembler.source!r})"

    def __getitem__(self, k: int) -> Batch:
        with buffers.allocator(self._pool.empty):
            return self._assembler(self._plan[int(k)])


def _in_threads(assembler: Assembler, plan: Plan, start: int, threads: int, prefetch: int) -> Iterator[Batch]:
    import grain  # here, because it takes a second, and workers do without

    # more threads than cores take the interpreter's lock from each other: a tenth of the time at 128 px
    threads = min(threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads)
    stream = grain.MapDataset.source(_Source(assembler, plan, buffers.Pool(keep=threads + prefetch)))[start:]
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
