"""Any environment of gymnasium as a simulator: `gym:PushT-v0`, or `gym:package.module:NAME` if a module registers it.

What its images, its state, success and the instruction are is said by a mapping, see `lapa_jax.sim.gym_map`. Images are
as the environment gives them, of any size: policies resize them as in training.
"""

import ctypes.util
import functools
import importlib.metadata
import os
import sys
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.sim import gym_map
from lapa_jax.sim.env import Simulator, check_installed, hash_of
from lapa_jax.sim.options import HELP, check_size


class Env(Simulator):
    """An environment of gymnasium. It has no scripted expert."""

    packages, extra = ("gymnasium",), "gym"
    help = {
        "size": HELP["size"],
        "env_map": "of gym: .yaml or .py file that says what its images, state, success and instruction are",
    }

    def __init__(self, name: str, size: int = 128, env_map: str | None = None):
        """`name` is that of the environment; `size` is used by mappings that render in any size; `env_map` as of
        `gym_map.find`."""
        check_size(size)
        check_installed("gym", self.packages, self.extra)
        if "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules and ctypes.util.find_library("EGL"):
            os.environ["MUJOCO_GL"] = "egl"  # else MuJoCo's environments look for a screen
        self.size, (self._map, self._reading, self._versions) = size, _read(name, size, env_map)
        self.tasks, self.notes = self._map.tasks(), self._reading.notes
        self.fps, self.max_steps, self.additive = self._reading.fps, self._reading.max_steps, self._map.additive
        self.action_low, self.action_high = self._reading.low, self._reading.high
        self.cameras = max(1, len(self._reading.images))
        self.task = self._env = None

    def reset(self, seed: int, task: str | None = None) -> None:
        """Starts the episode of `seed`."""
        if task is not None and task not in self.tasks:
            raise UserError(f"{self._map.name} has no task '{task}'{did_you_mean(task, self.tasks)}")
        task = task or self.tasks[np.random.default_rng(seed).integers(len(self.tasks))]
        if task != self.task:
            self.close()
            self.task, self._env = task, self._map.make_env(task, self.size)
        self._observation, info = self._env.reset(seed=int(seed))
        self._success = self._over = False
        kind, words = self._reading.instruction
        self.instruction = words if kind == "text" else str(self._of_info(info, words))

    def check_images(self) -> None:
        """A `UserError` if there is no image, or if it cannot be rendered."""
        try:
            self.reset(0)
            self.observe()
        except UserError:
            raise
        except Exception as error:  # drivers of screens and GL raise whatever they like
            raise UserError(f"{self._map.name} cannot render: {type(error).__name__}: {error}") from error
        finally:
            self.close()  # episodes begin in a fresh environment

    def observe(self) -> dict[str, np.ndarray]:
        """{"image": uint8[H, W, 3], of several cameras uint8[V, H, W, 3], where `images` says so; "state": f32[S], if
        there is one}."""
        parts = gym_map.leaves(self._observation)
        observation = {"image": self._image(parts)} if self.images else {}
        if self._reading.states:
            rows = [np.asarray(parts[key], np.float32).reshape(-1) for key in self._reading.states]
            observation["state"] = np.concatenate(rows)
        return observation

    def _image(self, parts: dict) -> np.ndarray:
        """Of all cameras, from the parts of an observation."""
        keys = self._reading.images
        if not keys:
            raise UserError(self._reading.no_image)
        images = [np.array(self._env.render() if key == "render" else parts[key]) for key in keys]
        if len({image.shape for image in images}) > 1:
            raise UserError(f"{self._map.name}: the cameras {', '.join(keys)} have images of several sizes")
        return images[0] if len(images) == 1 else np.stack(images)

    def step(self, action: np.ndarray) -> None:
        """Applies one action f32[A]; what lies outside of the bounds is clipped."""
        action, (size,) = np.asarray(action, np.float32), self.action_low.shape
        if action.shape != (size,) or not np.isfinite(action).all():
            raise UserError(f"{self._map.name} takes actions of {size} finite numbers, not {action}")
        action = gym_map.to_space(self._env, np.clip(action, self.action_low, self.action_high))
        self._observation, reward, terminated, truncated, info = self._env.step(action)
        match self._reading.success:
            case ("info", key, None):
                self._success = bool(self._of_info(info, key))
            case ("info", key, least):
                self._success = float(self._of_info(info, key)) >= least
            case ("reward", least):
                self._success = float(reward) >= least
            case _:
                self._success = bool(terminated)
        self._over = bool(terminated or truncated)

    def success(self) -> bool:
        """Whether the last step succeeded, by the mapping's rule."""
        return self._success

    def ended(self) -> bool:
        """Whether the environment has ended the episode."""
        return self._over

    def close(self) -> None:
        """Closes the environment of the task."""
        if self._env is not None:
            self._env.close()
        self.task = self._env = None

    def versions(self) -> dict[str, str]:
        """Of gymnasium, of the package that the environment is from, and of the mapping."""
        return super().versions() | self._versions

    def _of_info(self, info: Mapping, key: str):
        if key not in info:
            raise UserError(f"{self._map.name} has no '{key}' in its info any more; it has: {', '.join(sorted(info))}")
        return info[key]


@functools.cache
def _read(name: str, size: int, env_map: str | None) -> tuple[gym_map.GymMap, gym_map.Reading, dict[str, str]]:
    """The mapping of an environment, how it is read, and what its episodes depend on; once a process."""
    chosen, file = gym_map.find(name, env_map)
    check_installed(f"gym:{name}", chosen.packages)
    env = chosen.make_env(chosen.tasks()[0], size)
    try:
        reading = gym_map.complete(chosen, env, file)
    finally:
        env.close()
    versions = {package: importlib.metadata.version(package) for package in chosen.packages}
    module = type(getattr(env, "unwrapped", env)).__module__
    top = module.partition(".")[0]
    if top != "lapa_jax":
        packages = importlib.metadata.packages_distributions().get(top, ())
        versions |= {package: importlib.metadata.version(package) for package in packages}
        if not packages:
            versions |= hash_of(sys.modules[module].__file__)
    if file is not None and file.parent != gym_map.SHIPPED:
        versions |= hash_of(str(file))
    return chosen, reading, versions
