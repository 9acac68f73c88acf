"""What all evaluations share: the held-out samples of a run, the metrics of its training, and where results go."""

import math
import pathlib
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import write_json
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data import pipeline
from lapa_jax.data.loader import loader
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.data.shards.step_shards import read_dataset
from lapa_jax.evaluate import provenance
from lapa_jax.evaluate.report import Section, Verdict
from lapa_jax.plots import curves
from lapa_jax.plots.curves import CURVES_FILE
from lapa_jax.train.evaluate import Evaluator
from lapa_jax.train.task import Task

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
BATCH = 64


class BaseEvaluation:
    """One evaluation: a tokenizer or policy, held-out samples, and the folder for the results.

    Args:
      tokenizer: what is evaluated, as `lapa_jax.load` gives it.
      run: where it came from; its `metrics.jsonl`, if any, gives the curves of training.
      out: the folder to write.
      data: the `config.data` that opens the samples (split "val").
      source: the samples. count: how many at most, chosen pseudo-randomly, always the same ones.

    Attributes:
      FILES: what it writes besides images, the most important last.
    """

    FILES: tuple[str, ...] = (METRICS_FILE, REPORT_FILE)

    def __init__(self, tokenizer, *, run, out, data: Mapping, source, count: int):
        self.tokenizer, self.run, self.out = tokenizer, pathlib.Path(run), pathlib.Path(out)
        self.data, self.source, self.count = dict(data), source, min(count, len(source))
        self.task = Task(tokenizer.model, {})
        self._evaluator = Evaluator(self.task, tokenizer.mesh, getattr(source, "names", ()))

    def judge(self, result: Mapping) -> list[Verdict]:
        """What the numbers of `metrics.json` mean, the most telling first."""
        raise NotImplementedError

    def figures(self, result: Mapping) -> dict[str, float | None]:
        """{metric: value} of `metrics.json`, flat, as `judge` and `requirements` name them."""
        return dict(result["metrics"])

    def batches(self, source=None):
        """The chosen samples of the source, or the same ones of another reading of it, in batches with "mask"."""
        # The next multiple of the devices, which share each batch evenly.
        size = -(-BATCH // self.tokenizer.mesh.size) * self.tokenizer.mesh.size
        return loader.eval_batches(self.source if source is None else source, batch_size=size, limit=self.count)

    def measure(self, variables) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The metrics that training logs under "val/", and the arrays that they are made of."""
        with jax.set_mesh(self.tokenizer.mesh):
            return self._evaluator(variables, self.batches())

    def about(self) -> dict:
        """What was evaluated on what; the head of `metrics.json`."""
        paths = [self.data.get("val_path") or self.data.get("path")]
        if self.data.get("mixture") and not self.data.get("val_path"):
            paths = [part["path"] for part in self.data["mixture"] if part.get("split_val", "val") is not None]
        return {
            "run": str(self.run),
            "step": self.tokenizer.step,
            "tokenizer": self.tokenizer.fingerprint,
            "data": ", ".join(map(str, paths)),
            "data_fingerprint": self.source.meta()["data_fingerprint"],
            "split": str(self.data["split_val"]),
        }

    def head(self) -> dict:
        """What the report says of the run, as arguments of `report.write`."""
        return {"about": provenance.rows(self.run, self.about()), "compared": provenance.config_differences(self.run)}

    def course(self, best: str | None = None) -> Section:
        """The curves of the run's training, the metric `best` first; by default that of the best checkpoint."""
        best = best or self.tokenizer.config.get("train", {}).get("best_metric")
        title, panels = "The course of training", curves.of_run(read_metrics(self.run), best)
        if not panels:
            return Section(title, "This folder keeps no metrics.jsonl.")
        curves.draw(self.out / CURVES_FILE, panels)
        words = "Losses and validation metrics; of several datasets a metric is the mean, and each has a line."
        return Section(title, words, (CURVES_FILE,), curves=panels)

    def save(self, result: dict) -> dict:
        """Writes `metrics.json`; numbers that are not finite become null."""
        result = _finite(result)
        write_json(self.out / METRICS_FILE, result)
        return result


def data_config(config: ml_collections.ConfigDict, data, split: str | None, datasets: Mapping[str, Mapping]) -> dict:
    """The run's `config.data` with what the caller wants to be different.

    Args:
      config: of the run. data: another folder of step shards, or None: one that is a part of the run's mixture is read
        with the camera, the gap and all else of that part. split: its split; the run's own, or "val".
      datasets: what the run was trained on, as in its metadata.
    """
    if "data" not in config:
        raise UserError("this model's config says nothing about its data; evaluate a trained run")
    chosen = dict(config.data)
    if data is not None:
        chosen = pipeline.for_dataset(chosen, datasets, pipeline.fingerprint_of(data))
        chosen["val_path"] = str(data)
    chosen["split_val"] = split or ("val" if data is not None else chosen.get("split_val") or "val")
    return chosen


def open_scaled(model, data, split: str | None, dataset: str | None) -> tuple[dict, object, list[tuple]]:
    """Held-out samples for a model of numbers, scaled by the statistics that it was trained with.

    Args:
      model: a `ColumnModel`. data, split: as of `data_config`.
      dataset: of a run on several datasets: whose scaling `data` get; the one that they are if None.

    Returns:
      The `config.data` that opens them; the source; and its parts, (name, whose scaling it gets, source) each.

    Raises:
      UserError: data that do not exist, or scaling that does not go with them.
    """
    config = data_config(model.config, data, split, model.datasets)
    if data is not None and model.kind.name in ("coded_policy", "action_policy"):
        # the codes are learned with the actions and not measured here; other data need no labels of them
        config["fields"] = tuple(name for name in config["fields"] if name != "latent")
    statistics = statistics_of({"datasets": model.datasets})
    # One folder gets the scaling of one of the model's datasets; the parts of a mixture each have their own.
    one = data is not None or not config.get("mixture")
    if one:
        folder = config.get("val_path") or config.get("path")
        dataset = model.dataset_of(read_dataset(folder)["fingerprint"], dataset) if folder else dataset
        config["normalize"] = pipeline.normalization_of(config, dataset)
        statistics = {dataset: statistics[dataset]} if dataset in statistics else {}
    elif dataset is not None:
        raise UserError(f"--dataset {dataset} goes with --data; the run's own datasets are all evaluated")
    # The statistics of training, not those of the evaluated data: the model knows its numbers in that scaling only.
    source = pipeline.build(config, "val", statistics=statistics or None)
    parts = getattr(source, "sources", None) or {source.name: source}
    return config, source, [(name, dataset if one else name, part) for name, part in parts.items()]


def unscaled(config: Mapping) -> dict:
    """A `config.data` that gives the same samples in the units of the data."""
    mixture = tuple({**part, "normalize": "none"} for part in config.get("mixture") or ()) or None
    return {**config, "normalize": "none", "mixture": mixture}


def _finite(value):
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        # JSON knows neither NaN nor infinity, and strict readers refuse a file that holds them.
        return float(value) if math.isfinite(value) else None
    return value
