"""Statistics of actions: as OpenVLA and Prismatic write them (`dataset_statistics.json`), and as runs keep them."""

import pathlib
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError

COLUMNS = {"action": "action", "proprio": "state"}


def datasets(path: pathlib.Path, stats: Mapping[str, Mapping], side: int) -> tuple[dict, str]:
    """The entries of `meta["datasets"]`, and a line about them.

    Args:
      path: where the statistics come from, for messages.
      stats: {data set: {"action": {"mean", "std", "min", "max", "q01", "q99", perhaps "mask"}, ...}}.
      side: of the images that the model sees, in pixels.

    Raises:
      UserError: statistics that are not complete.
    """
    by_dataset = {name: _dataset(path, name, entry, side) for name, entry in stats.items()}
    if by_dataset:
        return by_dataset, f"actions of {len(by_dataset)} data sets: {', '.join(by_dataset)}"
    return {}, "no statistics of actions: this is a vision-language model, and acts when it was trained on some"


def _dataset(path: pathlib.Path, name: str, entry: Mapping, side: int) -> dict:
    statistics, features = {}, {"image": {"shape": [side, side, 3]}}
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(column, {}), Mapping) for column in COLUMNS):
        raise UserError(f"{path}: '{name}' is no entry of statistics, {{'action': {{'q01': [...], ...}}, ...}}")
    for theirs, ours in COLUMNS.items():
        if theirs not in entry:
            continue
        summary = {key: entry[theirs].get(key) for key in ("mean", "std", "min", "max", "q01", "q99")}
        widths = {np.shape(value) for value in summary.values()}
        if len(widths) != 1 or len(shape := widths.pop()) != 1:
            raise UserError(f"{path}: the statistics of '{theirs}' of '{name}' lack one of mean, std, min, max, q01, "
                            "q99, or these differ in length")  # fmt: skip
        mask = entry[theirs].get("mask")
        if mask is not None and np.shape(mask) != shape:
            raise UserError(f"{path}: the mask of '{theirs}' of '{name}' has {np.size(mask)} entries, not {shape[0]}")
        count = int(entry.get("num_transitions") or 1)
        statistics[ours] = {"count": count, **summary, "mask": [True] * shape[0] if mask is None else list(mask)}
        features[ours] = {"shape": list(shape), "dtype": "float32"}
    if "action" not in statistics:
        raise UserError(f"{path}: '{name}' has no statistics of its actions")
    return {"statistics": statistics, "features": features, "fps": None, "fingerprint": None, "gap_frames": None,
            "labels": None, "weight": 1.0}  # fmt: skip
