"""Shared fixtures. Eight CPU devices stand in for a node of accelerators; tests that want one use a mesh of one."""

import os
import pathlib
import tempfile

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Many tests compile the same small programs; commands that tests start share them too.
_CACHE = tempfile.TemporaryDirectory(prefix="lapa_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The size of the random tests of damaged files."""
    parser.addoption("--mutations", type=int, default=200, help="damaged files a format in test_damage.py")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_of_a_module():
    """Lets go of them when its tests are over: the whole suite compiles gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with reference files and real data that may lie beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder with reference data does not lie beside the project")
    return SHARED
