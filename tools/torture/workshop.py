"""Where the torture takes place: a folder with a small trained run, the commands, and what they make undisturbed."""

import contextlib
import functools
import hashlib
import itertools
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from lapa_jax.core.errors import EXIT_BAD_INPUT
from lapa_jax.core.escape import say
from lapa_jax.core.files import read_json, write_json
from tools.torture.processes import Process, differences

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "configs/fsq.py:test"
"""The model that compiles fastest of those that have all that a run can have."""
CONSTANT = "--config.optim.schedule=constant"
"""So that a run which goes on further than it was to go has made the same steps until there."""
LONG = ("steps=80", "save_every=4", "eval_every=20", "log_every=1", "keep_last=3", "fast_every=3")
"""Of the run that is hurt: 20 durable and 26 fast checkpoints, 5 evaluations."""
VIDEOS, FRAMES, EPISODES = 24, 20, 12


REFUSAL = "exists and is not an empty folder"


class NotHere(Exception):
    """This machine lacks what a kind of torture needs: a simulator, or a driver that draws."""


class Job(NamedTuple):
    """A command that makes a folder, which is the same whatever happened to the command on the way.

    Attributes:
      name: of the job. arguments: the command line for a folder. compare: what differs between two such folders.
    """

    name: str
    arguments: Callable[[pathlib.Path], list[str]]
    compare: Callable[[pathlib.Path, pathlib.Path], list[str]]


class Workshop:
    """Attributes: folder: all lies in it. environment: of the commands. jobs: {name: Job}."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        self._numbers = itertools.count()
        for name in ("tmp", "printed"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._forget_other_code()
        # As on a machine of one device; programs are compiled once, and hardly optimised, since they run for seconds.
        self.environment = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true", **os.environ,
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.jobs = {job.name: job for job in (
            Job("train", self._train, compare_runs),
            Job("evaluate", lambda out: script("launch/eval.py", "--run", self.run, "--out", out), compare_evaluations),
            Job("label", lambda out: script("launch/label.py", "--run", self.run, "--data", "sample", "--out", out,
                                            "--batch_size", 2), differences),
            Job("convert", lambda out: script("tools/convert.py", self.videos, out, "--size", 48, "--workers", 2,
                                              "--samples_per_shard", 90), differences),
            Job("export", lambda out: script("launch/export.py", "--run", self.run, "--out", out), differences),
            Job("record", lambda out: script("tools/record_sim.py", "--env", "push_table", "--episodes", EPISODES,
                                             "--size", 48, "--workers", 2, "--out", out), differences),
        )}  # fmt: skip

    def _forget_other_code(self) -> None:
        """Removes what other code made, in a folder that was kept: it need not be the same to the bit."""
        digest = hashlib.sha256()
        for path in sorted(path for name in ("lapa_jax", "configs", "launch") for path in (ROOT / name).rglob("*.py")):
            digest.update(path.read_bytes())
        about = self.folder / "code.txt"
        if not about.exists() or about.read_text() != digest.hexdigest():
            for name in ("whole", "run", "twin", "policy", "reference"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        about.write_text(digest.hexdigest())

    def log(self, text: str) -> None:
        """A line with the time, at once."""
        say(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

    def new(self, name: str) -> pathlib.Path:
        """A name in a folder of its own that nobody has used."""
        folder = self.folder / "tries" / f"{name}-{os.getpid()}-{next(self._numbers)}"
        folder.mkdir(parents=True)
        return folder / "out"

    def start(self, job: str, out: pathlib.Path, *more: str, mark: str | None = None,
              largest_file: int = 0) -> Process:  # fmt: skip
        """Starts a job's command for a folder; what it prints lies elsewhere."""
        name = f"{job}-{os.getpid()}-{next(self._numbers)}"
        command, log = [*self.jobs[job].arguments(out), *more], self.folder / "printed" / f"{name}.txt"
        return Process(command, self.environment, log, self.folder / "tmp" / name, mark, largest_file)

    def finish(self, job: str, out: pathlib.Path, mark: str | None = None) -> list[str]:
        """Runs a job's command to its end; what is wrong then: with the command, or with what it has made."""
        return self.ended(job, out, self.start(job, out, mark=mark))

    def ended(self, job: str, out: pathlib.Path, process: Process) -> list[str]:
        """What is wrong when a job's command has ended by itself: with its code, or with what it has made."""
        if not (code := process.wait()):
            return self.compare(job, out)
        if REFUSAL in process.last_words() and job == "export":
            # It was killed when the folder was there and before it had ended: what is whole is not written again.
            return [line for line in self.compare(job, out) if not line.startswith(f".{out.name}.lock")]
        return [f"the same command ended with code {code}: {process.last_words()}"]

    def compare(self, job: str, out: pathlib.Path) -> list[str]:
        """What differs from a folder that was made undisturbed, and what lies beside it that should not."""
        beside = [path.name for path in out.parent.iterdir() if path.name not in ("out", "fast")]
        beside += [path.name for path in (out.parent / "fast").rglob(".*")]
        whole, _ = self.whole(job)
        return [*self.jobs[job].compare(whole, out), *(f"{name} is left behind" for name in beside)]

    def whole(self, job: str) -> tuple[pathlib.Path, float]:
        """The folder that a job makes undisturbed, and the seconds that it takes with its programs compiled."""
        about = self.folder / "whole" / f"{job}.json"
        if not about.exists():
            for name in (f"{job}-cold", job):
                out = self.folder / "whole" / name / "out"
                shutil.rmtree(out.parent, ignore_errors=True)
                out.parent.mkdir(parents=True)
                process = self.start(job, out)
                code = process.wait()
                if code == EXIT_BAD_INPUT and job == "record":
                    raise NotHere(process.last_words())
                if code:
                    raise RuntimeError(f"{job} cannot be done undisturbed: code {code}, {process.last_words()}")
                seconds = time.monotonic() - process.started
                self.log(f"{name}, undisturbed: {seconds:.1f} s")
            twice = self.jobs[job].compare(self.folder / "whole" / f"{job}-cold" / "out", out)
            if twice:
                raise RuntimeError(f"{job} twice undisturbed differs in {', '.join(twice[:5])}")
            write_json(about, {"seconds": seconds})
        return self.folder / "whole" / job / "out", read_json(about)["seconds"]

    @functools.cached_property
    def run(self) -> pathlib.Path:
        """A trained run of four steps, with checkpoints of the steps 2 and 4."""
        return self._trained("run", CONSTANT)

    @functools.cached_property
    def twin(self) -> pathlib.Path:
        """A run of another seed: what stands in its files is as right, and of something else."""
        return self._trained("twin", CONSTANT, "--config.seed=1")

    @functools.cached_property
    def policy(self) -> pathlib.Path:
        """A trained run of a policy, to be served."""
        return self._trained("policy", config="configs/vla_action.py:test")

    @functools.cached_property
    def videos(self) -> pathlib.Path:
        """A folder of short videos."""
        from lapa_jax.sim.recording_formats import write_mp4

        folder = self.folder / "videos"
        if not (folder / f"v{VIDEOS - 1}.mp4").exists():
            import numpy as np

            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(0)
            for number in range(VIDEOS):
                write_mp4(folder / f"v{number}.mp4", rng.integers(0, 256, (FRAMES, 48, 64, 3)).astype(np.uint8), 10.0)
        return folder

    def resume(self, run: pathlib.Path, steps: int) -> None:
        """Trains the run, or a copy of it, on to a step, within this process; what goes to the terminal is dropped."""
        from lapa_jax.core import config as config_lib
        from lapa_jax.train.loop import train

        config = config_lib.load(str(ROOT / CONFIG), [CONSTANT, f"--config.train.steps={steps}"])
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            train(config, run)

    def _train(self, out: pathlib.Path) -> list[str]:
        settings = [f"--config.train.{each}" for each in (*LONG, f"fast_dir={out.parent / 'fast'}")]
        return script("launch/train.py", "--config", CONFIG, *settings, "--config.data.workers=1", "--workdir", out)

    def _trained(self, name: str, *settings: str, config: str = CONFIG) -> pathlib.Path:
        run = self.folder / name
        process = Process(script("launch/train.py", "--config", config, *settings, "--workdir", run), self.environment,
                          self.folder / "printed" / f"{name}.txt", self.folder / "tmp" / name)  # fmt: skip
        if code := process.wait():
            raise RuntimeError(f"{run} cannot be trained: code {code}, {process.last_words()}")
        self.log(f"trained {name}: {time.monotonic() - process.started:.1f} s")
        return run


