"""Sweeps: which trials there are, which commands each of them runs, and what came out over seeds.

Nothing here starts a process; `launch/sweep.py` does.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import xxhash

from lapa_jax.core import config as config_lib
from lapa_jax.core.arguments import OVERRIDE
from lapa_jax.core.config_files import read_yaml
from lapa_jax.core.config_overrides import literal
from lapa_jax.core.errors import UserError, did_you_mean

TRAIN = "launch/train.py"
OUT = "out"
"""Placeholder of a command for the folder of its own stage."""
LEAST_FINISHED = 3
"""Trials that must have ended before another is called hopeless."""
_KEYS = ("stages", "config", "config_files", "set", "metric", "also", "mode", "seeds", "data_sets", "cases", "grid",
         "random", "trials", "stop_hopeless")  # fmt: skip
_STAGE_KEYS = ("config", "config_files", "set", "command")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")

Point = Mapping[str, str]
"""{key that is varied: its value as text}; under `DATA` and `CASE` names of `Sweep.data_sets` and `Sweep.cases`."""
DATA, CASE = "data set", "case"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a trial.

    Attributes:
      name: of the stage; `{name}` in later stages is its folder.
      config: "configs/laq.py:small" where it trains, with `config_files` and `settings` {dotted key: value} over it.
      command: of another script: its path, then its arguments. `{out}` is its own folder, and has to be there.
    """

    name: str
    config: str | None = None
    config_files: tuple[str, ...] = ()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Attributes:
    stages: in the order in which they run. A stage that several trials have in common runs once.
    metric: name of a metric of the last stage. mode: "max" or "min", which is better.
    seeds: how many; seed k sets `seed` of all that is trained.
    data_sets: {name: {key: value}}, with each of which everything is tried, and compared within each alone.
    cases: {name: {key: value}}, settings that are tried one by one, such as the parts of an ablation.
    grid: {key: values}, of which all are tried with each case. Settings of a case override those of a data set.
    random: {key: distribution}, of which `trials` are drawn for each point of the grid.
    stop_hopeless: whether trials that the median rule calls hopeless are ended early.
    also: further metrics, which the table shows and nothing is chosen by: of the last stage, or "stage.metric".
    """

    stages: tuple[Stage, ...]
    metric: str
    mode: str = "max"
    seeds: int = 1
    data_sets: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    cases: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    random: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trials: int = 0
    stop_hopeless: bool = False
    also: tuple[str, ...] = ()

    def points(self) -> list[Point]:
        """The settings that are tried. A larger number of `trials` keeps the first ones."""
        sets, cases = [{DATA: name} for name in self.data_sets] or [{}], [{CASE: name} for name in self.cases] or [{}]
        grid = [{**one, **case, **dict(zip(self.grid, values))} for one in sets for case in cases
                for values in itertools.product(*self.grid.values())]  # fmt: skip
        drawn = [{key: draw(text, np.random.default_rng([k, index])) for index, (key, text) in enumerate(
            self.random.items())} for k in range(self.trials)] if self.random else [{}]  # fmt: skip
        return [{**chosen, **one} for chosen in grid for one in drawn]

    def settings(self, point: Point) -> dict[str, str]:
        """A point with the settings of its data set and case in place of their names."""
        varied = {key: value for key, value in point.items() if key not in (DATA, CASE)}
        of_names = {**self.data_sets.get(point.get(DATA, ""), {}), **self.cases.get(point.get(CASE, ""), {})}
        return {**of_names, **varied}

    def figure(self, name: str) -> tuple[str, str]:
        """(stage, metric) of an entry of `also`."""
        stage, _, metric = name.partition(".")
        earlier = {each.name for each in self.stages[:-1]}
        return (stage, metric) if stage in earlier else (self.stages[-1].name, name)


class Step(NamedTuple):
    """A stage of one trial. Attributes: stage: its name. folder: where it writes. command: script and arguments.
    data_set: of the trial's point, None where the sweep names none."""

    stage: str
    folder: pathlib.Path
    command: tuple[str, ...]
    data_set: str | None


