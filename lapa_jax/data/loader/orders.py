"""Which sample comes at which position of the endless stream, as pure functions: no state, no shuffle buffer.

An order maps positions int64[n] of the global stream to sample numbers int64[n]. Every epoch is a permutation of its
own. What is cached is a function of the arguments too, so threads, hosts and restarts see the same stream.
"""

import functools
import heapq
from collections.abc import Callable, Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean

SHUFFLES = ("full", "window")
WINDOW = 16384
"""Samples that the window shuffle mixes with each other."""
BLOCKS = 64
"""Blocks of consecutive samples that make a window."""

Order = Callable[[np.ndarray], np.ndarray]


def train_order(source, seed: int, shuffle: str = "full", window: int = WINDOW) -> Order:
    """The order in which a source is learned from.

    Args:
      source: `len(source)` samples. One with `lengths` and `weights` is a mixture: its parts are shuffled and repeated
        each on its own, and interleaved by weight. So are the samples of its `emphasis`, or of those of the parts,
        `emphases`, which come more often; see `samples.pair_actions.Emphasis`.
      seed: 0 .. 2^32 - 1.
      shuffle: "full" (any sample can follow any other) or "window" (reads stay local, see `WindowShuffle`).
      window: samples a window, at least 64; for "window" only.
    """
    if shuffle not in SHUFFLES:
        raise UserError(f"data.shuffle '{shuffle}' is unknown{did_you_mean(shuffle, SHUFFLES)}")
    if window < 1:
        raise UserError(f"data.window is a number of samples, 1 or more (got {window})")
    make = FullShuffle if shuffle == "full" else functools.partial(WindowShuffle, window=window)
    if not hasattr(source, "weights"):
        return _emphasized(make, len(source), seed, getattr(source, "emphasis", None))
    # A seed for each part, or parts of the same length would be shuffled alike.
    seeds = [int(np.random.SeedSequence((seed, part)).generate_state(1)[0]) for part in range(len(source.lengths))]
    emphases = getattr(source, "emphases", [None] * len(seeds))
    parts = [_emphasized(make, *each) for each in zip(source.lengths, seeds, emphases, strict=True)]
    return Mixed(parts, source.lengths, source.weights)


def _emphasized(make: Callable, length: int, seed: int, emphasis) -> Order:
    """The order of `length` samples, in which those of an emphasis come between, shuffled among themselves."""
    order = make(length, seed)
    if emphasis is None:
        return order
    seed = int(np.random.SeedSequence((seed, 0, 1)).generate_state(1)[0])
    chosen = Chosen(emphasis.samples, make(len(emphasis.samples), seed))
    return Mixed([chosen, order], [0, length], [emphasis.weight, 1 - emphasis.weight])


class Chosen:
    """Some of the samples, in an order of theirs."""

    def __init__(self, samples: np.ndarray, order: Order):
        self._samples, self._order = samples, order

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return self._samples[self._order(positions)]


class Repeated:
    """The same finite order, over and over."""

    def __init__(self, samples: np.ndarray):
        self._samples = samples

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return self._samples[positions % len(self._samples)]


