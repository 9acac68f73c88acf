"""Metric writers: one JSON object a line in `metrics.jsonl`, always, and trackers beside it."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from lapa_jax.core.files import atomic_path
from lapa_jax.core.trackers import Trackers

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends scalars to `metrics.jsonl` of one run folder, and gives them to trackers.

    A run killed between a log line and the next checkpoint repeats the steps in between; the lines of those steps are
    dropped when it resumes, so every step stands in the file once.
    """

    def __init__(
        self, folder: str | os.PathLike, *, resume_step: int, trackers: Sequence[str] = (),
        config: Mapping | None = None,
    ):  # fmt: skip
        """Opens the files and drops what earlier runs logged beyond `resume_step`; all of it where this one begins.

        Args: trackers: names of `core.trackers`. config: of the run, which they show.
        """
        folder = pathlib.Path(folder)
        self._path = folder / METRICS_FILE
        _drop_after(self._path, resume_step)
        self._file = open(self._path, "a", encoding="utf-8")
        self.trackers = Trackers(trackers, folder, resume_step=resume_step, config=config or {})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. A value that is not finite becomes null, which JSON can say."""
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": step, **{n: v if math.isfinite(v) else None for n, v in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.trackers.scalars(step, values)

    def close(self) -> None:
        self._file.close()
        self.trackers.close()


def read_metrics(folder: str | os.PathLike) -> list[dict]:
    """The lines of a run's `metrics.jsonl`; a last line cut off by a kill is left out."""
    path = pathlib.Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _drop_after(path: pathlib.Path, step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step] if step else []
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
