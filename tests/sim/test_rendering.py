"""What a user without mujoco or without a GL driver is told."""

import subprocess
import sys

import pytest

RENDER = "from lapa_jax.sim.push_table import Env; env = Env(16); env.reset(0); env.step([0.01, 0]); env.observe()"


def run(program: str, root, **environment) -> str:
    """The last line that a program prints on stderr."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(root), **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_without_mujoco_the_extra_is_named(root):
    line = run("import sys; sys.modules['mujoco'] = None\n" + RENDER, root)
    assert "UserError" in line and "pip install 'lapa_jax[sim]'" in line


def test_what_a_newer_mujoco_left_behind_is_named(root, tmp_path):
    """pip replaces the first of MuJoCo 4's packages by an older version and leaves the others' files in its folder."""
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco/__init__.py").write_text("raise OSError('libmujoco.so.4.0.0')")
    for package, version in (("mujoco", "3.3.0"), ("mujoco_core", "4.0.0")):
        (tmp_path / f"{package}-{version}.dist-info").mkdir()
        about = f"Name: {package}\nVersion: {version}\n"
        (tmp_path / f"{package}-{version}.dist-info/METADATA").write_text(about)
    line = run(RENDER, root, PYTHONPATH=f"{root}:{tmp_path}")
    assert "UserError: mujoco 3.3.0 does not import because mujoco-core 4.0.0 was left behind" in line


@pytest.mark.usefixtures("mujoco")
def test_without_gl_physics_works_and_rendering_says_what_to_install(root):
    line = run(RENDER, root, MUJOCO_GL="disabled")
    assert "UserError" in line and "MUJOCO_GL=disabled" in line and "libegl1" in line


@pytest.mark.usefixtures("mujoco")
def test_an_unknown_driver_is_refused(root):
    line = run(RENDER, root, MUJOCO_GL="vulcan")
    assert "UserError" in line and "MUJOCO_GL='vulcan'" in line
