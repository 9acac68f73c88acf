"""The one interface of all simulated environments."""

import importlib.metadata
import inspect
from typing import Protocol

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean

ENVS = ("push_table", "metaworld")
"""Modules of `lapa_jax.sim` that define a class `Env`."""

SIMULATORS = {"push_table": ("mujoco",), "metaworld": ("mujoco", "metaworld")}
"""What each runs on."""


class ScriptedPolicy(Protocol):
    """A policy that reads the simulator's state."""

    def act(self) -> np.ndarray:
        """The next action, f32[A]."""


class Env(Protocol):
    """An environment with instructions. Equal seeds give equal episodes.

    Attributes:
      fps: actions a second. max_steps: actions after which an episode has failed. tasks: names for `reset`.
      instruction: what the policy is asked to do in this episode.
      additive: whether actions of neighbouring steps add up (displacements); else a slower policy's action is held, and
        the mean stands for several.
      action_limit: f32[A], actions lie between minus and plus this.
    """

    name: str
    fps: float
    max_steps: int
    tasks: tuple[str, ...]
    additive: bool
    action_limit: np.ndarray
    instruction: str

    def reset(self, seed: int, task: str | None = None) -> None:
        """Starts the episode of `seed`; `task` None lets the seed choose."""

    def observe(self) -> dict[str, np.ndarray]:
        """{"image": uint8[H, W, 3], "state": f32[S]}."""

    def step(self, action: np.ndarray) -> None:
        """Applies one action f32[A]."""

    def success(self) -> bool:
        """Whether the instruction is fulfilled now."""

    def oracle(self, seed: int, noise: float = 0.0) -> ScriptedPolicy:
        """The scripted expert for the current episode, with noise from its own seed."""

    def close(self) -> None:
        """Frees what `observe` holds."""


def simulator(name: str) -> dict[str, str]:
    """{package: version} of what the environment `name` runs on: another version may give other episodes."""
    return {package: importlib.metadata.version(package) for package in SIMULATORS[name]}


def make(name: str, **options) -> Env:
    """The environment `name`, one of `ENVS`; options are those of its `Env` class, see `lapa_jax.sim.options`."""
    if name not in ENVS:
        raise UserError(f"there is no environment '{name}'{did_you_mean(name, ENVS)}")
    made = importlib.import_module(f"lapa_jax.sim.{name}").Env
    known = inspect.signature(made).parameters
    for option in options:
        if option not in known:
            raise UserError(f"the environment {name} has no option '{option}'{did_you_mean(option, known)}")
    return made(**options)
