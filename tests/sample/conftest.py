"""The simulator's fixtures, for the test that makes the sample again."""

from tests.sim.conftest import gl, mujoco  # noqa: F401