def script(name: str, *arguments) -> list[str]:
    """The command line of one of the project's scripts."""
    return [sys.executable, "-B", str(ROOT / name), *map(str, arguments)]


def compare_runs(whole: pathlib.Path, run: pathlib.Path) -> list[str]:
    """What differs between two runs: the last parameters, all figures but times; each stands there once."""
    import jax
    import numpy as np

    from lapa_jax.train.checkpoint import load_for_inference

    a, b = load_for_inference(whole), load_for_inference(run)
    wrong = [] if a.step == b.step else [f"step {b.step} instead of {a.step}"]
    if not jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables)):
        wrong.append("other parameters")
    expected, got = figures(whole), figures(run)
    if expected != got:
        odd = next(pair for pair in itertools.zip_longest(expected, got) if pair[0] != pair[1])
        wrong.append(f"metrics.jsonl: {odd[1]} instead of {odd[0]}")
    left = [path.name for folder in (run, run / "checkpoints") for path in folder.iterdir()
            if path.name.startswith(".") or "damaged" in path.name]  # fmt: skip
    return wrong + [f"{name} is left behind" for name in left]


def figures(run: pathlib.Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all lines of a run's metrics, in their order, but those that are times."""
    from lapa_jax.core.metrics import read_metrics

    return [(line["step"], name, value) for line in read_metrics(run) for name, value in line.items()
            if name.startswith("val/") or name.endswith(("loss", "grad_norm"))]  # fmt: skip


def compare_evaluations(whole: pathlib.Path, out: pathlib.Path) -> list[str]:
    """What differs between two reports, but for the minute that they name."""
    undated = lambda path: re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", path.read_text("utf-8"))  # noqa: E731
    return [name for name in differences(whole, out)
            if not (name.endswith(".html") and (out / name).exists() and undated(whole / name) == undated(out / name))]
