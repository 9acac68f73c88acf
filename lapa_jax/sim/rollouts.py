"""Closed-loop episodes: a controller acts in several environments in step; what is finished is kept and not run again.

An episode is a function of the options, its number and the controller: its seed comes from `Options.seed` and the
number, and number n always is row n modulo `lanes` of the same group of `lanes` episodes. A group of which a part is
finished runs with the others as they were when they began, so what a controller computes for one row must not depend on
the other rows.
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
from lapa_jax.sim.env import Env, make, simulator
from lapa_jax.sim.recording_formats import write_mp4

PINNED = "rollouts.json"
STREAM = 0x5EED
"""Sets the seeds of evaluation apart from those of recordings with the same `seed`."""

STRIP = 8
"""Pictures of an episode that are kept for contact sheets, spread evenly over it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the episodes, besides the controller.

    Attributes:
      env: one of `lapa_jax.sim.env.ENVS`. how: options of its `Env` class, e.g. {"size": 128}.
      tasks: those of the environment that take turns; all of them if empty.
      seed: of the whole evaluation. lanes: environments in step. fps: actions a second that the controller gives, if
        fewer than the environment takes: displacements are spread evenly over its steps, other actions are held. None
        is the environment's own.
    """

    env: str
    how: Mapping = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    seed: int = 0
    lanes: int = 8
    fps: float | None = None

    def __post_init__(self):
        for fine, message in (
            (self.seed >= 0, f"--seed must not be negative, got {self.seed}"),
            (self.lanes >= 1, f"--lanes must be at least 1, got {self.lanes}"),
        ):
            if not fine:
                raise UserError(message)

    def episode_seed(self, number: int) -> int:
        """The seed of episode `number`, the same for every controller."""
        return int(np.random.SeedSequence([self.seed, number, STREAM]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode that begins: its environment has been reset."""

    number: int
    task: str
    seed: int
    env: Env


class Controller(Protocol):
    """Acts in several episodes in step.

    Attributes:
      name: of the folder of its episodes. sees: whether it needs observations.
      about: what decides its actions, as JSON.
    """

    name: str
    sees: bool
    about: Mapping

    def begin(self, episodes: Sequence[Episode]) -> None:
        """New episodes begin, one a row."""

    def act(self, observations: Mapping[str, np.ndarray] | None, instructions: list[str]) -> np.ndarray:
        """The actions f32[B, A], from what all rows see ({"image": uint8[B, H, W, 3], "state": f32[B, S]})."""


def run(options: Options, controller: Controller, episodes: int, out: pathlib.Path, *, videos: int | None = None):
    """Runs the episodes that are missing.

    Args:
      episodes: how many there are to be; more than before adds to them.
      out: the folder of the controller's episodes.
      videos: how many episodes are filmed, the first ones, as `videos/<number>.mp4`; and of every episode `STRIP`
        pictures are kept, side by side, as `strips/<number>.jpg`. None: no pictures, and no GL is needed for them.

    Returns:
      list of {"number", "task", "seed", "instruction", "success", "steps", "trace"}; the last is a SHA-256 over all
      actions, and over all that was seen.

    Raises:
      UserError: options that the environment refuses, or a folder with other episodes.
    """
    if episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {episodes}")
    envs = [make(options.env, **options.how)]
    tasks = _tasks(envs[0], options)
    stride = _stride(envs[0], options.fps)
    _pin(options, controller, videos, out)
    missing = [number for number in range(episodes) if not _file(out, number).exists()]
    with bar(total=episodes, initial=episodes - len(missing), desc=controller.name, unit="episode") as shown:
        for first in sorted({number - number % options.lanes for number in missing}):
            envs += [make(options.env, **options.how) for _ in range(options.lanes - len(envs))]
            numbers = range(first, first + options.lanes)
            group = [Episode(n, tasks[n % len(tasks)], options.episode_seed(n), env) for n, env in zip(numbers, envs)]
            lanes = [Lane(episode, out, videos, stride) for episode in group]
            _run_group(lanes, controller, [n in missing for n in numbers])
            shown.update(sum(n in missing for n in numbers))
    for env in envs:
        env.close()
    return [read_json(_file(out, number)) for number in range(episodes)]


