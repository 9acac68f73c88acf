"""Early stopping: a run ends when its best metric has not improved for so many evaluations."""

import math
from collections.abc import Iterable, Mapping

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import did_you_mean

MODES = ("max", "min")


class Patience:
    """Counts the evaluations in a row that did not better the best value so far by more than `min_delta`.

    What it knows follows from the values alone, so a resumed run that reads them back from its `metrics.jsonl` stops
    where an uninterrupted one would. The untrained network (step 0) is no evaluation: no checkpoint holds it.

    Args:
      metric: the validation metric. patience: how many such evaluations end the run; None: never.
      min_delta: improvement that counts, in the metric's own unit.
      mode: "max" where higher values are better, or "min".

    Attributes:
      best: (value, step) of the best evaluation, or None. stale: evaluations since then.

    Raises:
      ConfigError: values that cannot work.
    """

    def __init__(self, metric: str | None, patience: int | None, min_delta: float = 0.0, mode: str = "max"):
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise ConfigError(f"config.train.patience is {patience!r}; give a whole number of evaluations, 1 or more, "
                              "or None")  # fmt: skip
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigError(f"config.train.min_delta is {min_delta!r}; give a number of 0 or more")
        if patience is not None and metric is None:
            raise ConfigError("config.train.patience needs config.train.best_metric, the metric that is to improve")
        if mode not in MODES:
            raise ConfigError(f"config.train.best_mode is '{mode}'{did_you_mean(mode, MODES)}")
        self.metric, self.patience, self.min_delta, self.mode = metric, patience, min_delta, mode
        self.best: tuple[float, int] | None = None
        self.stale = 0

    def replay(self, history: Iterable[Mapping], last_step: int) -> None:
        """Takes the evaluations up to `last_step` from the lines of a `metrics.jsonl`."""
        for line in history:
            if self.metric in line and line["step"] <= last_step:
                self.update(line["step"], line[self.metric])

    def update(self, step: int, value: float | None) -> None:
        """Takes one evaluation; a value that is not finite is no improvement."""
        if step == 0:
            return
        finite = value is not None and math.isfinite(value)
        sign = 1 if self.mode == "max" else -1
        if finite and (self.best is None or sign * value > sign * self.best[0] + self.min_delta):
            self.best, self.stale = (value, step), 0
        else:
            self.stale += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run is to end."""
        return self.patience is not None and self.stale >= self.patience

    def __str__(self) -> str:
        best = "never finite" if self.best is None else f"{self.best[0]:.4g} at step {self.best[1]}"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} did not improve{by} in {self.stale} evaluations (best: {best})"
