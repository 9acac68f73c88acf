"""Losses that leave all bounds: how they are noticed, and which batches are left out afterwards.

Going back a little and leaving out the batches around a spike is what PaLM's training did (Chowdhery et al. 2022,
section 5.1): the spikes did not come back, and the same batches did no harm at other parameters.
"""

import bisect
import logging
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.integrity import read_checked_json, write_checked_json

LOG = logging.getLogger("lapa_jax")
LEFT_OUT_FILE = "left_out.json"
ACTIONS = ("stop", "rollback")
WINDOW, FEWEST = 100, 20
"""Losses that the running median is taken of, and the fewest that give one."""
MOST = 10
"""Windows of batches that a run may leave out."""


class Spike(Exception):
    """The loss of `step` was beyond bounds, or not finite."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Losses:
    """Watches the losses of the steps.

    Args:
      factor: a loss above this multiple of the median of the last 100 is a spike; None: only one that is not finite.
      action: what a spike does, one of `ACTIONS`.

    Attributes:
      recent: the last losses, which a checkpoint stores: a resumed run judges as an uninterrupted one.

    Raises:
      ConfigError: values that cannot work.
    """

    def __init__(self, factor: float | None, action: str):
        number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if factor is not None and not (number and math.isfinite(factor) and factor > 1):
            raise ConfigError(f"config.train.spike_factor is {factor!r}; give a number above 1, or None")
        if action not in ACTIONS:
            raise ConfigError(f"config.train.on_spike is '{action}'{did_you_mean(action, ACTIONS)}")
        self.factor, self.action = factor, action
        self.recent: list[float] = []

    def check(self, first: int, losses: Sequence[float]) -> None:
        """Takes the losses of the steps `first`, `first` + 1, ... (of a finite gradient, or NaN).

        Raises:
          Spike: at the first that is none of the usual.
        """
        for step, loss in enumerate(losses, first):
            limit = math.inf
            if self.factor is not None and len(self.recent) >= FEWEST:
                limit = self.factor * statistics.median(self.recent)
            if not math.isfinite(loss) or loss > limit:
                raise Spike(step)
            self.recent = [*self.recent[1 - WINDOW :], float(loss)]


class LeftOut:
    """The batches that a run leaves out: windows of their numbers, kept in `left_out.json` of the run folder.

    Checkpoints know those of their time: the file is newer, where a run went back before a spike since then.
    """

    def __init__(self, windows: Sequence[Sequence[int]] = ()):
        """Args: windows: (first, last) numbers of batches, both left out; disjoint, ascending."""
        self.windows = [tuple(window) for window in windows]

    @classmethod
    def read(cls, workdir: pathlib.Path) -> "LeftOut":
        """Those of a run; none where it has left out none.

        Raises:
          UserError: the file is damaged.
        """
        path = workdir / LEFT_OUT_FILE
        return cls(read_checked_json(path)["batches"]) if path.is_file() else cls()

    @classmethod
    def resume(cls, workdir: pathlib.Path, stored: Sequence[Sequence[int]] | None) -> "LeftOut":
        """Those of a run that goes on. A file that is missing, damaged or lacks what the checkpoint knows of is written
        again from the checkpoint, with a warning.

        Args:
          stored: the windows in the checkpoint's metadata; None in those of versions that did not store them.

        Raises:
          UserError: the file is damaged, and the checkpoint does not know.
        """
        try:
            kept = cls.read(workdir)
        except UserError as error:
            if stored is None:
                raise
            why = str(error)
        else:
            if all(any(a <= first and last <= b for a, b in kept.windows) for first, last in stored or ()):
                return kept
            why = f"{workdir / LEFT_OUT_FILE} lacks batches that the run had left out"
        LOG.warning("%s: written again as the checkpoint knows them", why)
        left_out = cls(stored)
        left_out.write(workdir)
        return left_out

    def write(self, workdir: pathlib.Path) -> None:
        """Stores them."""
        write_checked_json(workdir / LEFT_OUT_FILE, {"batches": self.windows})

    def batch_of(self, step: int) -> int:
        """The number of the batch that a step takes; steps count from 1, batches from 0."""
        batch = step - 1
        for first, last in self.windows:
            if batch >= first:
                batch += last - first + 1
        return batch

    def without(self, first_step: int, last_step: int) -> "LeftOut":
        """Leaves out the batches of these steps too."""
        first, last = self.batch_of(first_step), self.batch_of(last_step)
        outside = [(a, b) for a, b in self.windows if b < first or a > last]  # a window in between goes with them
        bisect.insort(outside, (first, last))
        return LeftOut(outside)

    def batches(self, make: Callable[[int], Iterator], step: int) -> Iterator:
        """The batches of the steps after `step`.

        Args:
          make: gives the batches from a number on.
        """
        number = self.batch_of(step + 1)
        for batch in make(number):
            if not any(first <= number <= last for first, last in self.windows):
                yield batch
            number += 1
