"""Experiment trackers beside `metrics.jsonl`: TensorBoard, Weights & Biases, ClearML; `config.train.trackers`.

Each gets scalars, the config, the path of the run folder and images. A resumed run goes on in the same run of the
tracker, whose name `trackers.json` in the run folder keeps. Where a tracker fails, training goes on without it.
"""

import importlib.util
import logging
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lapa_jax.core.errors import ConfigError, did_you_mean
from lapa_jax.core.files import read_json, write_json

LOG = logging.getLogger("lapa_jax")
RUNS_FILE = "trackers.json"
"""In the run folder: {tracker: name of its run there}."""
PROJECT = "lapa_jax"


class Tracker(Protocol):
    """What a tracker does. `run`: how its own run is found again, None where the run folder says it."""

    run: str | None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step, which may not be finite."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """An image, uint8[H, W, 3]."""

    def close(self) -> None:
        """Sends what is left."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder; what was written beyond the checkpoint is purged."""

    run = None

    def __init__(self, folder: pathlib.Path, run: str | None, resume_step: int, config: Mapping):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step and resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE=offline are read by its own client."""

    def __init__(self, folder: pathlib.Path, run: str | None, resume_step: int, config: Mapping):
        import wandb

        self._wandb = wandb
        self.run = run or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=config.get("name"), id=self.run, resume="allow",
            dir=str(folder), config={**config, "run_folder": str(folder.resolve())},
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        # Its own count of steps only grows, and refuses the steps that a resumed run repeats.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._run.log({"step": step, name: self._wandb.Image(pixels)})

    def close(self) -> None:
        self._run.finish()


class ClearML:
    """ClearML. CLEARML_CONFIG_FILE, CLEARML_OFFLINE_MODE=1 and CLEARML_PROJECT are read from the environment."""

    def __init__(self, folder: pathlib.Path, run: str | None, resume_step: int, config: Mapping):
        from clearml import Task

        # Nothing is caught behind our back: not the arguments, the output, the frameworks or the machine.
        self._task = Task.init(
            project_name=os.environ.get("CLEARML_PROJECT", PROJECT), task_name=config.get("name"),
            continue_last_task=run or False, reuse_last_task_id=False, auto_connect_arg_parser=False,
            auto_connect_frameworks=False, auto_connect_streams=False, auto_resource_monitoring=False,
        )  # fmt: skip
        # A task that goes on would count its iterations from the last one.
        self._task.set_initial_iteration(0)
        self.run = self._task.id
        self._task.connect_configuration({**config, "run_folder": str(folder.resolve())}, name="config")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            title, _, series = name.partition("/")
            self._task.get_logger().report_scalar(title, series or title, value=value, iteration=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._task.get_logger().report_image(name, name, iteration=step, image=pixels)

    def close(self) -> None:
        self._task.close()


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "clearml": ClearML}
PACKAGES = {"tensorboard": "tensorboardX"}
"""Import names, where they are not the tracker's own."""


def check(names: Sequence[str]) -> None:
    """Refuses trackers that there are not, or whose package is not installed.

    Raises:
      ConfigError: which one, and what to do.
    """
    if isinstance(names, str):
        raise ConfigError(f"config.train.trackers is '{names}'; give a sequence, ('{names}',)")
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"config.train.trackers has '{name}'{did_you_mean(name, TRACKERS)}")
        if importlib.util.find_spec(PACKAGES.get(name, name)) is None:
            raise ConfigError(f"config.train.trackers has '{name}', which is not installed: "
                              f"pip install 'lapa_jax[{name}]'")  # fmt: skip


class Trackers:
    """All trackers of a run. What one of them raises is a warning, and the run goes on without it."""

    def __init__(self, names: Sequence[str], folder: pathlib.Path, *, resume_step: int, config: Mapping):
        """Opens them; those that this folder's run had before, if it goes on, are opened where they ended."""
        path = folder / RUNS_FILE
        runs = read_json(path) if resume_step and path.is_file() else {}
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._guard(name, lambda name: self._open.update(
                {name: TRACKERS[name](folder, runs.get(name), resume_step, config)}))  # fmt: skip
        runs |= {name: tracker.run for name, tracker in self._open.items() if tracker.run is not None}
        if runs:
            write_json(path, runs)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name in list(self._open):
            self._guard(name, lambda name: self._open[name].scalars(step, values))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """See `Tracker`."""
        for tracker in list(self._open):
            self._guard(tracker, lambda tracker: self._open[tracker].image(step, name, pixels))

    def close(self) -> None:
        """See `Tracker`."""
        for name in list(self._open):
            self._guard(name, lambda name: self._open[name].close())

    def _guard(self, name: str, action: Callable[[str], None]) -> None:
        try:
            action(name)
        except Exception as error:  # a service that is away must not cost a run
            # Not tried again: each attempt may wait for the network, and metrics.jsonl holds everything.
            self._open.pop(name, None)
            first_line = next(iter(str(error).splitlines()), "")
            LOG.warning("the tracker %s failed (%s: %s); training goes on without it", name, type(error).__name__,
                        first_line)  # fmt: skip
