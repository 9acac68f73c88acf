"""Trains a config, or runs a chain of stages, with many settings and seeds, and says which settings are best.

python launch/sweep.py --config configs/laq.py:small --out sweeps/rate --metric val/action_probe_r2 --seeds 3 \\
    [--grid model.code_seq_len=2,4 ...] [--random optim.learning_rate=log:1e-4,1e-2 ... --trials 8] \\
    [--config.key=value ...] [--jobs 2] [--stop_hopeless] [--share I/N]
python launch/sweep.py --file configs/sweeps/laq_rate.yaml --out sweeps/rate

The same command goes on where it was interrupted; with more seeds, values or trials it runs what is new. OUT gets
sweep.md, sweep.csv, sweep.png and the settings of the best as best.yaml, for launch/train.py --config_file; where the
file names data sets, a table and the best of each.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import yaml

from lapa_jax.core import escape, startup
from lapa_jax.core import sweep as sweeps
from lapa_jax.core.arguments import OVERRIDE, Parser
from lapa_jax.core.errors import UserError, did_you_mean, last_words, run_main
from lapa_jax.core.escape import markdown, say
from lapa_jax.core.files import atomic_path, check_can_write, read_json
from lapa_jax.core.lock import locked
from lapa_jax.core.metrics import read_metrics
from lapa_jax.core.share import HELP, of_one_process, parse_share
from lapa_jax.core.sweep import Point, Step, Sweep
from lapa_jax.data.training import check_folders
from lapa_jax.evaluate import metric_words

ROOT = pathlib.Path(__file__).resolve().parents[1]
DONE = "done.json"
LOOK = 2.0
"""Seconds between two looks at what a run logs."""


def main(argv: list[str]) -> None:
    args, sweep = _arguments(argv)
    points, share = sweep.points(), parse_share(args.share) or (0, 1)
    trials = [(point, seed) for seed in range(sweep.seeds) for point in points]
    startup.say(f"checking {len(points)} settings")
    _check(sweep)
    check_can_write(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    say(f"{len(points)} settings x {sweep.seeds} seeds: {len(trials)} trials in {args.out}")
    runner = Runner(sweep, args.out, args.jobs)
    runner.run(trials[share[0] :: share[1]])
    outcomes = [runner.outcome(point) for point in points]
    waiting = sum("not run yet" in each.missing.values() for each in outcomes)
    if waiting and args.share:
        say(f"this share is done; {waiting} of {len(points)} settings wait for other shares; the last writes the table")
        return
    report(sweep, outcomes, args.out)
    for name in sweep.also:
        if not any(each.also[name] for each in outcomes):
            say(f"no trial has the figure '{name}' that the table was to show besides")
    if runner.failed:
        raise UserError(f"{len(runner.failed)} trials failed, the first with: {runner.failed[0]}; the same command "
                        "tries them again")  # fmt: skip


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, Sweep]:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of all runs and of the table")
    parser.add_argument("--file", help="YAML file of a sweep, see docs/howto/sweeps.md; --seeds, --trials go before it")
    parser.add_argument("--config", help="what is trained, configs/laq.py:small")
    parser.add_argument("--config_file", action="append", default=[], help="YAML file of overrides; may be repeated")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B", help="values that are all tried")
    parser.add_argument("--random", action="append", default=[], metavar="KEY=KIND:A,B",
                        help="log:LOW,HIGH, uniform:LOW,HIGH, int:LOW,HIGH or choice:A,B")  # fmt: skip
    parser.add_argument("--trials", type=int, help="how often is drawn at random")
    parser.add_argument("--seeds", type=int, help="runs of each setting")
    parser.add_argument("--metric", help="what is compared: of the last evaluation, val/psnr_gain")
    parser.add_argument("--also", nargs="+", metavar="METRIC", help="further metrics for the table")
    parser.add_argument("--mode", choices=("max", "min"), help="which is better")
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time")
    parser.add_argument("--stop_hopeless", action="store_true", help="end trials early by the median rule")
    parser.add_argument("--share", metavar="I/N", help=HELP)
    overrides = [text for text in argv if text.startswith(OVERRIDE)]
    args = parser.parse_args([text for text in argv if not text.startswith(OVERRIDE)])
    if bool(args.file) == bool(args.config):
        raise UserError("give either --file, or --config and what is varied")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give a number of at least 1")
    given = {name: getattr(args, name) for name in ("seeds", "trials", "metric", "mode")}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"also": tuple(args.also)} if args.also else {}
    given |= {"stop_hopeless": True} if args.stop_hopeless else {}
    if args.file:
        if args.grid or args.random or args.config_file or overrides:
            raise UserError("--file says what is varied and set; change it there")
        return args, sweeps.check(dataclasses.replace(sweeps.read(args.file), **given))
    if not args.metric:
        raise UserError("--metric is required: what is compared, such as val/swap_gap")
    settings = dict(text.removeprefix(OVERRIDE).partition("=")[::2] for text in overrides)
    stage = sweeps.Stage("run", args.config, tuple(args.config_file), settings)
    grid = {key: tuple(_values("--grid", key, text)) for key, text in _pairs("--grid", args.grid)}
    return args, sweeps.check(Sweep((stage,), grid=grid, random=dict(_pairs("--random", args.random)), **given))


def _pairs(option: str, texts: list[str]) -> list[tuple[str, str]]:
    for text in texts:
        if not all(text.partition("=")):
            raise UserError(f"{option} {text} is not of the form KEY=...")
    return [tuple(text.partition("=")[::2]) for text in texts]


def _values(option: str, key: str, text: str) -> list[str]:
    try:
        return sweeps.split_values(text)
    except ValueError as error:
        raise UserError(f"{option} {key}={text}: {error}") from None


def _check(sweep: Sweep) -> None:
    """Every config of the sweep loads, and what it names is there, before the first is trained."""
    for stage in sweep.stages:
        if stage.command and not (ROOT / stage.command[0]).is_file():
            raise UserError(f"stage '{stage.name}': there is no script {stage.command[0]}")
    for config in sweeps.configs(sweep):
        if len(sweep.stages) == 1:  # else data may come from a stage before
            check_folders(config.data)
    if sweep.stages[-1].config and not sweep.metric.startswith("train/"):
        metric_words.check_logged(sweep.metric, "--metric")


class Runner:
    """Runs trials, some at the same time, each stage once."""

    def __init__(self, sweep: Sweep, out: pathlib.Path, jobs: int):
        self._sweep, self._out, self._jobs = sweep, out, jobs
        self._running: set[subprocess.Popen] = set()
        self._ending = threading.Event()
        self._locks: dict[pathlib.Path, threading.Lock] = {}
        self._count, self._speak = 0, threading.Lock()
        self.failed: list[str] = []

    def run(self, trials: list[tuple[Point, int]]) -> None:
        """Runs what is not done yet. A signal ends what runs, which saves, and the same command goes on."""
        pool = concurrent.futures.ThreadPoolExecutor(self._jobs)
        try:
            done = [pool.submit(self._trial, point, seed, len(trials)) for point, seed in trials]
            for each in concurrent.futures.as_completed(done):
                each.result()
        except BaseException:
            self._ending.set()
            for process in list(self._running):
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def outcome(self, point: Point) -> sweeps.Outcome:
        """What there is of a point by now."""
        values, missing, also = {}, {}, {name: [] for name in self._sweep.also}
        for seed in range(self._sweep.seeds):
            folders = {step.stage: step.folder for step in sweeps.steps(self._sweep, point, seed, self._out)}
            last = folders[self._sweep.stages[-1].name]
            done = read_json(_done(last)) if _done(last).is_file() else {"missing": "not run yet"}
            if "value" in done:
                values[seed] = done["value"]
                lines = {stage: _lines(folders[stage]) for stage in {self._sweep.figure(name)[0] for name in also}}
                for name, numbers in also.items():
                    stage, metric = self._sweep.figure(name)
                    curve = _curve(lines[stage], metric)
                    numbers += [curve[max(curve)]] if curve else []
            else:
                missing[seed] = done["missing"]
        return sweeps.Outcome(point, values, missing, also)

    def _trial(self, point: Point, seed: int, trials: int) -> None:
        steps = sweeps.steps(self._sweep, point, seed, self._out)
        said = ", ".join(f"{key}={value}" for key, value in point.items()) or "as it is"
        start = time.monotonic()
        for step in steps:
            with self._once(step):
                if self._ending.is_set():
                    return
                problem = self._step(step, last=step is steps[-1])
            if problem:
                break
        done = read_json(_done(steps[-1].folder)) if not problem else {"missing": problem}
        what = f"{self._sweep.metric} {done['value']:.4g}" if "value" in done else done["missing"]
        with self._speak:
            self._count += 1
            say(f"[{self._count}/{trials}] {said}, seed {seed}: {what} ({time.monotonic() - start:.0f} s)", flush=True)
            if problem:
                self.failed.append(problem)

    @contextlib.contextmanager
    def _once(self, step: Step):
        """One at a time at a stage, of all threads here and all shares elsewhere."""
        with self._speak:
            mine = self._locks.setdefault(step.folder, threading.Lock())
        with mine, contextlib.ExitStack() as held:
            # Not the lock that a command takes for its output, as tools/record_sim.py does: it would be refused.
            lock = step.folder.with_name(f".{step.folder.name}.stage.lock")
            while not self._ending.is_set():
                try:
                    held.enter_context(locked(lock, "running a stage"))
                    break
                except UserError:
                    time.sleep(LOOK)
            yield

    def _step(self, step: Step, last: bool) -> str | None:
        """Runs a stage unless it is done. Returns why it failed, None where it did not."""
        done = _done(step.folder)
        if done.is_file():
            before = read_json(done)
            # Asked for another figure before. One that was stopped early has none, and stays what it is.
            if last and before.keys() & {"metric", "value"} and before.get("metric") != self._sweep.metric:
                self._note(done, {**_described(step), **self._figure(step.folder)})
            return None
        log = step.folder.with_name(f"{step.folder.name}.log")
        # One thread each where several run: two side by side take less time than one after the other on all cores.
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" if self._jobs > 1 else ""
        env = {**of_one_process(os.environ),
               "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}  # fmt: skip
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen([sys.executable, str(ROOT / step.command[0]), *step.command[1:]], stdout=file,
                                       stderr=file, env=env)  # fmt: skip
        self._running.add(process)
        try:
            stopped_at = self._wait(process, step, last)
        finally:
            self._running.discard(process)
        if self._ending.is_set():
            return None
        content = _described(step)
        if stopped_at is not None:
            content |= {"missing": f"stopped at step {stopped_at}, where it was worse than the median"}
        elif process.returncode:
            why = last_words(process.returncode, log)
            return f"{step.command[0]} ended with {process.returncode}{why}; see {log}"
        elif last:
            content |= self._figure(step.folder)
        self._note(done, content)
        return None

    def _wait(self, process: subprocess.Popen, step: Step, last: bool) -> int | None:
        """Waits for the end of a process. Returns the step at which it was ended for being hopeless on its data set."""
        watched = last and self._sweep.stop_hopeless
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
                return None
            if not watched:
                continue
            curve = _curve(_lines(step.folder), self._sweep.metric)
            finished = [dict(each["curve"]) for each in self._ended() if each.get("data_set") == step.data_set]
            if sweeps.hopeless(curve, finished, self._sweep.mode):
                process.terminate()
                process.wait()
                return max(curve)

    def _figure(self, folder: pathlib.Path) -> dict:
        """What is noted of the metric in the folder of a last stage. Where another trial has it its name is right, and
        this setting has none, such as one of codes where there are no codes."""
        name, lines = self._sweep.metric, _lines(folder)
        curve = _curve(lines, name)
        if curve:
            return {"metric": name, "value": curve[max(curve)], "curve": sorted(curve.items())}
        if self._ended():
            return {"metric": name, "missing": f"there is no {name}"}
        figures = sorted({key for line in lines for key, value in line.items() if isinstance(value, float)})
        raise UserError(f"{folder} has no figure for --metric {name}{did_you_mean(name, figures)}")

    def _note(self, done: pathlib.Path, content: dict) -> None:
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def _ended(self) -> list[dict]:
        """What is noted of each trial that has ended and has the metric; its "curve" is pairs (step, value)."""
        ended = [read_json(path) for path in self._out.glob(f"*.{DONE}")]
        return [each for each in ended if each.get("metric") == self._sweep.metric and "curve" in each]


def _described(step: Step) -> dict:
    """What is noted of a stage that has ended, whatever came of it."""
    return {"command": step.command, "data_set": step.data_set}


def _curve(lines: list[dict], metric: str) -> dict[int, float]:
    """{step: value} of a metric in what `_lines` read."""
    return {line["step"]: line[metric] for line in lines if isinstance(line.get(metric), (int, float))}


def _lines(folder: pathlib.Path) -> list[dict]:
    """What a training logged into a stage's folder, or an evaluation wrote: {"step", metric: value} each."""
    lines = read_metrics(folder)
    for path in (folder / "eval" / "metrics.json", folder / "metrics.json"):
        if path.is_file():
            content = read_json(path)
            lines += [{"step": max([0, *(line["step"] for line in lines)]) + 1, **content.get("metrics", content)}]
    return lines