def _run_group(lanes: "list[Lane]", controller: Controller, missing: list[bool]) -> None:
    """Runs the missing episodes of a group to their ends."""
    for lane, wanted in zip(lanes, missing):
        lane.begin(wanted, controller.sees)
    controller.begin([lane.episode for lane in lanes])
    instructions = [lane.episode.env.instruction for lane in lanes]
    while any(lane.running for lane in lanes):
        seen = None
        if controller.sees:
            seen = {name: np.stack([lane.seen[name] for lane in lanes]) for name in lanes[0].seen}
        for lane, action in zip(lanes, controller.act(seen, instructions)):
            if lane.running:
                lane.step(action)


class Lane:
    """One environment's episode while it runs, and what is kept of it when it ends."""

    def __init__(self, episode: Episode, out: pathlib.Path, videos: int | None, stride: int):
        self.episode, self.running, self.seen = episode, False, None
        self._out, self._stride, self._steps = out, stride, 0
        self._film, self._keep = videos is not None and episode.number < videos, videos is not None
        self._frames: list[np.ndarray] = []
        self._every, self._looks = 1, 0
        self._digest = hashlib.sha256()

    def begin(self, running: bool, sees: bool) -> None:
        """Resets the environment; an episode that is finished already stays at its beginning."""
        self.episode.env.reset(self.episode.seed, self.episode.task)
        self.running, self._look = running, sees or (running and self._keep)
        self._observe()

    def step(self, action: np.ndarray) -> None:
        """One action of the controller, and the end of the episode if it brings that."""
        env, action = self.episode.env, np.asarray(action, np.float32)
        self._digest.update(action.tobytes())
        part = action / np.float32(self._stride) if env.additive else action
        for _ in range(self._stride):
            env.step(part)
            self._steps += 1
            success = env.success()
            if success or self._steps == env.max_steps:
                break
        self._observe()
        if success or self._steps == env.max_steps:
            self._finish(success)

    def _observe(self) -> None:
        if self._look:
            self.seen = self.episode.env.observe()
            for name in sorted(self.seen):
                self._digest.update(np.ascontiguousarray(self.seen[name]).tobytes())
            if self._keep and self.running:
                self._remember(self.seen["image"])

    def _remember(self, image: np.ndarray) -> None:
        """Keeps all pictures of a film. Of other episodes fewer and fewer as they grow: many lanes run side by side."""
        if self._film or self._looks % self._every == 0:
            self._frames.append(image)
        self._looks += 1
        if not self._film and len(self._frames) == 4 * STRIP:
            self._frames, self._every = self._frames[::2], 2 * self._every

    def _finish(self, success: bool) -> None:
        """Pictures first: the episode's file says that all is there."""
        self.running, episode = False, self.episode
        if self._keep:
            frames = self._frames if self._film else [*self._frames, self.seen["image"]]
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


def _tasks(env: Env, options: Options) -> tuple[str, ...]:
    for task in options.tasks:
        if task not in env.tasks:
            raise UserError(f"{options.env} has no task '{task}'{did_you_mean(task, env.tasks)}")
    return options.tasks or env.tasks


def _stride(env: Env, fps: float | None) -> int:
    """Environment steps an action of the controller."""
    if fps is None or fps == env.fps:
        return 1
    stride = round(env.fps / fps) if fps > 0 else 0
    if stride < 1 or stride * fps != env.fps:
        raise UserError(f"the policy acts {fps:g} times a second, which does not divide the {env.fps:g} of {env.name}")
    return stride


def _pin(options: Options, controller: Controller, videos: int | None, out: pathlib.Path) -> None:
    """Writes what decides the episodes into a new folder; a folder with others in it is refused."""
    about = {"controller": controller.about, "videos": videos, "simulator": simulator(options.env)}
    wanted = json.loads(json.dumps({**dataclasses.asdict(options), **about}))
    if (out / PINNED).exists():
        found = read_json(out / PINNED)
        for name, value in wanted.items():
            if found.get(name) != value:
                raise UserError(f"{out} holds episodes with {name} {found.get(name)}, now {value}: choose another "
                                "--out, or remove it")  # fmt: skip
        return
    if out.is_file():
        raise UserError(f"{out} is a file; choose a new folder as --out")
    if out.exists() and any(not path.name.endswith(".tmp") for path in out.iterdir()):
        raise UserError(f"{out} exists and holds no episodes; choose a new folder as --out")
    shutil.rmtree(out, ignore_errors=True)
    write_json(out / PINNED, wanted)
