"""The one training loop. A run in the order it happens: build, compile, start or resume, step, log, evaluate, save."""

import functools
import itertools
import math
import os
import pathlib
import textwrap
import time
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import progress
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.metrics import MetricsWriter, read_metrics
from lapa_jax.core.output import COLLAPSED
from lapa_jax.core.startup import say
from lapa_jax.train.checkpoint import Checkpointer, latest_meta
from lapa_jax.train.distributed import SaveTimer, StopRequests
from lapa_jax.train.evaluate import Evaluator
from lapa_jax.train.feed import Feed
from lapa_jax.train.monitor import Monitor
from lapa_jax.train.profiler import Profiler
from lapa_jax.train.run import LOG, UNTRAINED_FILE, check_config, logging_to, open_run
from lapa_jax.train.setup import Setup, compile_step, make_patience, on_mesh, parameter_table, prepare
from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.state import State

# Probes score above chance on a random network too: what it reaches stands beside every later figure.
BASELINES = ("action_probe_r2",)
# What the log shows of an evaluation, besides the best metric; of a model that has none of these, the first few.
SHOWN = ("psnr_gain", "swap_gap", "action_mse", "perplexity", "codebook_utilization", "action_probe_r2")
FEW, WIDE = 5, 160
# An evaluation that took more seconds than this is announced the next time.
ANNOUNCED = 5.0
# How many steps the host may be ahead of the devices.
AHEAD = 2
# What models with codes call the share of the most frequent code at a position: "largest_code_share_position_2".
SHARE_OF_LARGEST = "largest_code_share_"


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike, *, dry_run: bool = False) -> None:
    """Trains what `config` describes in `workdir`, or goes on where an interrupted run of the same config stopped.

    Args:
      config: a stage's config.
      workdir: the run folder.
      dry_run: build and compile everything, print the parameter table, memory and batch shapes, write nothing.

    Raises:
      UserError: anything the user can mend, before anything is written or compiled; also a non-finite loss.
    """
    workdir = pathlib.Path(workdir)
    check_config(workdir, config)
    say("opening the data and building the model")
    setup = prepare(config, latest_meta(workdir))
    with on_mesh(setup.mesh):
        if dry_run:
            with logging_to(None):
                _dry_run(setup)
            return
        open_run(workdir, setup.config)
        with logging_to(workdir):
            Loop(setup, workdir).run()


def _dry_run(setup: Setup) -> None:
    print(parameter_table(setup))
    for line in _origin_lines(setup):
        print(f"  {line}")
    for name, leaf in setup.batch.items():
        print(f"  batch {name}: {leaf.dtype}{list(leaf.shape)}")
    print(f"  {setup.data.train.summary()}")
    _, flops = compile_step(setup)
    again = f", {flops.hardware / 1e9:.3g} with what is computed twice" if flops.hardware > flops.model else ""
    print(f"  {flops.model / 1e9:.3g} GFLOP a step{again}")


def _origin_lines(setup: Setup) -> list[str]:
    """Where fields of the model and first values of its variables come from."""
    filled = (f"from the data: model.{name} = {textwrap.shorten(repr(value), WIDE)}"
              for name, value in setup.from_data.items())  # fmt: skip
    return [*setup.notes, *filled]


