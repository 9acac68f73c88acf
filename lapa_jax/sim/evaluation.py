"""One policy and all controls on the same episodes, and demonstrations to show to policies that want them."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.sim import rollouts, scores
from lapa_jax.sim.controls import CONTROLS
from lapa_jax.sim.env import make
from lapa_jax.sim.recording import Options as RecordingOptions
from lapa_jax.sim.recording import record_episode
from lapa_jax.sim.rollouts import Controller, Options

PROMPT_SEED = 1_000_003
"""Sets the demonstrations that policies are shown apart from other recordings."""


def control(name: str) -> Controller:
    """The control of that name, or a `UserError`."""
    if name not in CONTROLS:
        raise UserError(f"there is no policy '{name}'{did_you_mean(name, CONTROLS)}")
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
    found = {controller.name: rollouts.run(options, controller, episodes, out / controller.name, videos=videos or None)}
    plain = dataclasses.replace(options, fps=None)
    for name in CONTROLS:
        if name not in found:
            found[name] = rollouts.run(plain, control(name), episodes, out / name)
    results = {name: {"overall": scores.summarize(own), "tasks": scores.by_task(own)} for name, own in found.items()}
    return results, found[controller.name]


def sizes(options: Options, state: bool) -> tuple[int, int]:
    """How many numbers the actions of an environment have, and its state; 0 for the state if that is not asked for, as
    it takes a picture."""
    env = make(options.env, **options.how)
    env.reset(0, options.tasks[0] if options.tasks else None)
    found = len(env.action_limit), len(env.observe()["state"]) if state else 0
    env.close()
    return found


def demonstrations(options: Options, count: int, task: str) -> list[Mapping[str, np.ndarray]]:
    """The oracle's episodes of a task, as often observed as `options.fps` says: {"image" uint8[n, H, W, 3], "action"
    f32[n, A], "state" f32[n, S]} each."""
    recorded = RecordingOptions(options.env, count, task=task, seed=options.seed + PROMPT_SEED, fps=options.fps)
    env = make(options.env, **options.how)
    found = [record_episode(env, recorded, number, task) for number in range(count)]
    env.close()
    return [{"image": one.image[:-1], "action": one.arrays["action"], "state": one.arrays["state"][:-1]}
            for one in found]  # fmt: skip
