"""Recording the expert's episodes to step shards or videos, in parallel; a killed recording goes on where it stopped.

Each episode is a function of the options and its number, and is written whole before the recording is finished. So the
result is the same for any number of workers and of interruptions.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import parse_json, read_json, write_json
from lapa_jax.core.lock import beside, locked
from lapa_jax.core.progress import bar
from lapa_jax.data.convert import pool
from lapa_jax.data.convert.plan import assign_splits
from lapa_jax.sim import recording_formats
from lapa_jax.sim.env import Simulator, env_class, expert_of, make, options_of
from lapa_jax.sim.recording_formats import EPISODES

WORK = ".record"
"""Where an unfinished recording keeps its state."""

OPTIONS = "recording.json"
COLUMNS = ("action", "state")
ATTEMPTS = 50


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the content of a recording.

    Attributes:
      env: name of a simulator, see `lapa_jax.sim.env`. tasks: those of its tasks that take turns; all if empty.
      episodes: how many. seed: of the whole recording. size: edge of the images in pixels.
      noise: standard deviation of what is added to the expert's actions, in their units.
      fps: of the recording; it divides the environment's, the actions in between are summed where they add up
        (displacements), else their mean is taken. None keeps them all.
      max_steps: only episodes that succeed within so many of the environment's steps are kept; None is its own limit.
      columns: which of `COLUMNS` are kept; without any the recording is action-free, the input of stage 1.
      env_options: options of the simulator's `Env` besides `size`, e.g. {"split": "seen", "blocks": 3}.
      quality: of the JPEGs. val_fraction: share of the episodes that are held out, by a hash of their ids.
      format: "shards" or "mp4".
    """

    env: str
    episodes: int
    tasks: tuple[str, ...] = ()
    seed: int = 0
    size: int = 128
    noise: float = 0.0
    fps: float | None = None
    max_steps: int | None = None
    columns: tuple[str, ...] = COLUMNS
    quality: int = 95
    val_fraction: float = 0.1
    format: str = "shards"
    env_options: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        formats = recording_formats.FORMATS
        checks = (
            (self.format in formats, f"--format {self.format} is not one of {', '.join(formats)}"),
            (set(self.columns) <= set(COLUMNS), f"--columns {','.join(self.columns)}: known are {', '.join(COLUMNS)}"),
            (0 < self.episodes < 10**6, f"--episodes is 1 to 999999, got {self.episodes}"),
            (self.seed >= 0, f"--seed must not be negative, got {self.seed}"),
            (1 <= self.quality <= 100, f"--quality is 1 to 100, got {self.quality}"),
            (0 <= self.val_fraction < 1, f"--val_fraction lies in [0, 1), got {self.val_fraction}"),
            (self.format != "mp4" or self.size % 2 == 0, f"--size must be even for mp4, got {self.size}"),
            (self.max_steps is None or self.max_steps > 0, f"--max_steps must be positive, got {self.max_steps}"),
        )
        for valid, message in checks:
            if not valid:
                raise UserError(message)

    def make_env(self) -> Simulator:
        """The environment, as asked for."""
        return make(self.env, size=self.size, **self.env_options)

    def stride(self, env_fps: float) -> int:
        """Environment steps per recorded step."""
        if self.fps is None:
            return 1
        stride = round(env_fps / self.fps) if self.fps > 0 else 0
        if stride < 1 or stride * self.fps != env_fps:
            raise UserError(f"--fps {self.fps} does not divide the {env_fps} steps a second of {self.env}")
        return stride


class Recording(NamedTuple):
    """One episode: `image` uint8[n + 1, H, W, 3]; `arrays` as asked for: "action" f32[n, A], "state" f32[n + 1, S]."""

    task: str
    seed: int
    instruction: str
    fps: float
    image: np.ndarray
    arrays: dict[str, np.ndarray]


def record(options: Options, out: pathlib.Path, workers: int = 1) -> list[dict]:
    """Records all episodes to the folder `out`, or finishes what an earlier call has begun.

    Returns:
      The lines of `episodes.jsonl`: {"id", "task", "instruction", "seed", "frames", "fps", "size", "split", ...}.
    """
    env = options.make_env()
    _check(env, options)
    turns = options.tasks or env.tasks
    tasks = [turns[number % len(turns)] for number in range(options.episodes)]
    with locked(beside(out), f"recording to {out}"):
        _pin(options, out)
        if not (out / EPISODES).exists():
            ids = [f"{task}-{number:06d}" for number, task in enumerate(tasks)]
            _record_missing(env, options, out, tasks, ids, workers)
            entries = [read_json(out / WORK / f"{i}.json") for i in ids]
            recording_formats.finish(options, out, out / WORK, entries)
        shutil.rmtree(out / WORK, ignore_errors=True)
    env.close()
    return _read_lines(out / EPISODES)


