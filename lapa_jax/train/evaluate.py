"""The one evaluator: per-example arrays over a finite data set, exact whatever the batch size and device count."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.task import Task


class Evaluator:
    """Evaluates variables on batches; compiled once, used by the loop at every evaluation and by `launch/eval.py`."""

    def __init__(self, task: Task, mesh: Mesh):
        """Args: task: what to evaluate. mesh: where the variables live."""
        self._task, self._mesh = task, mesh

        def rows(variables, batch, mask):
            return {**task.evaluate(variables, batch), "mask": mask}

        # Replicated results: every host holds all rows and computes the same summary.
        self._rows = jax.jit(rows, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, variables, batches: Iterable[dict]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Runs over all batches.

        Args:
          variables: the task's variables.
          batches: this host's slices, dicts of numpy arrays with "mask" f32 `[B]`: 1 for real rows, 0 for padding.

        Returns:
          Scalars by the task's `summarize`, and the arrays of all real rows, `{name: [N, ...]}`.
        """
        collected: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            sharded = shard_batch(self._mesh, batch)
            mask = sharded.pop("mask")
            rows = jax.device_get(self._rows(variables, sharded, mask))
            real = rows.pop("mask") > 0
            for name, value in rows.items():
                collected.setdefault(name, []).append(value[real])
        arrays = {name: np.concatenate(parts) for name, parts in collected.items()}
        return self._task.summarize(arrays), arrays


def evaluate(task: Task, variables, batches: Iterable[dict], mesh: Mesh):
    """`Evaluator` for a single use."""
    return Evaluator(task, mesh)(variables, batches)
