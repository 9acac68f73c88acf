"""What the studies in launch/studies share: runs that are trained once and not again, and which runs they are."""

import argparse
import collections
import concurrent.futures
import contextlib
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lapa_jax.core import escape
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, did_you_mean, last_words
from lapa_jax.core.files import atomic_path, read_json
from lapa_jax.core.share import of_one_process

ROOT = pathlib.Path(__file__).resolve().parents[2]
"""The repository: studies run its commands."""

Data = TypeVar("Data")
"""A data set of a study; has a `name`."""

DONE = "trained.txt"
"""In a run's folder once it is trained: what it was trained with."""


_used: set[pathlib.Path] = set()
"""Runs that `train` was asked for, whether it trained them or they were done."""


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
    _used.add(run)
    described = "\n".join([config, *settings])
    if not (run / DONE).exists():
        changes = [f"--config.{setting}" for setting in settings]
        call(run.with_name(f"{run.name}.log"), "launch/train.py", "--config", str(ROOT / "configs" / config), *changes,
             "--workdir", str(run))  # fmt: skip
        # Written when the training has ended: a run without it is continued, one with it is never trained again.
        with atomic_path(run / DONE) as temporary:
            temporary.write_text(described, encoding="utf-8")
    elif (run / DONE).read_text(encoding="utf-8") != described:
        raise UserError(f"{run} was trained with other settings ({run / DONE}); give another --out, or move it away")
    return run


def evaluate(run: pathlib.Path, *arguments: str, figures: Iterable[str] = ()) -> dict:
    """Evaluates a run, with further arguments of launch/eval.py, unless that is done; the content of metrics.json.

    Args:
      figures: metrics without which it is evaluated again: other arguments may have left them out before.
    """
    results = run / "eval" / "metrics.json"
    if not results.is_file() or not {*figures} <= set(read_json(results)["metrics"]):
        call(run.with_name(f"{run.name}.log"), "launch/eval.py", "--run", str(run), *arguments)
    return read_json(results)


def revisions() -> str:
    """Which commits the runs of this process were trained at, for under their table: a folder may be gone on with after
    the code changed, of which its finished runs know nothing."""
    commits: collections.Counter[str] = collections.Counter()
    for run in sorted(_used):
        env = run / "env.json"
        git = read_json(env).get("git") if env.is_file() else None
        commits[git["commit"][:7] + ", changed" * git["changed"] if git else "unknown"] += 1
    if len(commits) == 1:
        return f"Trained at revision {''.join(commits)}.\n"
    of_each = "; ".join(f"{commit}: {counted(count, 'run')}" for commit, count in commits.items())
    return f"Trained at several revisions ({of_each}): rows are alike only if these train alike.\n"


CONTROLS = ("expert", "random", "repeat")
"""Those that launch/eval.py drives beside a policy; with the first in a policy's place it drives all of them."""


def driven(folder: pathlib.Path, count: int) -> bool:
    """Whether launch/eval.py has driven `count` episodes at least, of the policy and the controls."""
    return (folder / "metrics.json").is_file() and read_json(folder / "metrics.json")["episodes"] >= count


def episodes(folder: pathlib.Path, count: int) -> list[dict]:
    """What launch/eval.py left of the first `count` starts in a controller's folder; start n is the same in all."""
    return [read_json(path) for path in sorted((folder / "episodes").iterdir())[:count]]


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder, whole or not at all, unless that is done: controls are the same whatever the policy."""
    if not target.exists():
        begun = target.with_name(f".{target.name}.tmp")
        shutil.copytree(source, begun, dirs_exist_ok=True)
        begun.rename(target)


_running: set[subprocess.Popen] = set()
_ending = threading.Event()


@contextlib.contextmanager
def side_by_side(jobs: int) -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Threads in which runs are made. An interrupt or SIGTERM ends what runs, which saves, and begins nothing more."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            _ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                process.terminate()
            raise


def call(log: pathlib.Path, script: str, *arguments: str) -> None:
    """Runs a script of the repository, its output added to `log`; a failure is a UserError with what it said last."""
    # One thread each: two runs side by side on two cores take less time than one after the other on both.
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env = {**of_one_process(os.environ), "XLA_FLAGS": flags}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, str(ROOT / script), *arguments], stdout=file, stderr=file, env=env)
    _running.add(process)
    if _ending.is_set():  # begun in the moment of the interrupt
        process.terminate()
    code = process.wait()
    _running.discard(process)
    if _ending.is_set():  # a training that was asked to stop ends with 0
        raise UserError(f"{script} was ended; the same command goes on")
    if code:
        raise UserError(f"{script} failed (exit {code}) for {log.stem}{last_words(code, log)}; see {log}")


def command_line(doc: str, seeds: int | None = None, overrides: bool = True) -> argparse.ArgumentParser:
    """What every study asks: --out, --jobs, --overrides unless it trains nothing, and --seeds where there is a usual
    number of them."""
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                   allow_abbrev=False)  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs, and of what they need")
    parser.add_argument("--jobs", type=at_least_one, default=2, help="runs at the same time, one core each")
    changes = "config changes, key=value; of one data set NAME:key=value"
    if overrides:
        parser.add_argument("--overrides", nargs="*", default=[], help=changes)
    if seeds is not None:
        parser.add_argument("--seeds", type=at_least_one, default=seeds, help="of whatever names no number itself")
    return parser


def grid_command_line(
    doc: str, data: str, recipes: Iterable[str], usual: Sequence[str], seeds: int
) -> argparse.ArgumentParser:
    """The command line of a study whose runs are data sets × recipes × seeds; see `grid`.

    Args:
      doc: the study's docstring. data: form of an entry of --data. recipes: those that there are. usual: those that are
        trained where none is named. seeds: of each, where the command does not say.
    """
    parser = command_line(doc, seeds)
    parser.add_argument("--data", nargs="+", required=True, help=data)
    names = ", ".join(recipes)
    parser.add_argument("--recipes", nargs="+", default=list(usual), help=f"RECIPE or RECIPE=SEEDS, of {names}")
    return parser


def at_least_one(text: str) -> int:
    """A number of an argument, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1")
    return int(text)


