"""What the studies in launch/studies share: runs that are trained once and not again, and which runs they are."""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import atomic_path

ROOT = pathlib.Path(__file__).resolve().parents[2]
"""The repository: studies run its commands."""

DONE = "trained.txt"
"""In a run's folder once it is trained: what it was trained with."""


def train(run: pathlib.Path, config: str, settings: Sequence[str]) -> pathlib.Path:
    """Trains a run unless it is done; one that was interrupted goes on.

    Args:
      run: its folder; the log lies beside it.
      config: "name.py:variant" in configs/. settings: "key=value" changes of it.

    Returns:
      The folder.

    Raises:
      UserError: the training failed, or the folder holds a run with other settings.
    """
    told = "\n".join([config, *settings])
    if not (run / DONE).exists():
        changes = [f"--config.{setting}" for setting in settings]
        call(run.with_name(f"{run.name}.log"), "launch/train.py", "--config", str(ROOT / "configs" / config), *changes,
             "--workdir", str(run))  # fmt: skip
        with atomic_path(run / DONE) as temporary:
            temporary.write_text(told, encoding="utf-8")
    elif (run / DONE).read_text(encoding="utf-8") != told:
        raise UserError(f"{run} was trained with other settings ({run / DONE}); give another --out, or move it away")
    return run


def evaluate(run: pathlib.Path, *arguments: str) -> dict:
    """Evaluates a run, with further arguments of launch/eval.py, unless that is done; the content of metrics.json."""
    results = run / "eval" / "metrics.json"
    if not results.is_file():
        call(run.with_name(f"{run.name}.log"), "launch/eval.py", "--run", str(run), *arguments)
    return json.loads(results.read_text(encoding="utf-8"))


def call(log: pathlib.Path, script: str, *arguments: str) -> None:
    """Runs a script of the repository, its output added to `log`; a failure is a UserError that names the log."""
    # One thread each: two runs side by side on two cores take less time than one after the other on both.
    env = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, str(ROOT / script), *arguments]
        code = subprocess.run(command, stdout=file, stderr=file, env=env).returncode
    if code:
        raise UserError(f"{script} failed (exit {code}) for {log.stem}; see {log}")


def parser(doc: str, data: str, recipes: Iterable[str], usual: Sequence[str], seeds: int) -> argparse.ArgumentParser:
    """The command line of a study whose runs are data sets × recipes × seeds.

    Args:
      doc: the study's docstring. data: form of an entry of --data. recipes: those that there are. usual: those that are
        trained where none is named. seeds: of each, where the command does not say.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                   allow_abbrev=False)  # fmt: skip
    made.add_argument("--data", nargs="+", required=True, help=data)
    made.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs, and of what they need")
    made.add_argument("--seeds", type=_at_least_one, default=seeds, help="of each recipe that names no number itself")
    known = ", ".join(recipes)
    made.add_argument("--recipes", nargs="+", default=list(usual), help=f"RECIPE or RECIPE=SEEDS, of {known}")
    made.add_argument("--jobs", type=_at_least_one, default=2, help="runs at the same time, one core each")
    made.add_argument("--overrides", nargs="*", default=[], help="config changes, key=value or NAME:key=value")
    return made


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1")
    return int(text)


def recipe_and_seeds(text: str, known: Iterable[str], usual: int = 1) -> tuple[str, int]:
    """(name, number of seeds) of "RECIPE" or "RECIPE=SEEDS"."""
    name, given, seeds = text.partition("=")
    if name not in known:
        raise UserError(f"unknown recipe '{name}'{did_you_mean(name, known)}")
    if given and not (seeds.isdigit() and int(seeds)):
        raise UserError(f"--recipes {text} is not of the form RECIPE=SEEDS, with 1 seed at least")
    if usual < 1:
        raise UserError(f"--seeds {usual} trains nothing; give 1 or more")
    return name, int(seeds or usual)


def overrides_of(name: str, names: Sequence[str], overrides: Iterable[str]) -> list[str]:
    """Of overrides "key=value", for all data sets, and "NAME:key=value", for one, those for `name`, in their order."""
    chosen = []
    for override in overrides:
        whose, named, setting = override.partition(":")
        if not named or "=" in whose:
            chosen.append(override)
        elif whose not in names:
            raise UserError(f"--overrides {override} is for no data set of --data{did_you_mean(whose, names)}")
        elif whose == name:
            chosen.append(setting)
    return chosen


Columns = Mapping[str, tuple[str, str]]
"""{head of a column: (metric, format)}."""


def cells(metrics: Mapping, columns: Columns) -> list[str]:
    """The metrics of a row, empty where there is none, "nan" where metrics.json has null."""
    return [form.format(_known(metrics[key])) if key in metrics else "" for key, form in columns.values()]


def mean(group: Sequence[Mapping], columns: Columns) -> dict[str, float]:
    """The means of the columns' metrics that all of the group have, words left out."""
    keys = [key for key, _ in columns.values() if all(not isinstance(m.get(key, ""), str) for m in group)]
    return {key: statistics.mean(_known(metrics[key]) for metrics in group) for key in keys}


def _known(value):
    """A metric; NaN for null, which stands for what is not finite."""
    return math.nan if value is None else value


def ranges(group: Sequence[Mapping], columns: Columns) -> list[str]:
    """The means of a group's metrics, with the least and the largest where it has several; empty where one has none."""
    found = []
    for key, form in columns.values():
        values = [_known(metrics[key]) for metrics in group if key in metrics]
        if len(values) < len(group):
            found.append("")
        else:
            least_to_most = f" ({form} to {form})".format(min(values), max(values)) if len(values) > 1 else ""
            found.append(form.format(statistics.mean(values)) + least_to_most)
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
