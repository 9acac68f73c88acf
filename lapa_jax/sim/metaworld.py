"""Meta-World's 50 manipulation tasks (Yu et al. 2019, arXiv:1910.10897), with instructions.

Needs `lapa_jax[metaworld]`. The package's tasks, physics, success rules and scripted experts are used as they are; ours
are the words, the seeds and the camera. Actions f32[4] in [-1, 1]: the hand's set-point moves by (x, y, z) centimetres,
and the effort of the gripper (1 closes). Steps are 1/80 s, so that neighbouring images hardly differ.
"""

import functools
import warnings

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.sim.env import Simulator, check_installed
from lapa_jax.sim.looks import Look, Stage
from lapa_jax.sim.metaworld_tasks import TASKS, UNSEEN_TASKS
from lapa_jax.sim.options import HELP, SPLITS, check_options, pick_wording
from lapa_jax.sim.rendering import Camera, load_mujoco

FPS = 80.0
MAX_STEPS = 500  # the package's horizon
CAMERA = "corner2"
CAMERA_AT = (0.75, 0.075, 0.7)  # metres; nearer than the package has it, as in most published images
STATES = {"hand": 4, "all": 39}
"""{option: how many numbers of the package's observation}: the hand (x, y, z) in metres and the gripper's opening (0 to
1); all: then the places (m) and quaternions of two objects, the same 18 numbers one step before, and the goal (m)."""
STAGE = Stage(centre=(0.0, 0.6), half=(0.6, 0.37), top=0.0, materials=("table_wood", "basic_floor"))


class Env(Simulator):
    """One of the 50 tasks at a time. `split` "seen" leaves the five held-out tasks of ML45 out, "unseen" is these five.

    The same seed and task give the same episode, bit for bit, in every process on the same machine.
    """

    packages, extra = ("mujoco", "metaworld"), "metaworld"
    help = HELP | {"state": "hand (default: its place, the gripper), or all: the objects and the goal too, 39 numbers"}
    fps = FPS
    max_steps = MAX_STEPS
    action_low, action_high = -np.ones(4, np.float32), np.ones(4, np.float32)

    def __init__(
        self,
        size: int = 128,
        split: str = "all",
        wordings: str = "one",
        varied: bool = False,
        moving: bool = False,
        state: str = "hand",
    ):
        """`size` is the edge of the square images in pixels, `state` of `STATES`; the rest as in `sim.options`."""
        check_options(size, split, wordings)
        if state not in STATES:
            raise UserError(f"state '{state}' does not exist{did_you_mean(state, STATES)}")
        check_installed("metaworld", self.packages, self.extra)
        load_mujoco()
        self.size, self.wordings, self._looks, self._numbers = size, wordings, (varied, moving), STATES[state]
        self.tasks = tuple(name for name in TASKS if SPLITS[split] in (None, name in UNSEEN_TASKS))
        self.task: str | None = None
        self._sim = None
        self._camera: Camera | None = None

    def reset(self, seed: int, task: str | None = None) -> None:
        """Starts an episode of `task` (None: any), whose objects and goal are placed by `seed`."""
        if task is not None and task not in self.tasks:
            raise UserError(f"Meta-World has no task '{task}' here{did_you_mean(task, self.tasks)}")
        task = task or self.tasks[np.random.default_rng(seed).integers(len(self.tasks))]
        if task != self.task:
            self.close()
            self._sim = _make(task)
            self._look = Look(self._sim.model, CAMERA, STAGE, *self._looks)
        self.task, self._success = task, False
        self._sim.seed(int(seed))  # reset(seed=...) is ignored by the package
        self.observation = self._sim.reset()[0]
        self._look.reset(seed)
        self._instruction = pick_wording(self.wordings, TASKS[task], seed)

    @property
    def instruction(self) -> str:
        """What the policy is asked to do in this episode."""
        self._started()
        return self._instruction

    def observe(self) -> dict[str, np.ndarray]:
        """{"image": uint8[size, size, 3] where `images` says so, "state": f32[4] or f32[39], see `STATES`}."""
        sim = self._started()
        observation = {"state": self.observation[: self._numbers].astype(np.float32)}
        if self.images:
            if self._camera is None:
                self._camera = Camera(sim.model, CAMERA, self.size)
            image = self._camera.render(sim.data, self._look.shapes(sim.data.time))
            observation["image"] = np.ascontiguousarray(image[::-1, ::-1])
        return observation

    def step(self, action: np.ndarray) -> None:
        """Moves on by one action f32[4], 1 / fps seconds; what lies outside [-1, 1] is clipped."""
        sim = self._started()
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise UserError(f"Meta-World takes actions of four finite numbers in [-1, 1], not {action}")
        if sim.curr_path_length >= MAX_STEPS:
            raise UserError(f"the episode is over after {MAX_STEPS} steps; call reset(seed)")
        self.observation, _, _, _, info = sim.step(np.clip(action, -1, 1))
        self._success = bool(info["success"])

    def success(self) -> bool:
        """Whether the instruction is fulfilled now, by the package's rule."""
        self._started()
        return self._success

    def expert(self, seed: int, noise: float = 0.0) -> "Expert":
        """The package's scripted expert; `noise` is a standard deviation in units of actions, for each of the four."""
        self._started()
        return Expert(self, seed, noise)

    def close(self) -> None:
        """Frees the GL context, if one was made, and the model."""
        if self._camera is not None:
            self._camera.close()
        self._camera = self._sim = self.task = None

    def _started(self):
        if self._sim is None:
            raise UserError("call reset(seed) before using Meta-World")
        return self._sim


class Expert:
    """The package's expert for the episode of an `Env`, with noise."""

    def __init__(self, world: Env, seed: int, noise: float):
        if not 0 <= noise <= 2:
            raise UserError(f"expert noise {noise} is not a standard deviation between 0 and 2, in units of actions")
        from metaworld.policies import ENV_POLICY_MAP

        self._world, self._policy = world, ENV_POLICY_MAP[world.task]()
        self._rng, self._noise = np.random.default_rng(seed), noise

    def act(self) -> np.ndarray:
        """The next action, f32[4] in [-1, 1]."""
        action = np.asarray(self._policy.get_action(self._world.observation), np.float64)
        if self._noise:
            action = np.clip(action, -1, 1) + self._rng.normal(0.0, self._noise, 4)
        return np.clip(action, -1, 1).astype(np.float32)


@functools.cache
def _classes() -> dict:
    """Name of the task -> its class, with the goal in what the expert sees."""
    warnings.filterwarnings("ignore", "Constant.s. may be too high", module="metaworld")  # experts count on clipping
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as classes

    return {name.removesuffix("-goal-observable"): made for name, made in classes.items()}


def _make(task: str):
    """The package's environment, which places its objects by its own seed instead of once, or by NumPy's global one."""
    sim = _classes()[task](seed=0)
    sim._freeze_rand_vec = False
    sim.seeded_rand_vec = True
    sim.model.cam_pos[sim.model.camera(CAMERA).id] = CAMERA_AT
    return sim
