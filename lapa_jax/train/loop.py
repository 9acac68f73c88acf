"""The one training loop. A run in the order it happens: build, compile, start or resume, step, log, evaluate, save."""

import contextlib
import functools
import itertools
import math
import os
import pathlib
import sys
import textwrap
import time
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import progress
from lapa_jax.core.errors import Stopped, UserError, did_you_mean
from lapa_jax.core.files import check_can_write
from lapa_jax.core.integrity import read_checked_json, write_checked_json
from lapa_jax.core.metrics import MetricsWriter, read_metrics
from lapa_jax.core.output import COLLAPSED
from lapa_jax.core.startup import say
from lapa_jax.core.trackers import Trackers
from lapa_jax.train.checkpoint import Checkpointer
from lapa_jax.train.distributed import SaveTimer, StopRequests, on_first_host
from lapa_jax.train.evaluate import Evaluator
from lapa_jax.train.fast_checkpoints import FastCheckpoints
from lapa_jax.train.feed import Feed
from lapa_jax.train.flops import peak_flops
from lapa_jax.train.images import Drawing, Images
from lapa_jax.train.monitor import Monitor
from lapa_jax.train.profiler import Profiler
from lapa_jax.train.recovery import Recovered, newest, recover
from lapa_jax.train.run import LOG, UNTRAINED_FILE, check_config, check_kept, hold, logging_to, open_run, run_id
from lapa_jax.train.setup import Setup, compile_step, make_losses, make_patience, on_mesh, parameter_table, prepare
from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.spikes import MOST, LeftOut, Spike
from lapa_jax.train.state import State
from lapa_jax.train.watchdog import Watchdog

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


def train(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, *, dry_run: bool = False,
    drawing_of: Callable[..., Drawing | None] = lambda task, mesh: None,
) -> None:  # fmt: skip
    """Trains what `config` describes in `workdir`, or goes on where an interrupted run of the same config stopped.

    Args:
      config: a stage's config.
      workdir: the run folder.
      dry_run: build and compile everything, print the parameter table, memory and batch shapes, write nothing.
      drawing_of: what shows the model at evaluations, see `train.images`; nothing by default.

    Raises:
      UserError: anything the user can mend, before anything is written or compiled; also a non-finite loss.
    """
    workdir = pathlib.Path(workdir)
    if not dry_run:
        check_can_write(workdir)
    check_config(workdir, config)
    say("opening the data and building the model")
    if dry_run:
        setup = prepare(config, newest(workdir).meta)
        with on_mesh(setup.mesh), logging_to(None):
            _dry_run(setup)
        return
    with contextlib.ExitStack() as stack:
        stops = stack.enter_context(contextlib.closing(StopRequests()))
        try:
            held = hold(stack, workdir)
            run = on_first_host(lambda: run_id(workdir))
            recovered = recover(workdir, _fast_checkpoints(config, run))
            if recovered.step is None:
                check_kept(workdir, recovered.lines)
            setup = prepare(config, recovered.meta)
            if not held:
                hold(stack, workdir, make=True)
            with on_mesh(setup.mesh):
                run = open_run(workdir, setup.config, begins=recovered.step is None)
                watchdog = Watchdog(setup.config.train.get("hang_minutes"), workdir)
                with logging_to(workdir), contextlib.closing(watchdog):
                    fast = _fast_checkpoints(config, run)
                    Loop(setup, workdir, recovered, stops, fast, watchdog, drawing_of).run()
        except Stopped:
            print("asked to stop before the first step: nothing to save; the same command resumes", file=sys.stderr)


