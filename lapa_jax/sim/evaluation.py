"""One policy and all controls on the same episodes, and demonstrations to show to policies that want them."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.sim import rollouts, scores
from lapa_jax.sim.controls import CONTROLS, EXPERT_CONTROLS
from lapa_jax.sim.env import env_class
from lapa_jax.sim.recording import Options as RecordingOptions
from lapa_jax.sim.recording import record_episode
from lapa_jax.sim.rollouts import Controller, Options

PROMPT_SEED = 1_000_003
"""Sets the demonstrations that policies are shown apart from other recordings."""

ALIASES = {"oracle": "expert"}
"""Other names for `--policy`."""


class Interface(NamedTuple):
    """What an environment takes and gives: numbers of an action and of a state (0: none), cameras, its notes."""

    actions: int
    state: int
    cameras: int
    notes: tuple[str, ...]


def controls_of(env: str) -> tuple[str, ...]:
    """Names of the controls that can act in an environment: without an expert only those that need none."""
    has_expert = env_class(env).expert is not None
    return tuple(name for name in CONTROLS if has_expert or name not in EXPERT_CONTROLS)


def control(name: str, env: str) -> Controller:
    """The control of that name for an environment; a `UserError` if there is none, or if it needs an expert."""
    name = ALIASES.get(name, name)
    if name not in CONTROLS:
        raise UserError(f"there is no policy '{name}'{did_you_mean(name, [*CONTROLS, *ALIASES])}")
    if name not in controls_of(env):
        raise UserError(f"--policy {name} needs a scripted expert, and {env} has none; --policy random needs none")
    return CONTROLS[name]()


def compare(options: Options, controller: Controller, episodes: int, out: pathlib.Path, videos: int):
    """Runs what is missing of a controller's episodes and of those of each control.

    Args:
      options: `fps` is the controller's; the controls act as often as the environment takes actions.
      videos: how many episodes of the controller are filmed; 0: nothing is drawn.

    Returns:
      {name: {"overall", "tasks"}} as of `scores`, the controller first, and the lines of the controller's episodes,
      which lie in `out / name`.
    """
    lines = {controller.name: rollouts.run(options, controller, episodes, out / controller.name, videos=videos or None)}
    own_rate = dataclasses.replace(options, fps=None)
    for name in controls_of(options.env):
        if name not in lines:
            lines[name] = rollouts.run(own_rate, CONTROLS[name](), episodes, out / name)
    results = {name: {"overall": scores.summarize(own), "tasks": scores.by_task(own)} for name, own in lines.items()}
    return results, lines[controller.name]


def interface(options: Options, state: bool = False) -> Interface:
    """What the environment takes and gives. To know the state takes an episode: it is 0 where not asked for."""
    env = options.make_env()
    size = 0
    if state:
        env.images = False
        env.reset(0, options.tasks[0] if options.tasks else None)
        size = len(env.observe().get("state", ()))
    env.close()
    return Interface(len(env.action_low), size, env.cameras, tuple(env.notes))


def another_task(options: Options, task: str) -> str:
    """The task of the environment that follows a task, of all that there are, the first after the last."""
    env = options.make_env()
    tasks = env.tasks
    env.close()
    if len(tasks) < 2:
        raise UserError(f"{options.env} has one task alone, {task}: there is none to show a wrong demonstration of")
    return tasks[(tasks.index(task) + 1) % len(tasks)]


def demonstrations(options: Options, count: int, task: str) -> list[Mapping[str, np.ndarray]]:
    """The expert's episodes of a task, as often observed as `options.fps` says: {"image" uint8[n, H, W, 3], "action"
    f32[n, A], "state" f32[n, S]} each; "state" where the environment has one."""
    recorded = RecordingOptions(options.env, count, (task,), seed=options.seed + PROMPT_SEED, fps=options.fps)
    env = options.make_env()
    recordings = [record_episode(env, recorded, number, task) for number in range(count)]
    env.close()
    steps = [len(one.arrays["action"]) for one in recordings]
    return [{"image": one.image[:count]} | {name: rows[:count] for name, rows in one.arrays.items()}
            for one, count in zip(recordings, steps)]  # fmt: skip