def record_episode(env: Simulator, options: Options, number: int, task: str) -> Recording:
    """Runs the expert on episode `number`; layouts that it does not solve in time are passed over for the next seed."""
    for attempt in range(ATTEMPTS):
        seed = int(np.random.SeedSequence([options.seed, number, attempt]).generate_state(1)[0])
        actions = _solve(env, options, task, seed)
        if actions is not None:
            return _replay(env, options, task, seed, actions)
    raise UserError(
        f"the expert solved none of {ATTEMPTS} layouts of '{task}' within {options.max_steps or env.max_steps} steps; "
        "give a larger --max_steps or less --noise"
    )


def _read_lines(path: pathlib.Path) -> list[dict]:
    try:
        return [parse_json(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or record to another folder") from None


def _check(env: Simulator, options: Options) -> None:
    """Refuses options that the environment would refuse later, before anything is written."""
    options.stride(env.fps)
    for task in options.tasks or (None,):
        env.reset(0, task)
    expert_of(env, 0, options.noise)
    if env.cameras > 1:
        raise UserError(f"a recording holds one camera, {options.env} gives {env.cameras}")
    if "state" not in env.observe() and "state" in options.columns:
        raise UserError(f"--columns {','.join(options.columns)}: {options.env} gives no state; give --columns action")


def _pin(options: Options, out: pathlib.Path) -> None:
    """Writes the options into a new folder; a folder with other options, or with anything else in it, is refused."""
    defaults = {name: parameter.default for name, parameter in options_of(env_class(options.env)).items()}
    values = dataclasses.asdict(options)
    wanted = json.loads(json.dumps(defaults | values.pop("env_options") | values))
    if (out / OPTIONS).exists():
        recorded = read_json(out / OPTIONS)
        for name, value in wanted.items():
            if (old := recorded.get(name, defaults.get(name))) != value:
                raise UserError(f"{out} was recorded with {name}={old}, now {value}; choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(not p.name.endswith(".tmp") for p in out.iterdir())):
        raise UserError(f"{out} exists and holds no recording; choose a new or empty folder")
    write_json(out / OPTIONS, wanted)


def _record_missing(env, options: Options, out: pathlib.Path, tasks: list[str], ids: list[str], workers: int) -> None:
    splits = assign_splits(ids, "auto", options.val_fraction)
    jobs = [job for job in zip(range(len(ids)), tasks, ids, splits) if not (out / WORK / f"{job[2]}.json").exists()]
    if workers > 1:
        env.close()  # the workers have their own
        processes = pool.worker_pool(workers)
        try:
            futures = [processes.submit(_record_one, None, options, out, *job) for job in jobs]
            done = concurrent.futures.as_completed(futures)
            for future in bar(done, total=len(ids), initial=len(ids) - len(jobs), desc="recording", unit="episode"):
                future.result()
        finally:
            processes.shutdown(cancel_futures=True)
    else:
        for job in bar(jobs, total=len(ids), initial=len(ids) - len(jobs), desc="recording", unit="episode"):
            _record_one(env, options, out, *job)


def _record_one(env, options: Options, out: pathlib.Path, number: int, task: str, id: str, split: str) -> None:
    """Records one episode, in the worker's own environment if `env` is None. Its entry `<id>.json` is written last."""
    env = env or _worker_env(options.env, options.size, tuple(options.env_options.items()))
    recording = record_episode(env, options, number, task)
    entry = {"id": id, "split": split, "task": task, "seed": recording.seed, "instruction": recording.instruction}
    entry |= {"frames": len(recording.image), "fps": recording.fps, "size": options.size, "success": True}
    entry |= recording_formats.write_episode(options, out, out / WORK, entry, recording)
    write_json(out / WORK / f"{id}.json", entry)


@functools.lru_cache(maxsize=1)
def _worker_env(env: str, size: int, env_options: tuple) -> Simulator:
    """The environment of a worker process, for all of its episodes."""
    return make(env, size=size, **dict(env_options))


def _solve(env: Simulator, options: Options, task: str, seed: int) -> list[np.ndarray] | None:
    """The expert's actions up to success, None without success. Nothing is rendered."""
    env.reset(seed, task)
    expert, actions = expert_of(env, seed, options.noise), []
    for _ in range(options.max_steps or env.max_steps):
        actions.append(expert.act())
        env.step(actions[-1])
        if env.success():
            return actions
        if env.ended():
            return None
    return None


def _replay(env: Simulator, options: Options, task: str, seed: int, actions: list[np.ndarray]) -> Recording:
    """The images of an episode whose actions are known; its last action may stand for fewer than `stride`."""
    stride = options.stride(env.fps)
    env.reset(seed, task)
    merge = np.sum if env.additive else np.mean
    observations, merged = [env.observe()], []
    for start in range(0, len(actions), stride):
        chunk = actions[start : start + stride]
        for action in chunk:
            env.step(action)
        merged.append(merge(chunk, axis=0, dtype=np.float32))
        observations.append(env.observe())
    columns = {name: np.stack([one[name] for one in observations]) for name in observations[0]}
    image, columns["action"] = columns["image"], np.stack(merged)
    arrays = {name: columns[name] for name in options.columns if name in columns}
    return Recording(task, seed, env.instruction, env.fps / stride, image, arrays)


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
