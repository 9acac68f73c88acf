"""The page on adding a simulator, run as it stands."""

import json
import os
import subprocess
import sys

import pytest

from lapa_jax.data.shards.step_shards import StepShards
from tests.docs_code import blocks, write_files


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """A folder with the page's files, in which its commands have run."""
    page, folder = root / "docs/howto/add_a_simulator.md", tmp_path_factory.mktemp("howto")
    assert "reach.py" in write_files(page, folder)
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    for block in blocks(page):
        if block.language != "bash" or "--env reach.py" not in block.text:
            continue
        for command in block.text.splitlines():
            python, script, *arguments = command.split()
            assert python == "python"
            command = [sys.executable, "-B", str(root / script), *arguments]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return folder


def test_the_simulator_of_the_page_is_evaluated(folder):
    metrics = json.loads((folder / "runs/reach_expert/metrics.json").read_text())["metrics"]
    assert metrics["success_rate"] == 1.0 and metrics["success_rate_random"] < 0.5
    pinned = json.loads((folder / "runs/reach_expert/expert/rollouts.json").read_text())
    assert list(pinned["simulator"]) == ["reach.py"], "an edited file gives other episodes"


def test_the_simulator_of_the_page_is_recorded(folder):
    steps = StepShards(folder / "data/reach", "train")
    assert len(steps.episodes) > 10 and steps.image(0).shape == (64, 64, 3)
    assert steps.text(0) in ("move to the red disc", "move to the blue disc")
