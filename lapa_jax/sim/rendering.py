"""MuJoCo as an optional dependency: importing it with a clear error, and a fast offscreen camera."""

import ctypes.util
import importlib.metadata
import os
import sys
import weakref
from collections.abc import Iterable

import numpy as np

from lapa_jax.core.errors import UserError

UPRIGHT = np.eye(3).ravel()
NO_GL = (
    "rendering needs an OpenGL driver: install EGL (Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri), "
    "or OSMesa (libosmesa6) and set MUJOCO_GL=osmesa"
)


def load_mujoco():
    """Imports and returns `mujoco`, set to render without a screen where that is possible.

    Physics works without any GL driver. The choice of MUJOCO_GL that the user made is kept.

    Raises:
      UserError: mujoco is not installed, or MUJOCO_GL asks for a driver that is not there.
    """
    if sys.platform.startswith("linux") and "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules:
        os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "disabled"
    try:
        import mujoco
    except ModuleNotFoundError:
        raise UserError("this needs mujoco, which is not installed; run: pip install 'lapa_jax[sim]'") from None
    except Exception as error:  # PyOpenGL fails in many ways: ImportError, AttributeError, OSError, ...
        if (core := _version("mujoco-core")) and core != _version("mujoco"):
            raise UserError(
                f"mujoco {_version('mujoco')} does not import because mujoco-core {core} was left behind by a newer "
                "MuJoCo; run: pip uninstall -y mujoco mujoco-core mujoco-studio, then install the extra again"
            ) from error
        wanted = os.environ.get("MUJOCO_GL", "")
        raise UserError(f"mujoco does not import with MUJOCO_GL='{wanted}' ({error}); {NO_GL}") from error
    return mujoco


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Camera:
    """One fixed camera of a model, without shadows, reflections and multisampling.

    On software GL that is 10 times faster than MuJoCo's defaults. Images are the same from run to run on one machine;
    another GL driver may round a few pixels differently.
    """

    def __init__(self, model, name: str, size: int):
        """Makes the GL context for square images of `size` pixels; sets the model's buffer and quality."""
        mujoco = load_mujoco()
        if os.environ.get("MUJOCO_GL", "").lower() in ("disable", "disabled", "off", "false", "0"):
            raise UserError(f"no GL driver is in use (MUJOCO_GL={os.environ['MUJOCO_GL']}); {NO_GL}")
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # the EGL and GLFW back ends raise whatever the driver made of it
            raise UserError(f"no image can be rendered here ({error}); {NO_GL}") from error
        self._close = weakref.finalize(self, self._renderer.close)  # at the latest while GL is still there to be asked
        self._model, self._name, self._update_view = model, name, mujoco.mj_camlight
        self._kinds = {"disc": int(mujoco.mjtGeom.mjGEOM_CYLINDER), "box": int(mujoco.mjtGeom.mjGEOM_BOX)}
        self._init_geom = mujoco.mjv_initGeom
        flags = mujoco.mjtRndFlag
        self._off = (int(flags.mjRND_SHADOW), int(flags.mjRND_REFLECTION), int(flags.mjRND_HAZE), int(flags.mjRND_FOG))

    def render(self, data, shapes: Iterable = ()) -> np.ndarray:
        """The image of `data`, with `Shape`s of sim/looks.py: uint8[size, size, 3], owned by the caller."""
        self._update_view(self._model, data)  # the camera may have been moved since the last step
        self._renderer.update_scene(data, self._name)
        scene = self._renderer.scene
        for flag in self._off:
            scene.flags[flag] = 0
        for shape in shapes:
            rgba = np.asarray(shape.rgba, np.float32)
            self._init_geom(scene.geoms[scene.ngeom], self._kinds[shape.kind], shape.size, shape.at, UPRIGHT, rgba)
            scene.ngeom += 1
        return self._renderer.render().copy()

    def close(self) -> None:
        """Frees the GL context."""
        self._close()
