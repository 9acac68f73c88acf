"""What the simulator tests need, or the reason why they are skipped."""

import importlib.util

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.sim.rendering import load_mujoco


@pytest.fixture(scope="session")
def mujoco():
    """The mujoco module, imported as the package imports it."""
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed: pip install -e '.[sim]'")
    return load_mujoco()


@pytest.fixture(scope="session")
def gl(mujoco):
    """Skips where nothing can be rendered."""
    from lapa_jax.sim.push_table import Env

    env = Env(16)
    env.reset(0)
    try:
        env.observe()
    except UserError as error:
        pytest.skip(str(error))
    finally:
        env.close()
