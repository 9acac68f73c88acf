"""MuJoCo as an optional dependency: importing it with a clear error, and a fast offscreen camera."""

import ctypes.util
import os
import sys

import numpy as np

from lapa_jax.core.errors import UserError

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
        wanted = os.environ.get("MUJOCO_GL", "")
        raise UserError(f"mujoco does not import with MUJOCO_GL='{wanted}' ({error}); {NO_GL}") from error
    return mujoco


class Camera:
    """One fixed camera of a model, without shadows, reflections and multisampling.

    On software GL that is 10 times faster than MuJoCo's defaults. Pictures are the same from run to run on one machine;
    another GL driver may round a few pixels differently.
    """

    def __init__(self, model, name: str, size: int):
        """Makes the GL context. `size`, the edge of the picture in pixels, must fit the model's offscreen buffer."""
        mujoco = load_mujoco()
        if os.environ.get("MUJOCO_GL", "").lower() in ("disable", "disabled", "off", "false", "0"):
            raise UserError(f"no GL driver is in use (MUJOCO_GL={os.environ['MUJOCO_GL']}); {NO_GL}")
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # the EGL and GLFW back ends raise whatever the driver made of it
            raise UserError(f"no picture can be rendered here ({error}); {NO_GL}") from error
        self._name = name
        flags = mujoco.mjtRndFlag
        self._off = (int(flags.mjRND_SHADOW), int(flags.mjRND_REFLECTION), int(flags.mjRND_HAZE), int(flags.mjRND_FOG))

    def render(self, data) -> np.ndarray:
        """The picture of the state `data`: uint8[size, size, 3], owned by the caller."""
        self._renderer.update_scene(data, self._name)
        for flag in self._off:
            self._renderer.scene.flags[flag] = 0
        return self._renderer.render().copy()

    def close(self) -> None:
        """Frees the GL context."""
        self._renderer.close()