def steps(sweep: Sweep, point: Point, seed: int, out: pathlib.Path) -> list[Step]:
    """The commands of a trial. A folder's name has a checksum of all that leads to it, so that equal stages of several
    trials are the same folder, and a changed sweep never takes another's."""
    folders: dict[str, str] = {}
    made = []
    for stage in sweep.stages:
        mine = {key.removeprefix(f"{stage.name}."): value for key, value in sweep.settings(point).items()
                if len(sweep.stages) == 1 or key.startswith(f"{stage.name}.")}  # fmt: skip
        if stage.config:
            settings = {**stage.settings, **mine, "seed": str(seed)}
            files = [word for file in stage.config_files for word in ("--config_file", file)]
            words = [TRAIN, "--config", stage.config, *files, *(f"--config.{k}={v}" for k, v in settings.items()),
                     "--workdir", "{out}"]  # fmt: skip
        else:
            words = [_fill(word, mine, keep=(OUT, *folders)) for word in stage.command]
        described = [_fill(word, folders, keep=(OUT,)) for word in words]
        name = f"{stage.name}-{xxhash.xxh3_64(json.dumps(described).encode()).hexdigest()[:10]}"
        folders[stage.name] = name
        places = {OUT: str(out / name), **{other: str(out / folder) for other, folder in folders.items()}}
        command = tuple(_fill(word, places) for word in words)
        made.append(Step(stage.name, out / name, command, point.get(DATA)))
    return made


def _fill(text: str, values: Mapping[str, str], keep: Sequence[str] = ()) -> str:
    def value(match: re.Match) -> str:
        if match[1] in keep:
            return match[0]
        if match[1] not in values:
            raise UserError(f"{match[0]} in '{text}' is no earlier stage and no key that is varied"
                            f"{did_you_mean(match[1], [*values, *keep])}")  # fmt: skip
        return values[match[1]]

    return _PLACEHOLDER.sub(value, text)


def read(path: str) -> Sweep:
    """The sweep of a YAML file, see docs/howto/sweeps.md.

    Raises:
      UserError: it cannot be read, or does not say what is needed.
    """
    return from_values(read_yaml(path, "--file"), path)


def from_values(values: Mapping, path: str) -> Sweep:
    """The sweep that the content of a file describes; `path` is what messages call it. `UserError` as of `read`."""
    for key in values:
        if key not in _KEYS:
            raise UserError(f"{path} has the key '{key}'{did_you_mean(key, _KEYS)}")
    if ("stages" in values) == ("config" in values):
        raise UserError(f"{path} must have either 'config', for one training, or 'stages'")
    if "stages" in values:
        stages = tuple(_stage(path, name, each) for name, each in values["stages"].items())
    else:
        stages = (_stage(path, "run", {key: values[key] for key in _STAGE_KEYS if key in values}),)
    for name in ("grid", "random"):
        if not all(isinstance(key, str) for key in values.get(name) or {}):
            raise UserError(f"{path}: '{name}' holds {values[name]!r}; write one key a line, as `model.dim: [64, 128]` "
                            "in the grid, or `optim.learning_rate: log:1e-4,1e-2` at random")  # fmt: skip
    if "metric" not in values:
        raise UserError(f"{path} has no 'metric', the name of what is compared, such as val/loss")
    grid = {key: tuple(map(as_text, each if isinstance(each, list) else [each]))
            for key, each in values.get("grid", {}).items()}  # fmt: skip
    sweep = Sweep(stages, str(values["metric"]), str(values.get("mode", "max")), values.get("seeds", 1),
                  _named(path, "data_sets", values.get("data_sets") or {}), _cases(path, values.get("cases") or {}),
                  grid, values.get("random", {}), values.get("trials", 0), values.get("stop_hopeless", False),
                  _also(path, values.get("also", [])))  # fmt: skip
    return check(sweep)


def _also(path: str, value) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{path}: 'also' is {value!r}; give a list of metrics, as `[swap_gap, perplexity]`")
    return tuple(value)


def _named(path: str, key: str, value) -> dict[str, dict[str, str]]:
    """{name: settings} of 'data_sets', or of a group of 'cases'."""
    if not isinstance(value, Mapping) or not all(isinstance(each, Mapping) for each in value.values()):
        raise UserError(f"{path}: '{key}' is {value!r}; name each with its settings, as `wide: {{model.dim: 256}}`")
    return {str(name): {k: as_text(each) for k, each in settings.items()} for name, settings in value.items()}


def _cases(path: str, value) -> dict[str, dict[str, str]]:
    """{name: settings} of 'cases'; of a list of several, such as sizes and parts, each of one with each of the others,
    where later ones override."""
    groups = [_named(path, "cases", group) for group in (value if isinstance(value, list) else [value])]
    return {", ".join(name for name, _ in case): {key: each for _, settings in case for key, each in settings.items()}
            for case in itertools.product(*(group.items() for group in groups if group)) if case}  # fmt: skip


