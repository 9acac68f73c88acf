"""What a checkpoint keeps of its data, the same for one dataset and for mixtures, and what training demands of it.

  {"data_fingerprint": SHA-256 over all that is learned from,
   "gap_frames": the largest gap of frame pairs, None for other kinds,
   "datasets": {name: {"statistics", "features", "fps", "fingerprint", "gap_frames", "labels", "weight"}}}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError

PER_DIMENSION = ("mean", "std", "min", "max", "q01", "q99")
"""What a summary must have for each dimension, besides its "count"."""


def describe(
    name: str, *, fingerprint: str, features: Mapping, fps: float | None, statistics: Mapping,
    gap_frames: int | None = None, labels: Mapping | None = None,
) -> dict:  # fmt: skip
    """The metadata of one dataset.

    Args:
      name: of the dataset.
      fingerprint: of its shards. features, fps: as in `dataset.json`.
      statistics: {column: summary} in use, which are not always those that lie beside the shards today.
      gap_frames: the largest gap in frames, of frame pairs.
      labels: the "labels" entry of the labelled set that the latents come from.
    """
    entry = {"statistics": dict(statistics), "features": dict(features), "fps": fps, "fingerprint": fingerprint}
    entry |= {"gap_frames": gap_frames, "labels": dict(labels) if labels else None, "weight": 1.0}
    # a set that is labelled again by another tokenizer is other data
    digest = fingerprint if not labels else _digest([fingerprint, entry["labels"]])
    return {"data_fingerprint": digest, "gap_frames": gap_frames, "datasets": {name: entry}}


def join(parts: Mapping[str, Mapping], weights: Sequence[float]) -> dict:
    """The metadata of a mixture from those of its parts, by name; each part has one dataset."""
    datasets = {}
    for (name, meta), weight in zip(parts.items(), weights, strict=True):
        (entry,) = meta["datasets"].values()
        datasets[name] = {**entry, "weight": weight}
    gaps = [meta["gap_frames"] for meta in parts.values() if meta["gap_frames"] is not None]
    fingerprint = _digest([[name, meta["data_fingerprint"]] for name, meta in parts.items()])
    return {"data_fingerprint": fingerprint, "gap_frames": max(gaps, default=None), "datasets": datasets}


def statistics_of(meta: Mapping) -> dict[str, dict]:
    """{dataset: {column: summary}} of a source's or checkpoint's metadata; {} of one that has none."""
    return {name: entry["statistics"] for name, entry in meta.get("datasets", {}).items()}


def check_statistics(statistics: Mapping, column: str, width: int, dataset: str) -> None:
    """Raises a `UserError` where a column has no usable statistics.

    Args:
      statistics: {column: summary}. column: which. width: its number of dimensions.
      dataset: what the message calls the data.
    """
    remedy = "convert the data again with tools/convert.py, which writes statistics.json"
    summary = statistics.get(column)
    if summary is None:
        raise UserError(f"{dataset} has no statistics of its column '{column}': {remedy}")
    if not summary.get("count"):
        raise UserError(f"{dataset}: the statistics of '{column}' are over no rows: {remedy} of its training split")
    for name in PER_DIMENSION:
        values = np.asarray(summary.get(name, ()), np.float64)
        if values.shape != (width,):
            got = f"{values.size} numbers" if name in summary else "no entry"
            raise UserError(f"{dataset}: the statistics of '{column}' have {got} for '{name}', not {width}: {remedy}")
        if not np.isfinite(values).all():
            raise UserError(f"{dataset}: the {name} of '{column}' is not finite: {remedy}")


def dimension_names(feature: Mapping, count: int) -> list[str]:
    """The names of a column's dimensions, of its entry in `dataset.json`; their numbers where it has none."""
    names = list(feature.get("names", ()))
    return names if len(names) == count else [str(i) for i in range(count)]


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