class Loop:
    """One run in progress."""

    def __init__(self, setup: Setup, workdir: pathlib.Path):
        """Compiles, then restores the newest checkpoint or initialises from the first batch."""
        self._setup, self._config, self._workdir = setup, setup.config.train, workdir
        LOG.info("training data: %s", setup.data.train.summary())
        for line in _origin_lines(setup):
            LOG.info(line)
        LOG.info("validation data: %s", setup.data.validation.summary())
        self._step, flops = compile_step(setup)
        self._flops, self._hardware_flops = flops
        train = self._config
        self._checkpoints = Checkpointer(workdir, keep_last=train.keep_last, best_metric=train.best_metric,
                                         best_mode=train.get("best_mode") or "max")  # fmt: skip
        self._evaluator = Evaluator(setup.task, setup.mesh, setup.val_datasets)
        self._meta = setup.meta()
        self._state = self._start()
        self._patience = make_patience(self._config)
        self._patience.replay(read_metrics(workdir), int(self._state.step))
        self._pending: list[dict[str, jax.Array]] = []
        self._since = time.perf_counter()
        self._monitor = Monitor(workdir)
        self._profiler = Profiler(train.get("profile"), workdir, self._step.as_text,
                                  lambda: jax.block_until_ready(self._pending))  # fmt: skip
        self._eval_seconds: float | None = None
        self._feed: Feed | None = None
        self._writer: MetricsWriter | None = None

    def run(self) -> None:
        """Steps until the end, or until the scheduler asks to stop (SIGTERM), which saves first."""
        first, last = int(self._state.step), self._config.steps
        if jax.process_index() == 0:
            self._writer = MetricsWriter(self._workdir, resume_step=first, trackers=self._config.trackers,
                                         config=config_lib.to_json(self._setup.config))  # fmt: skip
        stop_requests, timer = StopRequests(), SaveTimer(self._config.get("save_minutes"))
        bar = progress.bar(total=last, initial=first, desc="train", unit="step")
        try:
            if first == 0:
                self._evaluate(0)
            # a run that went further than is asked for now has no steps left
            batches = itertools.islice(self._setup.train_batches(first), max(0, last - first))
            self._feed = Feed(batches, functools.partial(shard_batch, self._setup.mesh))
            self._reset_clock()
            for step in range(first + 1, last + 1):
                if self._patience.exhausted:
                    LOG.info("stopping early after step %d: %s", step - 1, self._patience)
                    break
                with self._profiler.step(step):
                    self._one_step()
                stop = stop_requests.reached()
                bar.update()
                if logged := step % self._config.log_every == 0 or step == last:
                    bar.set_postfix(self._log(step), refresh=False)
                evaluated = None
                if step % self._config.eval_every == 0 or step == last:
                    evaluated = self._evaluate(step)
                due = timer.due(logged) or step % self._config.save_every == 0 or step == last
                if due or stop or self._patience.exhausted:
                    self._save(step, evaluated)
                    timer.saved()
                if stop:
                    LOG.info("asked to stop: saved step %d; the same command resumes", step)
                    break
        finally:
            if self._feed is not None:
                self._feed.close()
            bar.close()
            stop_requests.close()
            self._profiler.close()
            self._checkpoints.close()
            if self._writer is not None:
                self._writer.close()
        LOG.info("done: %s", self._workdir)

    def _start(self) -> State:
        latest = self._checkpoints.latest_step
        if latest is not None:
            LOG.info("resuming from step %d", latest)
            return self._checkpoints.restore(self._setup.abstract)
        LOG.info("initialising the parameters")
        batch = shard_batch(self._setup.mesh, next(self._setup.train_batches(0)))
        return self._setup.init(batch)

    def _one_step(self) -> None:
        """Dispatches a step. The host may be two steps ahead of the devices, no more: so it knows what they do."""
        batch = self._feed.take(busy=lambda: bool(self._pending) and not self._pending[-1]["loss"].is_ready())
        self._state, metrics = self._step(self._state, batch)
        self._pending.append(metrics)
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD])

    def _log(self, step: int) -> dict[str, str]:
        """Writes the interval's means and returns what the progress bar shows."""
        metrics = self._drain(step)
        elapsed, steps = time.perf_counter() - self._since, metrics.pop("steps")
        rate = steps * self._config.batch_size / elapsed
        speed = {"samples_per_second": rate, "input_wait": self._feed.idle / elapsed,
                 "flops_per_second": steps * self._flops / elapsed}  # fmt: skip
        if (peak := _peak_flops()) is not None:
            possible = peak * self._setup.mesh.size * elapsed
            speed["mfu"] = steps * self._flops / possible
            speed["hfu"] = steps * self._hardware_flops / possible
        named = {f"train/{name}": value for name, value in {**metrics, **speed}.items()}
        self._write(step, named | self._monitor.read(speed["input_wait"]))
        self._reset_clock()
        shown = {"loss": f"{metrics['loss']:.4f}", "samples/s": f"{rate:.0f}", "wait": f"{speed['input_wait']:.0%}"}
        if "perplexity" in metrics:
            shown["ppl"] = f"{metrics['perplexity']:.1f}"
        return shown

    def _drain(self, step: int) -> dict[str, float]:
        """Waits for the steps since the last log line and returns their means; a non-finite one ends the run."""
        rows = jax.device_get(self._pending)
        self._pending.clear()
        first = step - len(rows) + 1
        bad = [first + i for i, row in enumerate(rows) if not math.isfinite(row["loss"] + row["grad_norm"])]
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise UserError(f"the loss or its gradient is not finite at step(s) {shown}; no checkpoint was written "
                            "from there on; lower config.optim.learning_rate or look at those batches")
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
        return {**means, "learning_rate": float(rows[-1]["learning_rate"]), "steps": len(rows)}

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluates on the held-out split, writes it, and warns when the codebook has collapsed."""
        paused = time.perf_counter()
        if self._eval_seconds is None or self._eval_seconds > ANNOUNCED:
            model = "model" if step else "untrained model"
            LOG.info("evaluating the %s%s", model, "" if self._eval_seconds else "; the first evaluation compiles")
        metrics, _ = self._evaluator(self._state.variables, self._setup.eval_batches())
        metrics |= self._untrained(step, metrics)
        named = {f"val/{name}": value for name, value in metrics.items()}
        self._write(step, named)
        LOG.info("step %d: %s", step, ", ".join(f"{n} {metrics[n]:.3f}" for n in self._shown(metrics)))
        if step and (collapsed := collapsed_positions(metrics)):
            LOG.warning("the codes have collapsed at %s: one code takes more than %.0f %% of the held-out samples; see "
                        "docs/howto/troubleshooting.md", ", ".join(collapsed), 100 * COLLAPSED)
        best = self._config.best_metric
        if best is not None:
            if best not in named:
                raise UserError(f"config.train.best_metric '{best}' is none of the evaluation's metrics"
                                f"{did_you_mean(best, named)}")
            self._patience.update(step, named[best])
        self._eval_seconds = time.perf_counter() - paused
        self._since += self._eval_seconds
        return named

    def _shown(self, metrics: dict[str, float]) -> list[str]:
        best = (self._config.best_metric or "").removeprefix("val/")
        names = list(dict.fromkeys(name for name in (*SHOWN, best) if name in metrics))
        return names if len(names) > 1 else list(dict.fromkeys([*names, *metrics]))[:FEW]

    def _untrained(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        path = self._workdir / UNTRAINED_FILE
        baselines = {f"{name}_untrained": metrics[name] for name in BASELINES if name in metrics}
        if step == 0 and jax.process_index() == 0:
            write_json(path, baselines)
        return baselines if step == 0 else read_json(path)

    def _save(self, step: int, evaluated: dict[str, float] | None) -> None:
        if self._pending:
            self._log(step)
        self._checkpoints.save(self._state, step, {**self._meta, "step": step}, evaluated)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, metrics)

    def _reset_clock(self) -> None:
        self._feed.idle, self._since = 0.0, time.perf_counter()


def collapsed_positions(metrics: Mapping[str, float]) -> list[str]:
    """The code positions where one code takes nearly everything, "position 2"; of a dataset "bridge/position 2"."""
    shares = {name: share for name, share in metrics.items() if SHARE_OF_LARGEST in name}
    return [name.replace(SHARE_OF_LARGEST, "").replace("_", " ") for name, share in shares.items() if share > COLLAPSED]


def _peak_flops() -> float | None:
    """Dense bf16 peak of one device in FLOP/s, where it is known (vendors' data sheets)."""
    peaks = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "TPU v4": 275e12, "TPU v5": 459e12}
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in peaks.items() if name in kind), None)