def _stage(path: str, name: str, values) -> Stage:
    if not isinstance(values, Mapping) or ("config" in values) == ("command" in values):
        raise UserError(f"{path}: stage '{name}' must have either 'config' or 'command'")
    for key in values:
        if key not in _STAGE_KEYS:
            raise UserError(f"{path}: stage '{name}' has the key '{key}'{did_you_mean(key, _STAGE_KEYS)}")
    command = tuple(map(as_text, values.get("command", ())))
    if command and not any(f"{{{OUT}}}" in word for word in command):
        raise UserError(f"{path}: the command of stage '{name}' does not say where {{out}}, its folder, goes")
    settings = {key: as_text(value) for key, value in values.get("set", {}).items()}
    return Stage(name, values.get("config"), tuple(values.get("config_files", ())), settings, command)


def as_text(value) -> str:
    """A value of a file as `--config.key=` takes it."""
    return value if isinstance(value, str) else repr(value)


def check(sweep: Sweep) -> Sweep:
    """Refuses what cannot be run; gives the sweep."""
    if sweep.mode not in ("max", "min"):
        raise UserError(f"mode is '{sweep.mode}'; give max or min")
    for name in ("seeds", "trials"):
        least, value = int(name == "seeds"), getattr(sweep, name)
        if type(value) is not int or value < least:
            raise UserError(f"{name} is {value!r}; give a whole number of at least {least}")
    if sweep.random and not sweep.trials:
        raise UserError(f"{', '.join(sweep.random)} are drawn at random: say how often, by trials")
    if sweep.trials and not sweep.random:
        raise UserError(f"trials is {sweep.trials}, and no key is drawn at random")
    if both := [key for key in sweep.random if key in sweep.grid]:
        raise UserError(f"{both[0]} is in the grid and drawn at random; choose one")
    if empty := [key for key, values in sweep.grid.items() if not values]:
        raise UserError(f"the grid has no value for {empty[0]}")
    files: dict[str, str] = {}
    for name in sweep.data_sets:
        other = files.setdefault(in_file_name(name), name)
        if other != name or not in_file_name(name):
            raise UserError(f"the data set '{name}' would have the files of '{other}'; give it letters of its own")
    names = [stage.name for stage in sweep.stages]
    of_cases = [key for named in (sweep.data_sets, sweep.cases) for each in named.values() for key in each]
    if both := [key for key in of_cases if key in sweep.grid or key in sweep.random]:
        raise UserError(f"{both[0]} is a setting of a data set or case and varied besides; choose one")
    for key in (*of_cases, *sweep.grid, *sweep.random):
        if len(names) > 1 and key.partition(".")[0] not in names:
            raise UserError(f"the key '{key}' names no stage: STAGE.KEY{did_you_mean(key.partition('.')[0], names)}")
    for key, text in sweep.random.items():
        try:
            draw(text, np.random.default_rng(0))
        except ValueError:
            raise UserError(f"{key}={text} is no distribution; give log:LOW,HIGH, uniform:LOW,HIGH, int:LOW,HIGH or "
                            "choice:A,B,...") from None  # fmt: skip
    # A metric named twice is one column.
    return dataclasses.replace(sweep, also=tuple(dict.fromkeys(sweep.also)))


def configs(sweep: Sweep) -> Iterator[ml_collections.ConfigDict]:
    """The config of each training of a sweep, all seeds but the first left out.

    Raises:
      UserError: a key, or a value of the model's, that cannot be used.
    """
    for point in sweep.points():
        for step in steps(sweep, point, 0, pathlib.Path()):
            if step.command[0] != TRAIN:
                continue
            words = step.command[1:-2]
            files = [after for word, after in zip(words, words[1:]) if word == "--config_file"]
            config = config_lib.load(words[1], [word for word in words if word.startswith(OVERRIDE)], files)
            config_lib.check_fields(config_lib.MODELS, config.model)
            yield config


