"""What the studies in launch/studies share: runs that are trained once and not again, and which runs they are."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Sequence

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


def recipe_and_seeds(text: str, known: Iterable[str], usual: int = 1) -> tuple[str, int]:
    """(name, number of seeds) of "RECIPE" or "RECIPE=SEEDS"."""
    name, given, seeds = text.partition("=")
    if name not in known:
        raise UserError(f"unknown recipe '{name}'{did_you_mean(name, known)}")
    if given and not (seeds.isdigit() and int(seeds)):
        raise UserError(f"--recipes {text} is not of the form RECIPE=SEEDS, with 1 seed at least")
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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
