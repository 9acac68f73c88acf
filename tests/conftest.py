"""Shared fixtures. Eight CPU devices stand in for a node of accelerators; tests that want one use a mesh of one."""

import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


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