class FullShuffle:
    """Each epoch a permutation of everything, computed for any position alone by a small cipher.

    These are the permutations of `grain.MapDataset.range(length).shuffle(seed).repeat()`, which runs of earlier
    versions were trained with: four rounds of the Simon round function (https://eprint.iacr.org/2013/404) on the
    smallest even number of bits (16 at least) that holds every sample number; what falls outside is enciphered again.
    Epoch e has the key that C++'s `std::seed_seq` makes of seed + e. Here whole arrays are enciphered at once, at a
    tenth of the price, and where length - 1 is a power of four every sample still comes once (there grain gives one
    sample twice and leaves the last one out).
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self._word = max(8, (int(length - 1).bit_length() + 1) // 2)
        # A cache per object: at the end of an epoch threads read from two epochs at once.
        self._epoch = functools.lru_cache(4)(self._table)

    def __getstate__(self) -> dict:
        return {"length": self.length, "seed": self.seed}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.length)
        distinct, which = np.unique(epochs, return_inverse=True)
        if self.length == 1:
            return offsets
        # Few samples: 65,536 numbers are enciphered at once and kept, cheaper than repeated ciphers of few at a time.
        if self._word == 8:
            for number, epoch in enumerate(distinct.tolist()):
                here = which == number
                offsets[here] = self._epoch(epoch)[offsets[here]]
            return offsets
        keys = self._keys(distinct)[which]
        values, todo = offsets.copy(), np.arange(len(offsets))
        # Cycle walking: a cipher that falls outside is enciphered again until it is inside, and stays a permutation.
        while len(todo):
            values = self._encipher(values, keys[todo])
            inside = values < self.length
            offsets[todo[inside]] = values[inside]
            values, todo = values[~inside], todo[~inside]
        return offsets

    def _table(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch of few samples, most of whose ciphers fall outside: all at once, in leaps."""
        every = np.arange(1 << 2 * self._word, dtype=np.int32)
        values = self._encipher(every, self._keys(np.array([epoch])).astype(np.int32))
        # Pointer jumping: each round doubles how far a number outside has walked.
        while values[: self.length].max() >= self.length:
            values = np.where(values < self.length, values, values.take(values))
        return values[: self.length].copy()

    def _keys(self, epochs: np.ndarray) -> np.ndarray:
        keys = _seed_sequence(((self.seed + epochs) % 2**32).astype(np.uint32))
        return keys.astype(np.int64) & ((1 << self._word) - 1)

    def _encipher(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        word, mask = self._word, (1 << self._word) - 1
        left, right = values >> word, values & mask
        for k in range(0, 4, 2):
            left = left ^ _simon(right, word, mask) ^ keys[:, k]
            right = right ^ _simon(left, word, mask) ^ keys[:, k + 1]
        return left << word | right


def _simon(x: np.ndarray, word: int, mask: int) -> np.ndarray:
    """The round function of Simon on words of `word` bits."""
    once, twice, eight = (x << r | x >> (word - r) for r in (1, 2, 8))
    return (once & eight ^ twice) & mask


def _seed_sequence(seeds: np.ndarray) -> np.ndarray:
    """uint32[n, 4] from uint32[n]: what `std::seed_seq{seed}.generate` gives for four numbers ([rand.util.seedseq])."""
    b = np.full((4, len(seeds)), 0x8B8B8B8B, np.uint32)
    mix = lambda x: x ^ x >> np.uint32(27)  # noqa: E731
    for k in range(4):
        first = np.uint32(1664525) * mix(b[k] ^ b[(k + 1) % 4] ^ b[k - 1])
        # the number of seeds in the first turn, then the index and, in the second, the one seed there is
        second = first + (np.uint32(1) if k == 0 else np.uint32(k) + (seeds if k == 1 else np.uint32(0)))
        b[(k + 1) % 4] += first
        b[(k + 2) % 4] += second
        b[k] = second
    for k in range(4):
        first = np.uint32(1566083941) * mix(b[k] + b[(k + 1) % 4] + b[k - 1])
        second = first - np.uint32(k)
        b[(k + 1) % 4] ^= first
        b[(k + 2) % 4] ^= second
        b[k] = second
    return b.T


class WindowShuffle:
    """Shuffles so that reads stay local, for file systems on which far jumps are dear.

    The samples are cut into blocks of `window / 64` consecutive ones, rounded up (the last block may be shorter). In
    each epoch the blocks are permuted, and every 64 in a row make a window, whose samples are permuted. So within an
    epoch a stretch of n positions reads from at most 64 * (n // window + 2) blocks.
    Memory: one number a block and epoch, one a sample of the windows in use.
    """

    def __init__(self, length: int, seed: int, window: int = WINDOW):
        self.length, self.seed, self.window = length, seed, window
        self.block = -(-min(window, length) // BLOCKS)
        self._blocks = -(-length // self.block)
        self._lacking = self._blocks * self.block - length  # samples that the last block is short of a whole one
        self._order_of_blocks = functools.lru_cache(4)(self._permuted_blocks)
        self._samples = functools.lru_cache(8)(self._window)

    def __getstate__(self) -> dict:
        return {"length": self.length, "seed": self.seed, "window": self.window}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.length)
        out = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            windows, starts = self._windows_of(epoch, offsets[rows])
            for window in np.unique(windows).tolist():
                here = windows == window
                out[rows[here]] = self._samples(epoch, window)[offsets[rows][here] - starts[here]]
        return out

    def _windows_of(self, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The window of each offset in an epoch, and where that window begins: all are whole but the short block's."""
        whole = BLOCKS * self.block
        short = int(np.flatnonzero(self._order_of_blocks(epoch) == self._blocks - 1)[0]) // BLOCKS
        after = offsets >= (short + 1) * whole - self._lacking
        windows = (offsets + after * self._lacking) // whole
        return windows, windows * whole - after * self._lacking

    def _permuted_blocks(self, epoch: int) -> np.ndarray:
        return _permutation(self._blocks, self.seed, epoch, 0)

    def _window(self, epoch: int, window: int) -> np.ndarray:
        blocks = self._order_of_blocks(epoch)[window * BLOCKS : (window + 1) * BLOCKS]
        samples = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        samples = samples[samples < self.length]
        return samples[_permutation(len(samples), self.seed, epoch, window + 1)]


def _permutation(length: int, seed: int, epoch: int, number: int) -> np.ndarray:
    """A permutation that is a function of its arguments in every version of numpy: Philox's bits are fixed."""
    return np.argsort(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, number]).random_raw(length), kind="stable")


class Mixed:
    """Interleaves endless orders by weight; sample numbers count over the concatenation of the parts.

    The two lightest parts are joined to one, again and again; at each joint the share of one side up to position n is
    n times its weight, rounded. So of two parts each has its share of the first n samples to half a sample, and of any
    stretch to one. A joint further down adds its own half to a fraction of what came from above: for any stretch of
    300 random mixtures of up to eleven parts the share was met to 2.5 samples.
    """

    def __init__(self, orders: Sequence[Order], lengths: Sequence[int], weights: Sequence[float]):
        weights = np.asarray(weights, np.float64)
        if len(orders) == 0 or not len(orders) == len(lengths) == len(weights):
            raise UserError(f"a mixture needs a weight for each of its parts, got {len(weights)} for {len(lengths)}")
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise UserError(f"the weights of a mixture must be positive, got {weights.tolist()}")
        self._orders = list(orders)
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
        # whole numbers below 2^31: their products with remainders fit into 63 bits
        self._tree = _join(np.maximum(1, np.rint(weights / weights.sum() * 2**30)).astype(np.int64).tolist())

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        parts, offsets = self.split(positions)
        out = np.empty_like(offsets)
        for part in np.unique(parts).tolist():
            here = parts == part
            out[here] = self._starts[part] + self._orders[part](offsets[here])
        return out

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(part, position within the stream of that part) of each position of the mixture."""
        offsets = np.array(positions, np.int64)
        parts = np.zeros_like(offsets)
        self._descend(self._tree, np.arange(len(offsets)), offsets, parts)
        return parts, offsets

    def _descend(self, node, rows: np.ndarray, offsets: np.ndarray, parts: np.ndarray) -> None:
        if isinstance(node, int):
            parts[rows] = node
            return
        (light, heavy), weight, total = node
        before, after = (_rounded_share(offsets[rows] + step, weight, total) for step in (0, 1))
        # The light part is chosen exactly where its rounded share grows by one.
        chosen = after > before
        offsets[rows] = np.where(chosen, before, offsets[rows] - before)
        self._descend(light, rows[chosen], offsets, parts)
        self._descend(heavy, rows[~chosen], offsets, parts)


def _rounded_share(n: np.ndarray, weight: int, total: int) -> np.ndarray:
    """n * weight / total to the nearest whole number, without overflow."""
    times, rest = np.divmod(n, total)
    return times * weight + (rest * weight + total // 2) // total


def _join(weights: Sequence[int]):
    """A binary tree over the parts: a number is a part, ((light, heavy), weight of light, weight of both) a joint."""
    heap = [(weight, number, number) for number, weight in enumerate(weights)]
    heapq.heapify(heap)
    for number in range(len(weights), 2 * len(weights) - 1):
        light, heavy = heapq.heappop(heap), heapq.heappop(heap)
        total = light[0] + heavy[0]
        heapq.heappush(heap, (total, number, ((light[2], heavy[2]), light[0], total)))
    return heap[0][2]
