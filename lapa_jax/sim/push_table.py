"""A planar push-table in MuJoCo: eight blocks, a round pusher, one instruction an episode.

A cheap cousin of Language Table (Lynch et al. 2022, arXiv:2210.06407): some 3,000 steps and 1,000 images a second on
one core. Everything slides in the plane (each block has x, y and a turn), friction with the table is joint friction.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.sim.env import Simulator
from lapa_jax.sim.looks import Look, Stage
from lapa_jax.sim.options import HELP, SPLITS, check_options, pick_wording
from lapa_jax.sim.push_table_expert import Expert
from lapa_jax.sim.push_table_tasks import BLOCKS, FAMILIES, WORDS, Task, draw_task
from lapa_jax.sim.rendering import Camera, load_mujoco

FPS = 10.0
ACTION_LIMIT = 0.03
"""Metres that one action may move the pusher along each axis."""

MAX_STEPS = 150
"""An episode that has not succeeded by then has failed."""

PUSHER_RANGE = 0.26  # metres, each axis
BLOCK_RANGE = 0.26  # metres, each axis; the table reaches to 0.3
TIMESTEP = 0.005
START_RANGE = 0.19  # blocks and pusher start within this, metres
START_GAP = 0.085  # and at least so far apart: the longest bar reaches 0.036 from its centre

COLOURS = {"red": "0.85 0.12 0.12", "green": "0.12 0.65 0.2", "blue": "0.12 0.3 0.9", "yellow": "0.95 0.8 0.1"}
CAMERA = "front"
STAGE = Stage(
    centre=(0.0, 0.0),
    half=(0.3, 0.3),
    top=-0.001,
    ground=("floor", "table"),
    objects=tuple(f"block{i}" for i in range(len(BLOCKS))),
)
ORDER = (0, 4, 6, 2, 3, 7, 1, 5)
"""Which blocks stay when there are fewer: one of each colour first, then those whose shapes differ most from the one of
their colour, which 64 pixels show: a bar beside a triangle or a disc. Of the first three one pair is held out."""


class Robot(NamedTuple):
    """A robot as it is drawn, on its table and by its camera; how it moves and what its actions mean never changes.

    Attributes: tip, arm, table: colours. reach: where the arm ends, from the tip, in metres. width: of the arm.
    camera: place and axes of the camera.
    """

    tip: str
    arm: str
    table: str
    reach: str
    width: float
    camera: str


ROBOTS = {
    "purple": Robot("0.1 0.1 0.12", "0.45 0.2 0.55", "0.8 0.77 0.72", "0 0.1 0.2", 0.022,
                    'pos="0 -0.46 0.82" xyaxes="1 0 0 0 0.872 0.489"'),
    "orange": Robot("0.95 0.95 0.95", "0.9 0.45 0.1", "0.45 0.52 0.5", "-0.16 -0.04 0.2", 0.034,
                    'pos="0.4 -0.23 0.82" xyaxes="0.5 0.866 0 -0.755 0.436 0.489"'),
}  # fmt: skip
"""The second one's camera stands 60 degrees further round the table."""

ABSENT = 9.0  # metres, each axis: where a block is said to be that is not on the table
SHAPES = {
    "cube": 'type="box" size="0.02 0.02 0.02"',
    "disc": 'type="cylinder" size="0.022 0.02"',
    "bar": 'type="box" size="0.034 0.012 0.02"',
    "triangle": 'type="mesh" mesh="triangle"',
}


