"""Runs a controller in several environments in lockstep. Finished episodes are cached and skipped on restart.

An episode is a function of the options, its number and the controller: its seed comes from `Options.seed` and the
number, and number n always is row n modulo `num_envs` of the same group of `num_envs` episodes. A group of which a part
is finished runs with the others as they were when they began, so what a controller computes for one row must not depend
on the other rows.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import atomic_path, read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data import images
from lapa_jax.sim.env import Simulator, make
from lapa_jax.sim.recording_formats import write_mp4

PINNED = "rollouts.json"
STREAM = 0x5EED
"""Sets the seeds of evaluation apart from those of recordings with the same `seed`."""

STRIP = 8
"""Images of an episode that are kept for contact sheets, spread evenly over it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the episodes, besides the controller.

    Attributes:
      env: name of a simulator, see `lapa_jax.sim.env`. env_options: options of its `Env` class, e.g. {"size": 128}.
      tasks: those of the environment that take turns; all of them if empty.
      seed: of the whole evaluation. num_envs: environments in lockstep. fps: actions a second that the controller
        gives, if fewer than the environment takes: displacements are spread evenly over its steps, other actions are
        held. None is the environment's own.
    """

    env: str
    env_options: Mapping = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    seed: int = 0
    num_envs: int = 8
    fps: float | None = None

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")
        if self.num_envs < 1:
            raise UserError(f"--num_envs must be at least 1, got {self.num_envs}")

    def make_env(self) -> Simulator:
        """An environment of these episodes."""
        return make(self.env, **self.env_options)

    def episode_seed(self, number: int) -> int:
        """The seed of episode `number`, the same for every controller."""
        return int(np.random.SeedSequence([self.seed, number, STREAM]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode that begins: its environment has been reset."""

    number: int
    task: str
    seed: int
    env: Simulator


class Controller(Protocol):
    """Acts in several episodes in lockstep.

    Attributes:
      name: of the folder of its episodes. sees: whether its next `act` needs observations. images: whether it looks at
        their images.
      about: what decides its actions, as JSON.
    """

    name: str
    sees: bool
    images: bool
    about: Mapping

    def begin(self, episodes: Sequence[Episode]) -> None:
        """New episodes begin, one a row."""

    def act(self, observations: Mapping[str, np.ndarray] | None, instructions: list[str]) -> np.ndarray:
        """The actions f32[B, A], from `Simulator.observe` of all rows: {"image": uint8[B, (V,) H, W, 3], "state":
        f32[B, S]}."""


def run(options: Options, controller: Controller, episodes: int, out: pathlib.Path, *, videos: int | None = None):
    """Runs the episodes that are missing.

    Args:
      episodes: how many there are to be; more than before adds to them.
      out: the folder of the controller's episodes.
      videos: how many episodes are filmed, the first ones, as `videos/<number>.mp4`; and of every episode `STRIP`
        images are kept, side by side, as `strips/<number>.jpg`. None: no images, and no GL is needed for them.

    Returns:
      list of {"number", "task", "seed", "instruction", "success", "steps", "trace"}; the last is a SHA-256 over all
      actions, and over all that was seen.

    Raises:
      UserError: options that the environment refuses, or a folder with other episodes.
    """
    if episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {episodes}")
    envs = [options.make_env()]
    for task in options.tasks:
        if task not in envs[0].tasks:
            raise UserError(f"{options.env} has no task '{task}'{did_you_mean(task, envs[0].tasks)}")
    tasks, stride = options.tasks or envs[0].tasks, _stride(envs[0], options.fps)
    drawn = controller.images or videos is not None
    if drawn:
        envs[0].check_images()
    _pin(options, controller, videos, envs[0].versions(), out)
    missing = [number for number in range(episodes) if not _file(out, number).exists()]
    with bar(total=episodes, initial=episodes - len(missing), desc=controller.name, unit="episode") as progress:
        for first in sorted({number - number % options.num_envs for number in missing}):
            envs += [options.make_env() for _ in range(options.num_envs - len(envs))]
            for env in envs:
                env.images = drawn
            numbers = range(first, first + options.num_envs)
            group = [Episode(n, tasks[n % len(tasks)], options.episode_seed(n), env) for n, env in zip(numbers, envs)]
            rollouts = [Rollout(episode, out, videos, stride) for episode in group]
            _run_group(rollouts, controller, [n in missing for n in numbers])
            progress.update(sum(n in missing for n in numbers))
    for env in envs:
        env.close()
    return [read_json(_file(out, number)) for number in range(episodes)]


def _run_group(rollouts: "list[Rollout]", controller: Controller, missing: list[bool]) -> None:
    """Runs the missing episodes of a group to their ends."""
    for rollout, wanted in zip(rollouts, missing):
        rollout.begin(wanted)
    controller.begin([rollout.episode for rollout in rollouts])
    instructions = [rollout.episode.env.instruction for rollout in rollouts]
    while any(rollout.running for rollout in rollouts):
        observations = None
        if controller.sees:
            rows = [rollout.seen() for rollout in rollouts]
            observations = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for rollout, action in zip(rollouts, controller.act(observations, instructions)):
            if rollout.running:
                rollout.step(action)


