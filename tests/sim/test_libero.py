"""The mapping of LIBERO, on a stand-in of its package: that is heavy, and its assets are not in it."""

import importlib.util
import sys

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.sim.env import make

pytest.importorskip("gymnasium")
FOLDERS = "def get_libero_path(kind): return '{}/' + kind"
LIBERO = '''
import numpy as np

class OffScreenRenderEnv:
    """The interface of hf-libero 0.1.4: gym before version 0.26, images upside down, turns as quaternions."""

    def __init__(self, bddl_file_name, camera_heights, camera_widths):
        assert open(bddl_file_name).read() == "(define)"
        self.shape = camera_heights, camera_widths, 3

    def seed(self, seed):
        self.start = seed

    def reset(self):
        self.count = self.start
        return self.look()

    def step(self, action):
        assert len(action) == 7
        self.count += 1
        return self.look(), 0.0, self.check_success(), {}

    def check_success(self):
        return self.count >= 13

    def look(self):
        image = np.zeros(self.shape, np.uint8)
        image[0, 0] = self.count
        return {"agentview_image": image, "robot0_eye_in_hand_image": image, "robot0_eef_pos": np.arange(3.0),
                "robot0_eef_quat": np.array([0.1, -0.7, 0.5, -0.5]), "robot0_gripper_qpos": np.array([0.04, -0.04])}

    def close(self):
        pass
'''


@pytest.fixture
def libero(tmp_path, monkeypatch):
    """A stand-in for LIBERO's package, whose assets are absent here."""
    from lapa_jax.sim.maps import libero

    for folder, text in {"libero": "", "libero/libero": "", "libero/libero/envs": LIBERO}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(text)
    (tmp_path / "libero/libero/__init__.py").write_text(FOLDERS.format(tmp_path))
    (tmp_path / "bddl_files/libero_10").mkdir(parents=True)
    (tmp_path / "bddl_files/libero_10/KITCHEN_SCENE10_close_the_top_drawer.bddl").write_text("(define)")
    monkeypatch.setattr(libero.Map, "packages", ())
    monkeypatch.syspath_prepend(tmp_path)
    yield libero
    for module in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        del sys.modules[module]


def test_the_mapping_of_libero_turns_images_and_has_the_published_state(libero):
    from scipy.spatial.transform import Rotation

    env = make("gym:libero_10", size=32)
    assert (env.fps, env.max_steps, env.cameras, len(env.action_low)) == (20.0, 520, 1, 7)
    env.reset(1)
    assert env.instruction == "close the top drawer" and not env.success()
    seen = env.observe()
    assert seen["image"][-1, -1, 0] == 11 and not seen["image"][0].any(), "turned, ten steps after the reset"
    turns = Rotation.from_quat([0.1, -0.7, 0.5, -0.5]), Rotation.from_rotvec(seen["state"][3:6])
    assert (turns[0] * turns[1].inv()).magnitude() < 1e-6
    np.testing.assert_allclose(seen["state"][[0, 1, 2, 6, 7]], [0, 1, 2, 0.04, -0.04], atol=1e-7)
    for wanted in (False, True):
        env.step(np.zeros(7))
        assert env.success() == wanted


def test_libero_is_refused_with_the_reason(libero, tmp_path, monkeypatch):
    monkeypatch.setattr(libero.Map, "packages", ("hf-libero",))
    if importlib.util.find_spec("hf_libero") is None:
        with pytest.raises(UserError, match="needs hf-libero, which is not installed; run: pip install hf-libero"):
            make("gym:libero_spatial")
    monkeypatch.setattr(libero.Map, "packages", ())
    (tmp_path / "libero/libero/__init__.py").write_text("raise EOFError  # it asks for its folders at first")
    with pytest.raises(UserError, match="LIBERO is not set up; run once: python -c 'import libero.libero'"):
        make("gym:libero_goal")
    for module in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        del sys.modules[module]
    (tmp_path / "libero/libero/__init__.py").write_text(FOLDERS.format(tmp_path))
    (tmp_path / "libero/libero/envs/__init__.py").write_text("def OffScreenRenderEnv(**how): open('assets/scene.xml')")
    with pytest.raises(UserError, match="LIBERO's assets are absent .assets/scene.xml."):
        make("gym:libero_10", size=48)
