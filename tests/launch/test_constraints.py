"""The versions that CI installs: one for each package that we name, within its range."""

import ast
import re

import pytest
from packaging.requirements import Requirement


def pinned(root, python: str) -> dict[str, str]:
    lines = (root / "launch" / f"constraints-{python}.txt").read_text().splitlines()
    pins = [line.partition("==")[::2] for line in lines if line and not line.startswith("#")]
    assert all(name and version for name, version in pins)
    return {_normal(name): version for name, version in pins}


def named(root) -> list[Requirement]:
    """requirements.txt, and the extras that launch/test.sh installs."""
    lines = (root / "requirements.txt").read_text().splitlines()
    names = [line for line in lines if line.strip() and not line.startswith("#")]
    tree = ast.parse((root / "setup.py").read_text())
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    (call,) = (node for node in calls if getattr(node.func, "id", "") == "setup")
    extras = ast.literal_eval(next(keyword.value for keyword in call.keywords if keyword.arg == "extras_require"))
    (asked,) = re.findall(r'install_venv "\[(.*)\]"', (root / "launch" / "test.sh").read_text())
    return [Requirement(text) for text in [*names, *(text for name in asked.split(",") for text in extras[name])]]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_package_is_pinned_within_its_range(root, python):
    pins = pinned(root, python)
    for requirement in named(root):
        assert requirement.specifier.contains(pins[_normal(requirement.name)]), requirement


def test_packages_that_read_others_files_have_upper_bounds(root):
    """What parses files of strangers changes its API and its limits between major versions."""
    ranges = {_normal(requirement.name): str(requirement.specifier) for requirement in named(root)}
    for name in ("av", "pillow", "pyarrow", "h5py", "simplejpeg", "array-record", "msgpack", "safetensors", "aiohttp"):
        assert "<" in ranges[name], name


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
