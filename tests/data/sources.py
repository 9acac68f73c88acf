"""Small sources for tests of the loader, in a module of their own: worker processes import it by name."""

import os
import pathlib
import signal

import numpy as np

from lapa_jax.data.loader import buffers
from lapa_jax.data.shards.files import DamagedSample


class Numbers:
    """Sample i is {"frames": noise of i, "i": i}; those in `damaged` cannot be read."""

    def __init__(self, length: int = 100, damaged=(), side: int = 8):
        self.length, self.damaged, self.side = length, frozenset(damaged), side

    def __len__(self):
        return self.length

    def frames(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (2, self.side, self.side, 3), dtype=np.uint8)

    def batch(self, indices):
        frames = buffers.empty((len(indices), 2, self.side, self.side, 3), np.uint8)
        for row, i in zip(frames, indices):
            if i in self.damaged:
                raise DamagedSample(f"shard-{i // 10}.tar: ep{i}_000000.image.jpg is damaged")
            row[:] = self.frames(i)
        return {"frames": frames, "i": np.array(indices, np.int64)}

    def __getitem__(self, i):
        return {name: values[0] for name, values in self.batch([i]).items()}


class Mixture(Numbers):
    """Three parts of 70, 20 and 10 samples."""

    lengths, weights = (70, 20, 10), (1.0, 2.0, 0.5)


class Suicidal(Numbers):
    """Its reader is killed at sample `at`: once, if `once` is a file that does not exist yet, else always."""

    def __init__(self, parent: int, at: int, once: pathlib.Path | None):
        super().__init__()
        self.parent, self.at, self.once = parent, at, once

    def batch(self, indices):
        if self.at in indices and os.getpid() != self.parent and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices)


class Ragged(Numbers):
    """Batches that differ in size and hold what cannot lie in shared memory: texts, objects, views, nothing."""

    def batch(self, indices):
        batch = super().batch(indices)
        texts = [f"push block {i}" * (i % 7 + 1) for i in indices]
        long = np.zeros((len(indices), 1000 * (max(indices) % 3)), np.float32)
        strided = np.arange(len(indices) * 4).reshape(-1, 4)[:, ::2]
        return {**batch, "text": np.array(texts), "object": np.array(texts, object), "long": long, "strided": strided}


class Failing(Numbers):
    """Has a bug."""

    def batch(self, indices):
        return {"i": np.zeros(3)[list(indices)]}