class Env(Simulator):
    """The push-table. Actions f32[2] move the pusher's set-point by (x, y) metres; larger ones are clipped.

    `split` "unseen" asks for combinations (a block and its place, two blocks) that "seen" never asks for, see
    `Task.held_out`; the families are in both.
    The same seed and family give the same episode, bit for bit, in every process on the same machine.
    """

    packages, extra = ("mujoco",), "sim"
    help = {**HELP, "blocks": f"of the push-table: how many blocks are on it, 3 to {len(BLOCKS)} (default)",
            "robot": "of the push-table: purple (default), or orange, with another arm, table and camera"}  # fmt: skip
    tasks = tuple(FAMILIES)
    fps = FPS
    max_steps = MAX_STEPS
    action_low = np.full(2, -ACTION_LIMIT, np.float32)
    action_high = np.full(2, ACTION_LIMIT, np.float32)
    additive = True

    def __init__(
        self,
        size: int = 128,
        split: str = "all",
        wordings: str = "one",
        varied: bool = False,
        moving: bool = False,
        blocks: int = len(BLOCKS),
        robot: str = "purple",
    ):
        """`size` is the edge of the square images in pixels; `blocks` says how many there are, the first of `ORDER`;
        `robot` is one of `ROBOTS`; the rest as in `lapa_jax.sim.options`. No GL is needed until the first `observe`.
        """
        check_options(size, split, wordings)
        if not 3 <= blocks <= len(BLOCKS):
            raise UserError(f"{blocks} blocks: there can be 3 to {len(BLOCKS)} on the table")
        if robot not in ROBOTS:
            raise UserError(f"the push-table has no robot '{robot}'{did_you_mean(robot, ROBOTS)}")
        self._present = sorted(ORDER[:blocks])
        self._mujoco = load_mujoco()
        self.size, self._held_out, self.wordings = size, SPLITS[split], wordings
        self.model = self._mujoco.MjModel.from_xml_string(_scene(size, self._present, ROBOTS[robot]))
        self.data = self._mujoco.MjData(self.model)
        stage = dataclasses.replace(STAGE, objects=tuple(f"block{i}" for i in self._present))
        self._look = Look(self.model, CAMERA, stage, varied, moving)
        self.task: Task | None = None
        self._substeps = round(1 / FPS / TIMESTEP)

    @functools.cached_property
    def _camera(self) -> Camera:
        return Camera(self.model, CAMERA, self.size)

    def reset(self, seed: int, task: str | None = None) -> None:
        """Starts an episode: draws the layout and an instruction of family `task` (None: any family) from `seed`."""
        if task is not None and task not in FAMILIES:
            raise UserError(f"the push-table has no task '{task}'{did_you_mean(task, FAMILIES)}")
        rng = np.random.default_rng(seed)
        family = task or self.tasks[rng.integers(len(self.tasks))]
        self.task, places, angles = self._draw(rng, family)
        self.task = self.task.worded(pick_wording(self.wordings, WORDS[family], seed))
        self._look.reset(seed)
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:-2].reshape(-1, 3)[:] = np.column_stack([places[:-1], angles])
        self.data.qpos[-2:] = self._setpoint = places[-1]
        self.data.ctrl[:] = self._setpoint
        self._mujoco.mj_forward(self.model, self.data)

    def _draw(self, rng: np.random.Generator, family: str) -> tuple[Task, np.ndarray, np.ndarray]:
        """A task of the split for n blocks, with the places f64[n + 1, 2] and angles f64[n] that it was drawn for."""
        present = {*self._present, None}
        while True:
            places, angles = _draw_layout(rng, len(self._present))
            task = draw_task(rng, family, self._of_all(places[:-1]))
            if task is None or not {task.block, task.other} <= present:
                continue
            if self._held_out in (None, task.held_out()):
                return task, places, angles

    @property
    def instruction(self) -> str:
        """What the policy is asked to do in this episode."""
        return self._started().instruction

    @property
    def blocks(self) -> np.ndarray:
        """Positions of the blocks, f64[8, 2] in metres; far away those that are absent."""
        return self._of_all(self.data.qpos[:-2].reshape(-1, 3)[:, :2])

    def _of_all(self, places: np.ndarray) -> np.ndarray:
        """Positions of all blocks, f64[8, 2], from those of the n that are on the table."""
        positions = np.full((len(BLOCKS), 2), ABSENT)
        positions[self._present] = places
        return positions

    @property
    def angles(self) -> np.ndarray:
        """Turns of the n blocks on the table, f64[n] in radians."""
        return self.data.qpos[:-2].reshape(-1, 3)[:, 2].copy()

    @property
    def pusher(self) -> np.ndarray:
        """Position of the pusher, f64[2] in metres."""
        return self.data.qpos[-2:].copy()

    def observe(self) -> dict[str, np.ndarray]:
        """{"image": uint8[size, size, 3] where `images` says so, "state": f32[2], the pusher's place in metres}."""
        self._started()
        state = {"state": self.pusher.astype(np.float32)}
        if not self.images:
            return state
        return {"image": self._camera.render(self.data, self._look.shapes(self.data.time)), **state}

    def step(self, action: np.ndarray) -> None:
        """Moves on by one action f32[2] (metres), 1 / fps seconds."""
        self._started()
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise UserError(f"the push-table takes actions of two finite numbers (metres in x and y), not {action}")
        moved = self._setpoint + np.clip(action, -ACTION_LIMIT, ACTION_LIMIT)
        self._setpoint = np.clip(moved, -PUSHER_RANGE, PUSHER_RANGE)
        self.data.ctrl[:] = self._setpoint
        self._mujoco.mj_step(self.model, self.data, self._substeps)

    def success(self) -> bool:
        """Whether the instruction is fulfilled now."""
        return self._started().success(self.blocks)

    def expert(self, seed: int, noise: float = 0.0) -> "PushTableExpert":
        """A scripted policy that solves every task from the simulator; `noise` is a standard deviation in metres."""
        return PushTableExpert(self, Expert(seed, noise))

    def close(self) -> None:
        """Frees the GL context, if one was made."""
        if camera := self.__dict__.pop("_camera", None):
            camera.close()

    def _started(self) -> Task:
        if self.task is None:
            raise UserError("call reset(seed) before using the push-table")
        return self.task