class Rollout:
    """One environment's episode while it runs, and what is kept of it when it ends."""

    def __init__(self, episode: Episode, out: pathlib.Path, videos: int | None, stride: int):
        self.episode, self.running = episode, False
        self._observation: dict[str, np.ndarray] | None = None
        self._out, self._stride, self._steps = out, stride, 0
        self._film, self._keep_images = videos is not None and episode.number < videos, videos is not None
        self._frames: list[np.ndarray] = []
        self._every, self._kept = 1, 0
        self._digest = hashlib.sha256()

    def begin(self, running: bool) -> None:
        """Resets the environment; an episode that is finished already stays at its beginning."""
        self.episode.env.reset(self.episode.seed, self.episode.task)
        self.running = running
        self._keep()

    def seen(self) -> dict[str, np.ndarray]:
        """What the environment shows now, for the controller."""
        observation = self._observe()
        for name in sorted(observation):
            self._digest.update(np.ascontiguousarray(observation[name]).tobytes())
        return observation

    def step(self, action: np.ndarray) -> None:
        """One action of the controller, and the end of the episode if it brings that."""
        env, action = self.episode.env, np.asarray(action, np.float32)
        self._digest.update(action.tobytes())
        part = action / np.float32(self._stride) if env.additive else action
        for _ in range(self._stride):
            env.step(part)
            self._steps += 1
            success = env.success()
            over = success or self._steps == env.max_steps or env.ended()
            if over:
                break
        self._observation = None
        self._keep()
        if over:
            self._finish(success)

    def _observe(self) -> dict[str, np.ndarray]:
        """The environment's observation, asked for once a step: drawing an image may take longer than many steps."""
        if self._observation is None:
            self._observation = self.episode.env.observe()
        return self._observation

    def _keep(self) -> None:
        """A film keeps all images, other episodes fewer and fewer as they grow: many run side by side."""
        if not (self._keep_images and self.running):
            return
        if self._film or self._kept % self._every == 0:
            self._frames.append(self._shown())
        self._kept += 1
        if not self._film and len(self._frames) == 4 * STRIP:
            self._frames, self._every = self._frames[::2], 2 * self._every

    def _shown(self) -> np.ndarray:
        """The image for films and contact sheets: that of the first camera, a square as videos can hold it."""
        image = self._observe()["image"]
        image = image if image.ndim == 3 else image[0]
        height, width = image.shape[:2]
        return image if height == width and height % 2 == 0 else images.resize(image, min(height, width) // 2 * 2)

    def _finish(self, success: bool) -> None:
        """Images first: the episode's file says that all is there."""
        self.running, episode = False, self.episode
        if self._keep_images:
            frames = self._frames if self._film else [*self._frames, self._shown()]
            chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, STRIP).round().astype(int)]
            with atomic_path(self._out / "strips" / f"{episode.number:06d}.jpg") as path:
                path.write_bytes(images.encode(np.concatenate(chosen, axis=1), 92))
        if self._film:
            name, fps = f"{episode.number:06d}.mp4", episode.env.fps / self._stride
            write_mp4(self._out / "videos" / name, np.stack(self._frames), fps)
        self._frames = []
        line = {"number": episode.number, "task": episode.task, "seed": episode.seed, "success": bool(success)}
        line |= {"instruction": episode.env.instruction, "steps": self._steps, "trace": self._digest.hexdigest()}
        write_json(_file(self._out, episode.number), line)


def _file(out: pathlib.Path, number: int) -> pathlib.Path:
    return out / "episodes" / f"{number:06d}.json"


def _stride(env: Simulator, fps: float | None) -> int:
    """Environment steps an action of the controller."""
    if fps is None or fps == env.fps:
        return 1
    stride = round(env.fps / fps) if fps > 0 else 0
    if stride < 1 or stride * fps != env.fps:
        raise UserError(f"the policy acts {fps:g} times a second, which does not divide the {env.fps:g} of {env.name}")
    return stride


def _pin(options: Options, controller: Controller, videos: int | None, versions: Mapping, out: pathlib.Path) -> None:
    """Writes what decides the episodes into a new folder; a folder with others in it is refused."""
    about = {"controller": controller.about, "videos": videos, "simulator": versions}
    wanted = json.loads(json.dumps({**dataclasses.asdict(options), **about}))
    if (out / PINNED).exists():
        pinned = read_json(out / PINNED)
        for name, value in wanted.items():
            if pinned.get(name) != value:
                raise UserError(f"{out} holds episodes with {name} {pinned.get(name)}, now {value}: choose another "
                                "--out, or remove it")  # fmt: skip
        return
    if out.is_file():
        raise UserError(f"{out} is a file; choose a new folder as --out")
    if out.exists() and any(not path.name.endswith(".tmp") for path in out.iterdir()):
        raise UserError(f"{out} exists and holds no episodes; choose a new folder as --out")
    shutil.rmtree(out, ignore_errors=True)
    write_json(out / PINNED, wanted)