def _fast_checkpoints(config: ml_collections.ConfigDict, run: str | None) -> FastCheckpoints | None:
    train = config.train
    if not train.get("fast_dir") or run is None:
        return None
    return FastCheckpoints(train.fast_dir, run, config_lib.to_json(config)["mesh"], train.get("keep_fast", 3))


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

    def __init__(
        self, setup: Setup, workdir: pathlib.Path, recovered: Recovered, stops: StopRequests,
        fast: FastCheckpoints | None, watchdog: Watchdog, drawing_of: Callable[..., Drawing | None],
    ):  # fmt: skip
        """Compiles, then restores the checkpoint that was recovered or initialises from the first batch."""
        self._setup, self._config, self._workdir, self._stops = setup, setup.config.train, workdir, stops
        for line in recovered.lines:
            LOG.warning(line)
        LOG.info("training data: %s", setup.data.train.summary())
        for line in _origin_lines(setup):
            LOG.info(line)
        LOG.info("validation data: %s", setup.data.validation.summary())
        self._step, flops = compile_step(setup)
        self._flops, self._hardware_flops = flops
        self._watchdog = watchdog
        self._watchdog.start()  # not before: compiling a large model may take longer than a step ever does
        train = self._config
        self._checkpoints = Checkpointer(
            workdir, keep_last=train.keep_last, best_metric=train.best_metric, keep_best=train.get("keep_best", 1),
            best_mode=train.get("best_mode") or "max", keep_every=train.get("keep_every"))  # fmt: skip
        self._evaluator = Evaluator(setup.task, setup.mesh, setup.val_datasets)
        shown = drawing_of if train.get("images", True) else lambda task, mesh: None
        self._images = Images(shown, setup.task, setup.mesh, setup.eval_batches, workdir)
        self._meta = setup.meta()
        self._fast = fast
        self._state = self._start(recovered)
        self._watchdog.progress()
        self._losses = make_losses(train)
        self._evaluated = recovered.evaluated
        resumed = recovered.meta or {}
        left_out = on_first_host(lambda: LeftOut.resume(workdir, resumed.get("left_out")).windows)
        self._left_out = LeftOut(left_out)
        self._sealed = resumed.get("metrics")
        self._replay(resumed.get("losses", []))
        self._pending: list[dict[str, jax.Array]] = []
        self._evaluation: tuple[int, dict[str, float]] = -1, {}
        self._since = time.perf_counter()
        self._monitor = Monitor(workdir)
        self._profiler = Profiler(train.get("profile"), workdir, self._step.as_text,
                                  lambda: jax.block_until_ready(self._pending))  # fmt: skip
        self._eval_seconds: float | None = None
        self._feed: Feed | None = None
        self._writer: MetricsWriter | None = None

    def run(self) -> None:
        """Steps until the end, or until a signal asks to stop, which saves first."""
        first, last = int(self._state.step), self._config.steps
        if jax.process_index() == 0:
            self._writer = self._open_metrics(first, self._sealed)
        timers = (SaveTimer(self._config.get("save_minutes")),
                  SaveTimer(self._config.get("fast_minutes"), "fast_minutes"))  # fmt: skip
        bar = progress.bar(total=last, initial=first, desc="train", unit="step")
        try:
            if first == 0:
                self._evaluate(0)
            elif self._evaluation_due(first) and not self._evaluated:
                # It was asked to stop before, or in the middle of it.
                self._evaluate(first)
                if self._checkpoints.latest_step == first:  # and not of the fast level
                    self._checkpoints.add_metrics(*self._evaluation)
            self._begin_feed(first)
            step = first
            while step < last:
                if self._patience.exhausted:
                    LOG.info("stopping early after step %d: %s", step, self._patience)
                    break
                with self._profiler.step(step + 1):
                    stepped = self._one_step()
                if not stepped:  # asked to stop, and the next batch does not come
                    self._save(step)
                    break
                step += 1
                try:
                    saved = self._after_step(step, timers, bar)
                except Spike as spike:
                    step = self._roll_back(spike.step, step)
                    bar.update(step - bar.n)
                    continue
                if self._stops.asked and saved:
                    LOG.info("asked to stop after step %d; the same command resumes", step)
                    break
        except KeyboardInterrupt:
            self._checkpoints.abandon()
            if self._fast is not None:
                self._fast.abandon()
            raise
        finally:
            if self._feed is not None:
                self._feed.close()
            bar.close()
            self._profiler.close()
            self._checkpoints.close()
            if self._fast is not None:
                self._fast.wait()
            self._watchdog.progress()
            self._images.close(self._trackers)
            if self._writer is not None:
                self._writer.close()
        LOG.info("done: %s", self._workdir)

    def _after_step(self, step: int, timers: tuple[SaveTimer, SaveTimer], bar) -> bool:
        """Logs, evaluates and saves where it is time for that; returns whether it saved.

        Args:
          timers: of the checkpoints in the run folder, and of the fast ones.
        """
        timer, fast_timer = timers
        self._stops.stepped()
        self._watchdog.progress()
        stop, last = self._stops.reached(), step == self._config.steps
        bar.update()
        if logged := step % self._config.log_every == 0 or last:
            bar.set_postfix(self._log(step), refresh=False)
        if self._evaluation_due(step) and not stop:
            # A stop in the middle of it leaves it to the run that resumes.
            with contextlib.suppress(Stopped):
                self._evaluate(step)
            stop = self._stops.asked
        due = timer.due(logged) or step % self._config.save_every == 0 or last
        if self._fast is not None:
            every = self._config.get("fast_every")
            if fast_timer.due(logged) or (every and step % every == 0):
                self._save_fast(step)
                fast_timer.saved()
        if due or stop or self._patience.exhausted:
            self._save(step)
            timer.saved()
            return True
        return False

    def _evaluation_due(self, step: int) -> bool:
        return step % self._config.eval_every == 0 or step == self._config.steps

    def _open_metrics(self, step: int, sealed: Mapping | None = None) -> MetricsWriter:
        return MetricsWriter(self._workdir, resume_step=step, trackers=self._config.trackers,
                             config=config_lib.to_json(self._setup.config), sealed=sealed)  # fmt: skip

    def _begin_feed(self, step: int) -> None:
        batches = self._left_out.batches(self._setup.train_batches, step)
        # a run that went further than is asked for now has no steps left
        batches = itertools.islice(batches, max(0, self._config.steps - step))
        self._feed = Feed(batches, functools.partial(shard_batch, self._setup.mesh))
        self._reset_clock()

    def _replay(self, losses: list[float]) -> None:
        """Early stopping and the judgement of losses as they were at the step of the state."""
        self._patience = make_patience(self._config)
        self._patience.replay(read_metrics(self._workdir), int(self._state.step))
        self._losses.recent = list(losses)

    def _roll_back(self, bad: int, last: int) -> int:
        """Goes back to the newest whole checkpoint and leaves out the batches of the steps from `bad` to `last`.

        Returns:
          The step of the checkpoint.
        """
        self._checkpoints.wait()
        recovered = recover(self._workdir)
        self._watchdog.progress()
        for line in recovered.lines:
            LOG.warning(line)
        good = recovered.step
        if good is None or len(self._left_out.windows) >= MOST:
            why = "no checkpoint to go back to" if good is None else f"{MOST} windows of batches left out already"
            raise UserError(f"the loss spiked at step {bad}, with {why}; lower config.optim.learning_rate")
        self._left_out = self._left_out.without(bad, last)
        windows = self._left_out.windows
        LOG.warning("the loss spiked at step %d: back to step %d, without the batches of the steps %d to %d", bad, good,
                    bad, last)  # fmt: skip
        self._feed.close()
        self._pending.clear()
        self._state = self._checkpoints.restore(self._setup.abstract, good)
        if self._writer is not None:
            self._left_out.write(self._workdir)
            self._writer.close()
            self._writer = self._open_metrics(good)
        self._write(good, {"train/left_out_batches": sum(b - a + 1 for a, b in windows)})
        self._replay(recovered.meta.get("losses", []))
        self._begin_feed(good)
        return good

    def _start(self, recovered: Recovered) -> State:
        if recovered.step is not None:
            LOG.info("resuming from step %d%s", recovered.step, ", a fast checkpoint" if recovered.fast else "")
            source = self._fast if recovered.fast else self._checkpoints
            return source.restore(self._setup.abstract, recovered.step)
        LOG.info("initialising the parameters")
        batch = shard_batch(self._setup.mesh, next(self._setup.train_batches(0)))
        return self._setup.init(batch)

    def _one_step(self) -> bool:
        """Dispatches a step. The host may be two steps ahead of the devices, no more: so it knows what they do.

        Returns:
          False, and no step, where the run was asked to stop and waits for a batch in vain. Not with several
          processes: others may have begun the step.
        """
        batch = self._feed.take(busy=lambda: bool(self._pending) and not self._pending[-1]["loss"].is_ready(),
                                stopped=lambda: self._stops.asked and jax.process_count() == 1)  # fmt: skip
        if batch is None:
            return False
        self._state, metrics = self._step(self._state, batch)
        self._pending.append(metrics)
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD])
        return True

    def _log(self, step: int) -> dict[str, str]:
        """Writes the interval's means and returns what the progress bar shows."""
        metrics = self._drain(step)
        elapsed, steps = time.perf_counter() - self._since, metrics.pop("steps")
        rate = steps * self._config.batch_size / elapsed
        speed = {"samples_per_second": rate, "input_wait": self._feed.idle / elapsed,
                 "flops_per_second": steps * self._flops / elapsed}  # fmt: skip
        if (peak := peak_flops(jax.devices()[0].device_kind)) is not None:
            possible = peak * self._setup.mesh.size * elapsed
            speed["mfu"] = steps * self._flops / possible
            speed["hfu"] = steps * self._hardware_flops / possible
        named = {f"train/{name}": value for name, value in {**metrics, **speed}.items()}
        self._write(step, named | self._monitor.read(speed["input_wait"]))
        self._images.collect(self._trackers)
        self._reset_clock()
        shown = {"loss": f"{metrics['loss']:.4f}", "samples/s": f"{rate:.0f}", "wait": f"{speed['input_wait']:.0%}"}
        if "perplexity" in metrics:
            shown["ppl"] = f"{metrics['perplexity']:.1f}"
        return shown

    def _drain(self, step: int) -> dict[str, float]:
        """Waits for the steps since the last log line and returns their means; a non-finite one, or a spike, ends the
        run or makes it go back."""
        rows = jax.device_get(self._pending)
        self._pending.clear()
        first = step - len(rows) + 1
        bad = [first + i for i, row in enumerate(rows) if not math.isfinite(row["loss"] + row["grad_norm"])]
        losses = [math.nan if first + i in bad else float(row["loss"]) for i, row in enumerate(rows)]
        try:
            self._losses.check(first, losses)
        except Spike as spike:
            if self._losses.action == "rollback":
                raise
            if spike.step not in bad:
                raise UserError(f"the loss spiked at step {spike.step}: {losses[spike.step - first]:.4g} is more than "
                                f"config.train.spike_factor={self._losses.factor:g} times the median of the last ones; "
                                "no checkpoint was written from there on") from None
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise UserError(f"the loss or its gradient is not finite at step(s) {shown}; no checkpoint was written "
                            "from there on; lower config.optim.learning_rate or look at those batches")
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
        return {**means, "learning_rate": float(rows[-1]["learning_rate"]), "steps": len(rows)}

    def _evaluate(self, step: int) -> None:
        """Evaluates on the held-out split, writes it, and warns when the codebook has collapsed."""
        paused = time.perf_counter()
        if self._eval_seconds is None or self._eval_seconds > ANNOUNCED:
            model = "model" if step else "untrained model"
            LOG.info("evaluating the %s%s", model, "" if self._eval_seconds else "; the first evaluation compiles")
        metrics, arrays = self._evaluator(self._state.variables, self._setup.eval_batches(), self._after_eval_batch)
        metrics |= self._untrained(step, metrics)
        named = {f"val/{name}": value for name, value in metrics.items()}
        self._write(step, named)
        LOG.info("step %d: %s", step, ", ".join(f"{n} {metrics[n]:.3f}" for n in self._shown(metrics)))
        if step and (collapsed := collapsed_positions(metrics)):
            LOG.warning("the codes have collapsed at %s: one code takes more than %.0f %% of the held-out samples; see "
                        "docs/howto/troubleshooting.md", ", ".join(collapsed), 100 * COLLAPSED)
        self._images.take(step, self._state.variables, arrays, self._trackers)
        best = self._config.best_metric
        if best is not None:
            if best not in named:
                raise UserError(f"config.train.best_metric '{best}' is none of the evaluation's metrics"
                                f"{did_you_mean(best, named)}")
            self._patience.update(step, named[best])
        self._eval_seconds = time.perf_counter() - paused
        self._since += self._eval_seconds
        self._evaluation = step, named

    def _after_eval_batch(self) -> None:
        self._watchdog.progress()
        if self._stops.reached():
            raise Stopped

    def _shown(self, metrics: dict[str, float]) -> list[str]:
        best = (self._config.best_metric or "").removeprefix("val/")
        names = list(dict.fromkeys(name for name in (*SHOWN, best) if name in metrics))
        return names if len(names) > 1 else list(dict.fromkeys([*names, *metrics]))[:FEW]

    def _untrained(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """The scores of the untrained network, which stand beside every later figure."""
        path = self._workdir / UNTRAINED_FILE
        if step == 0:
            baselines = {f"{name}_untrained": metrics[name] for name in BASELINES if name in metrics}
            if jax.process_index() == 0:
                write_checked_json(path, baselines)
            return baselines
        try:
            return read_checked_json(path)
        except UserError as error:
            LOG.warning("%s: evaluations go on without the scores of the untrained network", error)
            return {}

    def _save(self, step: int) -> None:
        evaluated = self._evaluation[1] if self._evaluation[0] == step else None
        self._checkpoints.save(self._state, step, self._meta_at(step), evaluated)

    def _save_fast(self, step: int) -> None:
        self._fast.save(self._state, step, self._meta_at(step), self._evaluation[0] == step)

    def _meta_at(self, step: int) -> dict:
        """What is saved with a step, once all losses up to it are known to be usual ones."""
        if self._pending:
            self._log(step)
        self._watchdog.progress()
        metrics = None if self._writer is None else self._writer.seal()
        return {**self._meta, "step": step, "losses": self._losses.recent, "metrics": metrics,
                "left_out": self._left_out.windows}  # fmt: skip

    @property
    def _trackers(self) -> Trackers | None:
        return None if self._writer is None else self._writer.trackers

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, metrics)

    def _reset_clock(self) -> None:
        self._feed.idle, self._since = 0.0, time.perf_counter()


def collapsed_positions(metrics: Mapping[str, float]) -> list[str]:
    """The code positions where one code takes nearly everything, "position 2"; of a dataset "bridge/position 2"."""
    shares = {name: share for name, share in metrics.items() if SHARE_OF_LARGEST in name}
    return [name.replace(SHARE_OF_LARGEST, "").replace("_", " ") for name, share in shares.items() if share > COLLAPSED]