def draw(text: str, rng: np.random.Generator) -> str:
    """A value of a distribution: "log:LOW,HIGH" (its logarithm is uniform), "uniform:LOW,HIGH", "int:LOW,HIGH" (both
    included), "choice:A,B,...". ValueError where it is none."""
    kind, _, rest = str(text).partition(":")
    parts = split_values(rest)
    if kind == "choice":
        return parts[rng.integers(len(parts))]
    low, high = map(int if kind == "int" else float, parts)
    if not low < high or (kind == "log" and low <= 0):
        raise ValueError
    if kind == "int":
        return str(rng.integers(low, high + 1))
    if kind not in ("log", "uniform"):
        raise ValueError
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if kind == "log" else rng.uniform(low, high)
    return f"{value:.4g}"


def split_values(text: str) -> list[str]:
    """The values of "a,(1, 2),b": commas within brackets belong to a value."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    if not all(value.strip() for value in values):
        raise ValueError(f"'{text}' has an empty value")
    return [value.strip() for value in values]


def hopeless(curve: Mapping[int, float], finished: Sequence[Mapping[int, float]], mode: str) -> bool:
    """The median rule (Golovin et al. 2017, Google Vizier, section 3.2.2): whether the best value of a trial up to its
    newest evaluation is worse than the median of what the finished ones had on average up to that step.

    Args: curve: {step: value} of the trial. finished: the same of the finished ones.
    """
    if not curve:
        return False
    last = max(curve)
    means = [statistics.fmean(before) for other in finished
             if (before := [value for step, value in other.items() if 0 < step <= last])]  # fmt: skip
    ours = [value for step, value in curve.items() if step > 0]
    if len(means) < LEAST_FINISHED or not ours:
        return False
    sign = 1 if mode == "max" else -1
    return max(sign * value for value in ours) < sign * statistics.median(means)


class Outcome(NamedTuple):
    """What came out of a point. Attributes: point. values: of the metric, {seed: value}. missing: {seed: why}. also:
    {further metric: values of the seeds that have it}."""

    point: Point
    values: dict[int, float]
    missing: dict[int, str]
    also: Mapping[str, Sequence[float]] = {}

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t; None of fewer than two seeds, and where all came out alike: one
        without width would claim to know the next."""
        count = len(self.values)
        if len(set(self.values.values())) < 2:
            return None
        from scipy.stats import t

        half = t.ppf(0.975, count - 1) * statistics.stdev(self.values.values()) / math.sqrt(count)
        return self.mean - half, self.mean + half


def ranking(outcomes: Sequence[Outcome], mode: str) -> list[Outcome]:
    """The best first; those that lack a seed behind all that have every one, since fewer seeds flatter."""
    sign = -1 if mode == "max" else 1
    return sorted(outcomes, key=lambda each: (bool(each.missing), sign * each.mean if each.values else math.inf))


def by_data_set(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Those of each data set, in their order; all of them under "" where the sweep names none."""
    groups: dict[str, list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(each.point.get(DATA, ""), []).append(each)
    return groups


def in_file_name(data_set: str) -> str:
    """The name of a data set within that of a file."""
    return re.sub(r"\W+", "_", data_set).strip("_")


def rows(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    """The rows of the table: values of the keys, mean, interval, least to largest, means of the further metrics, seeds,
    and what is missing."""
    for each in outcomes:
        values, interval = each.values.values(), each.interval()
        spread = f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else ""
        missing = "; ".join(f"seed {seed}: {why}" for seed, why in each.missing.items())
        also = [f"{statistics.fmean(numbers):.4g}" if numbers else "" for numbers in each.also.values()]
        yield [*each.point.values(), f"{each.mean:.4g}" if values else "",
               "{:.4g} to {:.4g}".format(*interval) if interval else "", spread, *also, str(len(values)),
               missing]  # fmt: skip


def best_settings(sweep: Sweep, best: Outcome) -> dict[str, dict]:
    """{stage: its settings at a point, nested as `--config_file` takes them}; those that name the folder of another
    stage are left out."""
    chosen = {}
    for stage in sweep.stages:
        if not stage.config:
            continue
        own = {key.removeprefix(f"{stage.name}."): value for key, value in sweep.settings(best.point).items()
               if len(sweep.stages) == 1 or key.startswith(f"{stage.name}.")}  # fmt: skip
        nested: dict = {}
        for key, value in {**stage.settings, **own}.items():
            if _PLACEHOLDER.search(value):
                continue
            *groups, last = key.split(".")
            group = nested
            for name in groups:
                group = group.setdefault(name, {})
            given = literal(value)
            group[last] = list(given) if isinstance(given, tuple) else given
        chosen[stage.name] = nested
    return chosen