class PushTableExpert:
    """Feeds an `Expert` from the state of an `Env`."""

    def __init__(self, table: Env, expert: Expert):
        self._table, self._expert = table, expert

    def act(self) -> np.ndarray:
        """The next action, f32[2] in metres, within the action limit."""
        action = self._expert.act(self._table.pusher, self._table.blocks, self._table.task)
        return np.clip(action, -ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)


def _draw_layout(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of n blocks and, last, of the pusher, f64[n + 1, 2] in metres, none too near another; angles f64[n]."""
    places: list[np.ndarray] = []
    while len(places) <= count:
        place = rng.uniform(-START_RANGE, START_RANGE, 2)
        if all(np.linalg.norm(place - p) > START_GAP for p in places):
            places.append(place)
    return np.array(places), rng.uniform(-np.pi, np.pi, count)


def _block(i: int, colour: str, shape: str) -> str:
    slide = f'range="-{BLOCK_RANGE} {BLOCK_RANGE}" limited="true" frictionloss="0.15" damping="0.6"'
    return f"""
      <body name="block{i}" pos="0 0 0.02">
        <joint type="slide" axis="1 0 0" {slide}/>
        <joint type="slide" axis="0 1 0" {slide}/>
        <joint type="hinge" axis="0 0 1" frictionloss="0.002" damping="0.004"/>
        <geom name="block{i}" {SHAPES[shape]} rgba="{COLOURS[colour]} 1" mass="0.05" friction="0.3"/>
      </body>"""


def _scene(size: int, present: list[int], robot: Robot) -> str:
    """The model as MJCF, with an offscreen buffer of `size` pixels.

    The last two coordinates are the pusher's; its arm is drawn but touches nothing.
    """
    blocks = "".join(_block(i, *BLOCKS[i]) for i in present)
    corners = ("0.028 0", "-0.016 0.026", "-0.016 -0.026")
    triangle = " ".join(f"{corner} {z}" for z in (-0.02, 0.02) for corner in corners)
    no_contact = 'contype="0" conaffinity="0"'
    return f"""
<mujoco>
  <option timestep="{TIMESTEP}" gravity="0 0 0" integrator="implicitfast"/>
  <visual>
    <global offwidth="{size}" offheight="{size}"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="0.5 0.5 0.5" diffuse="0.45 0.45 0.45" specular="0 0 0"/>
  </visual>
  <asset><mesh name="triangle" vertex="{triangle}"/></asset>
  <worldbody>
    <camera name="{CAMERA}" {robot.camera} fovy="38"/>
    <geom name="floor" type="plane" size="3 3 0.1" pos="0 0 -0.03" rgba="0.35 0.37 0.4 1" {no_contact}/>
    <geom name="table" type="box" size="0.3 0.3 0.01" pos="0 0 -0.011" rgba="{robot.table} 1" {no_contact}/>{blocks}
      <body name="pusher" pos="0 0 0.04">
        <joint name="pusher_x" type="slide" axis="1 0 0" damping="2"/>
        <joint name="pusher_y" type="slide" axis="0 1 0" damping="2"/>
        <geom name="pusher" type="cylinder" size="0.011 0.04" rgba="{robot.tip} 1" mass="0.2" friction="0.3"/>
        <geom type="capsule" fromto="0 0 0.06 {robot.reach}" size="{robot.width}" rgba="{robot.arm} 1" mass="0"
              {no_contact}/>
      </body>
  </worldbody>
  <actuator>
    <position joint="pusher_x" kp="120" kv="12"/>
    <position joint="pusher_y" kp="120" kv="12"/>
  </actuator>
</mujoco>"""
