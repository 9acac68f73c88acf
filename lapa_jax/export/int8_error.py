"""What 8-bit kernels cost: a policy and its int8 variant side by side on held-out samples."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.evaluate import evaluation_of
from lapa_jax.export.variants import parameter_bytes
from lapa_jax.inference.base import TrainedModel
from lapa_jax.inference.kinds import Kind

REPORT_FILE = "int8.json"


def check_kind(kind: Kind, path) -> None:
    """Refuses what is no policy: tokenizers are small, and another code is another label."""
    if kind.int8_error is None:
        raise UserError(f"{path} holds a {kind.noun}; int8 is for the vision-language policies (stages 2 and 3), whose "
                        "error is measured in actions or codes: leave out --format int8")  # fmt: skip


def compare(trained: TrainedModel, small: TrainedModel, **where) -> dict:
    """Both on the same held-out samples.

    Args:
      trained: a `Policy` or `LatentPolicy`. small: its int8 variant.
      where: "run", "out", "data", "split", "pairs", "dataset", and of a `LatentPolicy` "labels", as of its evaluation.

    Returns:
      JSON values: "samples", "data", "data_fingerprint", "split"; "bytes" of the parameters and the "metrics" that
      training logs under "val/", both "float" and "int8"; and "error", in percent. Of a `Policy` that is the mean
      absolute difference of the actions, relative to the standard deviation of their dimension in the training data, of
      the worst dimension; "datasets" has all of them, see `differences`. Of a `LatentPolicy` it is the share of codes
      that differ, whatever the true ones are.

    Raises:
      UserError: data that do not exist or do not fit.
    """
    if trained.kind.int8_error == "actions" and not trained.datasets:
        raise UserError(f"{where['run']} keeps no statistics of actions, by which errors of int8 are measured; give a "
                        "run that was trained on data")  # fmt: skip
    evaluation = evaluation_of(trained)(trained, **where)
    (before, exact), (after, rounded) = (evaluation.measure(m.variables) for m in (trained, small))
    about = {name: value for name, value in evaluation.about().items() if name.startswith(("data", "split"))}
    metrics = {"float": _finite(before), "int8": _finite(after)}
    report = {**about, "samples": evaluation.count, "metrics": metrics,
             "bytes": {"float": parameter_bytes(trained), "int8": parameter_bytes(small)}}  # fmt: skip
    if trained.kind.int8_error == "codes":
        return {**report, "error": 100 * float((exact["predicted"] != rounded["predicted"]).mean())}
    parts = {}
    for number, (name, dataset, _) in enumerate(evaluation.parts):
        rows = exact["dataset_id"] == number if "dataset_id" in exact else np.ones(len(exact["prediction"]), bool)
        if rows.any():
            mask = exact["weight"][rows].max(2) > 0
            actions = [trained.to_units(arrays["prediction"][rows][mask], dataset) for arrays in (exact, rounded)]
            parts[name] = differences(*actions, trained.datasets[dataset]["statistics"]["action"])
    return {**report, "datasets": parts, "error": worst(parts)}


def differences(actions: np.ndarray, other: np.ndarray, statistics: Mapping) -> list[dict]:
    """How far two sets of actions f32 [N, A] lie apart, for each dimension.

    Returns:
      "max" and "mean" of the absolute difference in the units of the data, and "max_percent", "mean_percent", the same
      in percent of the standard deviation in `statistics`; None where the dimension is constant there.
    """
    away = np.abs(actions.astype(np.float64) - other)
    entries = []
    for index, (column, std) in enumerate(zip(away.T, statistics["std"], strict=False)):
        figures = {"max": float(column.max()), "mean": float(column.mean())}
        shares = {f"{name}_percent": 100 * value / std if std > 0 else None
                  for name, value in figures.items()}  # fmt: skip
        entries.append({"index": index, **figures, **shares})
    return entries


def worst(parts: Mapping[str, list[dict]]) -> float:
    """The largest "mean_percent" of {dataset: `differences`}; NaN if any is no number."""
    shares = [entry["mean_percent"] for entries in parts.values() for entry in entries]
    if not (percentages := [share for share in shares if share is not None]):
        raise UserError("no dimension of the measured actions varies in training; give other --data or --split")
    return float(np.max(percentages))  # Python's max loses NaN


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}


def check_error(report: Mapping, limit: float) -> None:
    """Refuses an error beyond `limit` percent, and one that is no number."""
    # "not <=" refuses NaN as well, which ">" would let pass.
    if not report["error"] <= limit:
        raise UserError(f"int8 changes what the policy does by {report['error']:.3g} %, --max_error is {limit:g} %; "
                        "leave layers as they are (--modules 'llm/decoder/layers/.*'), or allow more")  # fmt: skip


def describe(report: Mapping) -> str:
    """The figures in a few lines."""
    size = report["bytes"]
    lines = [f"parameters: {size['float'] / 1e6:.2f} MB, as int8 {size['int8'] / 1e6:.2f} MB",
             f"error on {report['samples']} samples of {report['data']} ({report['split']}): {report['error']:.3g} %"]
    for name, entries in report.get("datasets", {}).items():
        for entry in entries:
            shares = "constant" if entry["mean_percent"] is None else \
                f"{entry['mean_percent']:.3g} % of the standard deviation " \
                f"(at most {entry['max_percent']:.3g} %)"  # fmt: skip
            lines.append(f"  {name} {entry['index']}: mean difference {entry['mean']:.4g}, at most {entry['max']:.4g}; "
                         f"{shares}")  # fmt: skip
    return "\n".join(lines)
