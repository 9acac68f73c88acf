"""Several runs beside each other: curves, metrics with their differences, and what differs in their configs."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lapa_jax.core import escape
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.core.metrics import read_metrics
from lapa_jax.plots import curves, page
from lapa_jax.plots.curves import CURVES_FILE

PAGE, MARKDOWN = "index.html", "comparison.md"


class Run(NamedTuple):
    """Attributes: name: in tables. config: {dotted key: value}. history: lines of `metrics.jsonl`. evaluated: metrics
    of `eval/metrics.json`; empty where the run was not evaluated."""

    name: str
    config: dict
    history: list[dict]
    evaluated: dict


def read(folders: Sequence[pathlib.Path]) -> list[Run]:
    """The runs of folders, named by as much of their paths as tells them apart.

    Raises:
      UserError: fewer than two, one twice, or a folder that is no run folder.
    """
    paths = [folder.resolve() for folder in folders]
    if len(paths) < 2:
        raise UserError("give two run folders or more")
    if len(set(paths)) < len(paths):
        raise UserError("the same run folder is given twice")
    depth = next(d for d in range(1, 1 + max(len(path.parts) for path in paths))
                 if len({path.parts[-d:] for path in paths}) == len(paths))  # fmt: skip
    return [_read(path, "/".join(path.parts[-depth:])) for path in paths]


def _read(folder: pathlib.Path, name: str) -> Run:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.json; give the folder that --workdir named")
    evaluation = folder / "eval" / "metrics.json"
    evaluated = read_json(evaluation) if evaluation.is_file() else {}
    figures = {**evaluated.get("metrics", {}), **evaluated.get("measured", {})}
    return Run(name, flat(read_json(folder / "config.json")), read_metrics(folder), figures)


def flat(values: Mapping, prefix: str = "") -> dict:
    """{"a.b": value} of nested groups; an empty group is a value."""
    pairs = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        pairs |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return pairs


def write(out: pathlib.Path, runs: Sequence[Run]) -> list[pathlib.Path]:
    """Writes the curves, `comparison.md` and a page that needs nothing else; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    panels = curves.of_runs({run.name: run.history for run in runs})
    drawn = curves.draw(out / CURVES_FILE, panels) if panels else None
    markdown = as_markdown(runs)
    page.compare(out / PAGE, markdown, panels, drawn)
    picture = f"\n![curves]({CURVES_FILE})\n" if drawn else ""
    title, _, rest = markdown.partition("\n")
    (out / MARKDOWN).write_text(f"{title}\n{picture}{rest}", encoding="utf-8")
    return [out / PAGE, out / MARKDOWN, *([drawn] if drawn else [])]


def as_markdown(runs: Sequence[Run]) -> str:
    """Tables of the last evaluation in training, of `launch/eval.py`, and of the configs."""
    parts = [f"# {', '.join(run.name for run in runs)}", ""]
    last = [_last(run.history) for run in runs]
    parts += ["## Last evaluation in training", "", *_metrics([run.name for run in runs], last), ""]
    if any(run.evaluated for run in runs):
        parts += ["## launch/eval.py", "", *_metrics([run.name for run in runs], [run.evaluated for run in runs]), ""]
    rows = differences([run.config for run in runs])
    keys = "1 key differs." if len(rows) == 1 else f"{len(rows)} keys differ."
    parts += ["## Configs", "", keys if rows else "The configs are the same.", ""]
    if rows:
        parts += _table(["key", *(run.name for run in runs)], [[key, *map(_shown, values)] for key, values in rows])
    return "\n".join(parts) + "\n"


def differences(configs: Sequence[Mapping]) -> list[tuple[str, list]]:
    """(key, value of each) of the keys whose values differ, other than the run's name; "(none)" where one lacks it."""
    keys = dict.fromkeys(key for config in configs for key in config if key != "name")
    rows = [(key, [config.get(key, "(none)") for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values[1:])]


def _last(history: Sequence[Mapping]) -> dict:
    """Step and metrics of the last evaluation, and the last training loss."""
    evaluations = [line for line in history if any(name.startswith("val/") for name in line)]
    losses = [line["train/loss"] for line in history if line.get("train/loss") is not None]
    figures = {"train/loss": losses[-1]} if losses else {}
    if evaluations:
        figures |= {n: value for n, value in evaluations[-1].items() if n == "step" or n.startswith("val/")}
    return figures


def _metrics(names: Sequence[str], figures: Sequence[Mapping]) -> list[str]:
    """A row a metric: the value of each run, and of all but the first the difference to it."""
    metrics = [name for name in dict.fromkeys(name for of in figures for name in of) if name != "step"]
    head = ["metric", names[0]]
    for name in names[1:]:
        head += [name, f"{name} - {names[0]}"]
    rows = [["step", _number(figures[0].get("step"))]] if any("step" in of for of in figures) else []
    for of in figures[1:] if rows else ():
        rows[0] += [_number(of.get("step")), ""]
    for metric in metrics:
        first = figures[0].get(metric)
        row = [metric, _number(first)]
        for of in figures[1:]:
            value = of.get(metric)
            both = _is_number(first) and _is_number(value)
            row += [_number(value), f"{value - first:+.4g}" if both else ""]
        rows.append(row)
    return _table(head, rows)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value) -> str:
    """Empty where there is none; null of a JSON file stands for what is not finite."""
    return f"{value:.5g}" if _is_number(value) else "" if value is None else str(value)


def _shown(value) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rows = ([cell.replace("|", "\\|") for cell in line] for line in (head, *rows))
    return escape.table(head, rows)
