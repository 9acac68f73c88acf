"""LIBERO (Liu et al. 2023, arXiv:2306.03310), as the package hf-libero has it: `--env gym:libero_spatial`.

Actions f32[7]: the hand's displacement and turn in units of the controller, and the gripper (-1 opens, 1 closes). State
f32[8]: the hand's position in m, its turn as an axis times the angle in rad, the fingers' positions in m. Images are
turned by 180 degrees, as in the published data. Objects lie where the seed puts them within each task's regions; the 50
fixed beginnings of the benchmark are pickles, which are not read.
"""

import pathlib
import re

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.sim.gym_map import GymMap

MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Suite -> length of an episode, as in OpenVLA's evaluation (Kim et al. 2024, arXiv:2406.09246)."""


class Map(GymMap):
    """The five suites; a task is the name of its file in the package."""

    envs = tuple(MAX_STEPS)
    packages = ("hf-libero", "robosuite", "mujoco")
    image = "agentview"  # or ("agentview", "wrist"), for policies with two cameras
    state = "state"
    success = {"info": "success"}
    instruction = {"info": "instruction"}
    action = {"low": [-1] * 7, "high": [1] * 7}
    fps = 20

    def __init__(self, name: str):
        super().__init__(name)
        self.max_steps = MAX_STEPS.get(name)

    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in (_folder("bddl_files") / self.name).glob("*.bddl")))

    def make_env(self, task: str, size: int) -> "Task":
        return Task(_folder("bddl_files") / self.name / f"{task}.bddl", size)


class Task:
    """LIBERO's environment, which has the interface of gym before version 0.26, with that of gymnasium."""

    def __init__(self, file: pathlib.Path, size: int):
        from libero.libero.envs import OffScreenRenderEnv

        # As in the published data, the instruction is the file's name and not the text in the file.
        self._instruction = re.sub(r"^[A-Z_]+SCENE\d+_", "", file.stem).replace("_", " ")
        try:
            self._env = OffScreenRenderEnv(bddl_file_name=str(file), camera_heights=size, camera_widths=size)
        except FileNotFoundError as error:
            hint = "hf-libero downloads them from huggingface.co/datasets/lerobot/libero-assets"
            raise UserError(f"LIBERO's assets are absent ({error.filename}); {hint}") from None

    def reset(self, seed: int) -> tuple[dict, dict]:
        self._env.seed(seed)
        observation = self._env.reset()
        for _ in range(10):  # objects fall into place
            observation, *_ = self._env.step([0.0] * 6 + [-1.0])
        return _read(observation), self._info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        observation, reward, done, _ = self._env.step(action)
        return _read(observation), reward, done, False, self._info()

    def close(self) -> None:
        self._env.close()

    def _info(self) -> dict:
        return {"success": self._env.check_success(), "instruction": self._instruction}


def _read(observation: dict) -> dict[str, np.ndarray]:
    *axis, cosine = observation["robot0_eef_quat"]  # x, y, z, w
    sine = np.linalg.norm(axis)
    turn = np.asarray(axis) * (2 * np.arctan2(sine, cosine) / sine if sine > 1e-9 else 0.0)
    state = np.concatenate([observation["robot0_eef_pos"], turn, observation["robot0_gripper_qpos"]])
    views = {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
    return {name: observation[key][::-1, ::-1] for name, key in views.items()} | {"state": state}


def _folder(kind: str) -> pathlib.Path:
    try:
        from libero.libero import get_libero_path
    except EOFError:  # its first import asks for its folders
        raise UserError("LIBERO is not set up; run once: python -c 'import libero.libero'") from None
    return pathlib.Path(get_libero_path(kind))