def data_sets(entries: Iterable[str], form: str, make: Callable[..., Data]) -> list[Data]:
    """The data sets of --data.

    Args:
      entries: texts of the form. form: "NAME=PART,PART[,PART]", brackets around what may be left out.
      make: gives a data set, which has a `name`, for the name and the parts; ValueError if they are none.

    Raises:
      UserError: an entry is of another form, or two have the same name.
    """
    least, most = form.partition("[")[0].count(",") + 1, form.count(",") + 1
    sets = []
    for entry in entries:
        name, _, rest = entry.partition("=")
        parts = rest.split(",")
        try:
            if not all([name, *parts]) or not least <= len(parts) <= most:
                raise ValueError
            sets.append(make(name, *parts))
        except ValueError:
            raise UserError(f"--data {entry} is not of the form {form}") from None
    for name, times in collections.Counter(data.name for data in sets).items():
        if times > 1:
            raise UserError(f"--data has {times} data sets of the name {name}; give each its own")
    return sets


class Run(NamedTuple):
    """A run of a grid: what of --data, which recipe, which seed, and the changes of the config that were asked for."""

    data: Any
    recipe: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.data.name}_{self.recipe}_{self.seed}"


def grid(args: argparse.Namespace, sets: Sequence[Data], recipes: Iterable[str]) -> list[Run]:
    """The runs that the arguments of `grid_command_line` ask for, data set by data set.

    Raises:
      UserError: a recipe that there is not, or an override for a data set that there is not.
    """
    seeds = dict(recipe_and_seeds(text, recipes, args.seeds) for text in args.recipes)
    names = [data.name for data in sets]
    return [Run(data, recipe, seed, tuple(overrides_of(data.name, names, args.overrides)))
            for data in sets for recipe, count in seeds.items() for seed in range(count)]  # fmt: skip


def recipe_and_seeds(text: str, recipes: Iterable[str], usual: int = 1) -> tuple[str, int]:
    """(name, number of seeds) of "RECIPE" or "RECIPE=SEEDS"."""
    name, sign, seeds = text.partition("=")
    if name not in recipes:
        raise UserError(f"unknown recipe '{name}'{did_you_mean(name, recipes)}")
    if sign and not (seeds.isdecimal() and int(seeds)):
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


def check_overrides(configs: Iterable[str], overrides: Iterable[str]) -> None:
    """For studies whose first training with the overrides comes after other work.

    Args:
      configs: "name.py:variant" in configs/, of all that are trained with them.

    Raises:
      ConfigError: a key or value that one of the configs cannot take.
    """
    from lapa_jax.core import config as config_lib

    for config in configs:
        config_lib.load(str(ROOT / "configs" / config), [f"--config.{override}" for override in overrides])


def counted(count: int, word: str) -> str:
    """"1 seed", "2 seeds"."""
    return f"{count} {word}{'s' * (count != 1)}"


Columns = Mapping[str, tuple[str, str]]
"""{head of a column: (metric, format)}."""


def cells(metrics: Mapping, columns: Columns) -> list[str]:
    """The metrics of a row, empty where there is none, "nan" where metrics.json has null."""
    return [form.format(_number(metrics[key])) if key in metrics else "" for key, form in columns.values()]


def mean(group: Sequence[Mapping], columns: Columns) -> dict[str, float]:
    """The means of the columns' metrics that all of the group have, words left out."""
    keys = [key for key, _ in columns.values() if all(not isinstance(m.get(key, ""), str) for m in group)]
    return {key: statistics.mean(_number(metrics[key]) for metrics in group) for key in keys}


def _number(value):
    """A metric; NaN for null, which stands for what is not finite."""
    return math.nan if value is None else value


def ranges(group: Sequence[Mapping], columns: Columns) -> list[str]:
    """The means of a group's metrics, with the least and the largest where it has several; empty where one has none."""
    cells_of_group = []
    for key, form in columns.values():
        values = [_number(metrics[key]) for metrics in group if key in metrics]
        if len(values) < len(group):
            cells_of_group.append("")
        else:
            least_to_most = f" ({form} to {form})".format(min(values), max(values)) if len(values) > 1 else ""
            cells_of_group.append(form.format(statistics.mean(values)) + least_to_most)
    return cells_of_group


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(escape.table(head, rows)) + "\n"