def _done(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f"{folder.name}.{DONE}")


def report(sweep: Sweep, outcomes: list[sweeps.Outcome], out: pathlib.Path) -> None:
    """Prints the tables, one for each data set, and writes them with plots and the best settings."""
    keys = list(outcomes[0].point)
    figures = [f"{sweep.metric} (mean)", "95 % interval", "least to largest", *sweep.also, "seeds", "missing"]
    ranked = {name: sweeps.ranking(group, sweep.mode) for name, group in sweeps.by_data_set(outcomes).items()}
    rows = {name: list(sweeps.rows(group)) for name, group in ranked.items()}
    with atomic_path(out / "sweep.csv") as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        of_all = [row for group in rows.values() for row in group]
        csv.writer(file).writerows([list(map(escape.cell, row)) for row in ([*keys, *figures], *of_all)])
    tables = []
    for name, group in rows.items():
        skip = int(bool(name))  # the first column is the data set
        head = list(map(markdown, [*keys[skip:], *figures]))
        lines = [f"## {markdown(name)}", ""] if name else []
        lines += escape.table(head, (list(map(markdown, row[skip:])) for row in group))
        tables.append("\n".join(lines))
    text = "\n\n".join(tables)
    say(text)
    with atomic_path(out / "sweep.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    for name, group in ranked.items():
        _write_best(sweep, name, group[0], out)
    _draw(sweep, ranked, out)


def _write_best(sweep: Sweep, data_set: str, best: sweeps.Outcome, out: pathlib.Path) -> None:
    if not best.values:
        return
    for stage, settings in sweeps.best_settings(sweep, best).items():
        words = ["best", sweeps.in_file_name(data_set), stage if len(sweep.stages) > 1 else ""]
        path = out / f"{'_'.join(filter(None, words))}.yaml"
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        say(f"the best settings of {' on '.join(filter(None, [stage, data_set]))} -> {path}, for launch/train.py "
            "--config_file")  # fmt: skip


def _draw(sweep: Sweep, ranked: dict[str, list[sweeps.Outcome]], out: pathlib.Path) -> None:
    """Cases as rows of one image, those of a data set together; else an image for each data set."""
    from lapa_jax.plots.sweep import parallel_coordinates, seeds_of_cases

    ranked = {name: done for name, group in ranked.items() if (done := [each for each in group if each.values])}
    if not ranked or not next(iter(ranked.values()))[0].point:
        return
    keys = [*sweep.grid, *sweep.random]
    if not keys:
        # In the order of the file, where what belongs together stands together.
        order = ["", *sweep.cases].index
        ordered = [each for group in ranked.values()
                   for each in sorted(group, key=lambda each: order(each.point.get(sweeps.CASE, "")))]  # fmt: skip
        names = {", ".join(each.point.values()): list(each.values.values()) for each in ordered}
        paths = [seeds_of_cases(out / "sweep.png", names, sweep.metric)]
    else:
        keys = [sweeps.CASE] * bool(sweep.cases) + keys
        paths = [parallel_coordinates(out / f"{'_'.join(filter(None, ['sweep', sweeps.in_file_name(name)]))}.png", keys,
                                      [([each.point[key] for key in keys], each.mean) for each in group], sweep.metric,
                                      sweep.mode) for name, group in ranked.items()]  # fmt: skip
    say(f"all of them -> {', '.join(map(str, paths))}")


if __name__ == "__main__":
    run_main(main)
