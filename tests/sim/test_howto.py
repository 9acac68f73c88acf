"""The page on adding a simulator, run as it stands."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from lapa_jax.data.shards.step_shards import StepShards
from tests.docs_code import blocks, write_files


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """A folder with the page's files."""
    folder = tmp_path_factory.mktemp("howto")
    files = write_files(root / "docs/howto/add_a_simulator.md", folder)
    assert files == ["reach.py", "mountain_car.yaml", "two_cameras.py"]
    return folder


def run(root, folder, env: str) -> None:
    """Runs the page's commands with `--env env` in the folder."""
    environment, ran = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}, 0
    for block in blocks(root / "docs/howto/add_a_simulator.md"):
        for line in block.text.splitlines():
            if block.language == "bash" and f"--env {env} " in line:
                python, script, *arguments = line.split()
                command = [sys.executable, "-B", str(root / script), *arguments]
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                assert python == "python" and done.returncode == 0, done.stderr
                ran += 1
    assert ran


def test_the_simulator_of_the_page_is_evaluated_and_recorded(root, folder):
    run(root, folder, "reach.py")
    metrics = json.loads((folder / "runs/reach_expert/metrics.json").read_text())["metrics"]
    assert metrics["success_rate"] == 1.0 and metrics["success_rate_random"] < 0.5
    pinned = json.loads((folder / "runs/reach_expert/expert/rollouts.json").read_text())
    assert list(pinned["simulator"]) == ["reach.py"], "an edited file gives other episodes"
    steps = StepShards(folder / "data/reach", "train")
    assert len(steps.episodes) > 10 and steps.image(0).shape == (64, 64, 3)
    assert steps.text(0) in ("move to the red disc", "move to the blue disc")


@pytest.mark.parametrize(
    ("env", "package", "out"),
    [("gym:PushT-v0", "gym_pusht", "pusht"), ("gym:MountainCarContinuous-v0", "pygame", "mountain_car")],
)
def test_environments_of_gymnasium_are_driven_as_on_the_page(root, folder, env, package, out):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    run(root, folder, env)
    result = json.loads((folder / f"runs/{out}/metrics.json").read_text())
    assert result["env"] == env and list(result["policies"]) == ["random"]
    assert (folder / f"runs/{out}/random/videos/000000.mp4").stat().st_size > 1000


def test_a_mapping_of_the_page_gives_two_cameras(folder):
    from lapa_jax.sim.gym_map import find

    chosen, _ = find("libero_spatial", str(folder / "two_cameras.py"))
    assert chosen.image == ("agentview", "wrist") and chosen.max_steps == 220
