"""Metric writers: one JSON object a line in `metrics.jsonl`, always, and trackers beside it."""

import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import xxhash

from lapa_jax.core.errors import naming
from lapa_jax.core.files import atomic_path, parse_json
from lapa_jax.core.trackers import Trackers

LOG = logging.getLogger("lapa_jax")
METRICS_FILE, DAMAGED_FILE = "metrics.jsonl", "metrics.damaged.jsonl"


class MetricsWriter:
    """Appends scalars to `metrics.jsonl` of one run folder, and gives them to trackers.

    A run killed between a log line and the next checkpoint repeats the steps in between; the lines of those steps are
    dropped when it resumes, so every step stands in the file once.
    """

    def __init__(
        self, folder: str | os.PathLike, *, resume_step: int, trackers: Sequence[str] = (),
        config: Mapping | None = None, sealed: Mapping | None = None,
    ):  # fmt: skip
        """Opens the files and drops what earlier runs logged beyond `resume_step`; all of it where this one begins.

        Args: trackers: names of `core.trackers`. config: of the run, which they show. sealed: what `seal` gave when
          `resume_step` was saved; lines that are missing or changed since are told.
        """
        folder = pathlib.Path(folder)
        self._path = folder / METRICS_FILE
        kept = _drop_after(self._path, resume_step)
        if sealed and _seal(kept[: sealed["lines"]]) != sealed:
            LOG.warning("%s is not as it was when step %d was saved: lines are missing or changed, and stay so",
                        self._path, resume_step)  # fmt: skip
        self._lines, self._sum = len(kept), xxhash.xxh3_64("".join(kept).encode())
        self._file = open(self._path, "a", encoding="utf-8")
        self.trackers = Trackers(trackers, folder, resume_step=resume_step, config=config or {})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. A value that is not finite becomes null, which JSON can say."""
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": step, **{n: v if math.isfinite(v) else None for n, v in values.items()}}
        text = json.dumps(line) + "\n"
        self._lines += 1
        self._sum.update(text.encode())
        with naming(self._path):
            self._file.write(text)
            self._file.flush()
        self.trackers.scalars(step, values)

    def seal(self) -> dict:
        """{"lines": how many there are, "xxh3": their checksum}, to be kept with a checkpoint."""
        return {"lines": self._lines, "xxh3": self._sum.hexdigest()}

    def close(self) -> None:
        with naming(self._path):
            self._file.close()
        self.trackers.close()


def read_metrics(folder: str | os.PathLike) -> list[dict]:
    """The lines of a run's `metrics.jsonl`; those that cannot be read, and one cut off by a kill, are left out."""
    return _read(pathlib.Path(folder) / METRICS_FILE)[0]


def _read(path: pathlib.Path) -> tuple[list[dict], list[str]]:
    """The lines of a file, and those that are damaged."""
    lines, damaged = [], []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for row in text.split("\n"):
        try:
            line = parse_json(row)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif row:
            damaged.append(row)
    if damaged and not text.endswith("\n") and text.endswith(damaged[-1]):
        damaged.pop()  # a kill in the middle of a line, which is written again
    return lines, damaged


def _drop_after(path: pathlib.Path, step: int) -> list[str]:
    """Leaves the lines up to a step in the file, and returns them."""
    lines, damaged = _read(path)
    if damaged:
        LOG.warning("%s: %d line(s) cannot be read and are left out; they lie in %s", path, len(damaged), DAMAGED_FILE)
        with open(path.with_name(DAMAGED_FILE), "a", encoding="utf-8") as file:
            file.write("".join(f"{row}\n" for row in damaged))
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step] if step else []
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    return kept


def _seal(lines: Sequence[str]) -> dict:
    return {"lines": len(lines), "xxh3": xxhash.xxh3_64("".join(lines).encode()).hexdigest()}
