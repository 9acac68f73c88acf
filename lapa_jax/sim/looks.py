"""How a scene looks: colours, light, camera and table of an episode, and patches that drift over the background.

Nothing here touches the physics: colours and cameras are changed in the model, stripes and patches are drawn only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lapa_jax.sim.options import LOOKS

BRIGHTNESS = (0.75, 1.25)  # times what the scene has
TINT = 0.08  # each channel of the light
SHADE = 0.07  # each channel of an object's colour: red stays red
CAMERA_SHIFT = 0.02  # metres, each axis
CAMERA_TURN = 0.02  # radians about each axis
LIGHT_TURN = 0.3  # added to each component of a light's direction
STRIPES, PATCHES = 6, 8
LAYER = 3e-4  # metres between the table, the stripes and the patches


@dataclass(frozen=True)
class Stage:
    """What may be varied in a scene.

    Attributes:
      centre, half: the rectangle on which stripes lie and patches drift, (x, y) in metres. top: its height.
      ground: geoms that may have any pale colour. objects: geoms whose colour only changes its shade.
      materials: textured materials that are tinted.
    """

    centre: tuple[float, float]
    half: tuple[float, float]
    top: float
    ground: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    materials: tuple[str, ...] = ()


class Shape(NamedTuple):
    """Something drawn without being in the model: a flat "disc" (radius, half height, 0) or "box" (half sizes)."""

    kind: str
    size: np.ndarray
    at: np.ndarray
    rgba: np.ndarray


class Look:
    """The look of a model's episodes. Without `varied` and `moving` the model stays as it is."""

    def __init__(self, model, camera: str, stage: Stage, varied: bool = False, moving: bool = False):
        self._model, self._stage, self._varied, self._moving = model, stage, varied, moving
        self._camera = model.camera(camera).id
        self._geoms = [[model.geom(name).id for name in names] for names in (stage.ground, stage.objects)]
        self._materials = [model.material(name).id for name in stage.materials]
        self._start = [array.copy() for array in self._arrays()]

    def _arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays of the model that change, as views."""
        model = self._model
        colours = model.geom_rgba, model.mat_rgba
        lights = model.vis.headlight.ambient, model.vis.headlight.diffuse, model.light_diffuse, model.light_dir
        return *colours, *lights, model.cam_pos[self._camera], model.cam_quat[self._camera]

    def reset(self, seed: int) -> None:
        """Draws the look of the episode of `seed`."""
        rng = np.random.default_rng([seed, LOOKS])
        self._stripes: list[Shape] = []
        if self._varied:
            self._vary(rng)
            self._stripes = self._draw_stripes(rng)
        if self._moving:
            self._colours = np.column_stack([rng.uniform(0, 1, (PATCHES, 3)), rng.uniform(0.5, 0.9, PATCHES)])
            self._radii = rng.uniform(0.08, 0.22, PATCHES) * min(self._stage.half)
            self._speeds = rng.uniform(0.4, 1.6, (PATCHES, 2))  # radians a second
            self._phases = rng.uniform(-np.pi, np.pi, (PATCHES, 2))

    def shapes(self, time: float) -> list[Shape]:
        """What is drawn besides the model, `time` seconds into the episode."""
        if not self._moving:
            return self._stripes
        stage = self._stage
        at = np.array(stage.centre) + np.array(stage.half) * np.sin(self._speeds * time + self._phases)
        patches = [
            Shape("disc", np.array([radius, LAYER / 4, 0.0]), np.array([*place, stage.top + 2 * LAYER]), colour)
            for radius, place, colour in zip(self._radii, at, self._colours)
        ]
        return [*self._stripes, *patches]

    def _vary(self, rng: np.random.Generator) -> None:
        arrays = self._arrays()
        for array, start in zip(arrays, self._start):
            array[:] = start
        colours, materials, ambient, diffuse, lights, directions, place, turn = arrays
        ground, objects = self._geoms
        colours[ground, :3] = rng.uniform(0.55, 0.95, (len(ground), 1)) + rng.uniform(-0.1, 0.1, (len(ground), 3))
        colours[objects, :3] += rng.uniform(-SHADE, SHADE, (len(objects), 3))
        materials[self._materials, :3] *= rng.uniform(0.6, 1.0, (len(self._materials), 3))
        light = rng.uniform(*BRIGHTNESS) * (1 + rng.uniform(-TINT, TINT, 3))
        for array in (ambient, diffuse, lights):
            array[:] = array * light
        directions += rng.uniform(-LIGHT_TURN, LIGHT_TURN, directions.shape)
        place += rng.uniform(-CAMERA_SHIFT, CAMERA_SHIFT, 3)
        turn[:] = _turned(turn, rng.uniform(-CAMERA_TURN, CAMERA_TURN, 3))
        np.clip(colours, 0, 1, out=colours)

    def _draw_stripes(self, rng: np.random.Generator) -> list[Shape]:
        """Stripes over the table, all along x or all along y."""
        stage, across = self._stage, rng.integers(2)
        stripes = []
        for place in rng.uniform(-0.8, 0.8, STRIPES):
            half = np.array([*stage.half, LAYER / 4])
            half[across] *= rng.uniform(0.03, 0.1)
            at = np.array([*stage.centre, stage.top + LAYER])
            at[across] += place * stage.half[across]
            stripes.append(Shape("box", half, at, np.array([*rng.uniform(0.4, 1.0, 3), rng.uniform(0.2, 0.6)])))
        return stripes


def _turned(quaternion: np.ndarray, by: np.ndarray) -> np.ndarray:
    """A unit quaternion [w, x, y, z], turned about its own axes by a small rotation vector."""
    w, v = quaternion[0], quaternion[1:]
    half = by / 2
    turned = np.array([w - v @ half, *(v + w * half + np.cross(v, half))])
    return turned / np.linalg.norm(turned)
