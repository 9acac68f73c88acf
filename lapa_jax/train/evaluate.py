"""The one evaluator: per-example arrays over a finite data set, exact whatever the batch size and device count."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.task import Task

DATASET = "dataset_id"


class Evaluator:
    """Evaluates variables on batches; compiled once, used by the loop at every evaluation and by `launch/eval.py`."""

    def __init__(self, task: Task, mesh: Mesh, datasets: Sequence[str] = ()):
        """Args:
          task: what to evaluate. mesh: where the variables live.
          datasets: the names behind the batches' "dataset_id", for data of several datasets.
        """
        self._task, self._mesh, self._datasets = task, mesh, tuple(datasets)

        def rows(variables, batch, mask):
            which = {DATASET: batch[DATASET]} if self._datasets else {}
            return {**task.evaluate(variables, batch), **which, "mask": mask}

        # Replicated results: every host holds all rows and computes the same summary.
        self._rows = jax.jit(rows, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(
        self, variables, batches: Iterable[dict], each: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Runs over all batches.

        Args:
          variables: the task's variables.
          batches: this host's slices, dicts of numpy arrays with "mask" f32 `[B]`: 1 for real rows, 0 for padding.
          each: called after each batch; what it raises ends the evaluation.

        Returns:
          Scalars by the task's `summarize`, and the arrays of all real rows, `{name: [N, ...]}`. With several datasets
          the scalars are "<dataset>/<metric>" of each, and under the metric's own name the mean over the datasets (over
          those where it is a number); the arrays then hold "dataset_id".
        """
        collected: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            sharded = shard_batch(self._mesh, batch)
            mask = sharded.pop("mask")
            rows = jax.device_get(self._rows(variables, sharded, mask))
            real = rows.pop("mask") > 0
            for name, value in rows.items():
                collected.setdefault(name, []).append(value[real])
            each()
        arrays = {name: np.concatenate(parts) for name, parts in collected.items()}
        if not self._datasets:
            return self._task.summarize(arrays), arrays
        which = arrays[DATASET]
        metrics = {}
        for number, name in enumerate(self._datasets):
            part = {key: value[which == number] for key, value in arrays.items() if key != DATASET}
            metrics[name] = self._task.summarize(part) if (which == number).any() else {}
        return by_dataset(metrics), arrays


def by_dataset(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{dataset: {metric: value}} -> {"<dataset>/<metric>": value} and {metric: mean over the datasets that have it}."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    means = {}
    for name in names:
        numbers = [values[name] for values in metrics.values() if not math.isnan(values.get(name, math.nan))]
        means[name] = float(np.mean(numbers)) if numbers else math.nan
    return means | {f"{dataset}/{name}": value for dataset, values in metrics.items() for name, value in values.items()}


def evaluate(task: Task, variables, batches: Iterable[dict], mesh: Mesh):
    """`Evaluator` for a single use."""
    return Evaluator(task, mesh)(variables, batches)
