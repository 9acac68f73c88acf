"""The pages "add a ...": their files are written where they say, and their commands are run as they stand there."""

import csv
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lapa_jax.data.shards.step_shards import StepShards
from tests.docs_code import blocks, write_files


@pytest.fixture
def tree(root, tmp_path):
    """A copy of the package in an empty folder, for pages that add a file to it."""
    shutil.copytree(root / "lapa_jax", tmp_path / "lapa_jax", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run_commands(page, root, folder) -> list[str]:
    """Runs the lines of the page's bash blocks in a folder whose `lapa_jax` is the one with the page's files."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    printed = []
    for line in lines:
        python, script, *arguments = line.split()
        assert python == "python"
        command = [sys.executable, "-B", str(root / script), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return printed


def write_logs(folder, episodes: int, steps: int) -> None:
    """Logs as the page shows them; the state counts up, so that a shifted row would show."""
    for k in range(episodes):
        here = folder / f"drawer_{k:03d}"
        here.mkdir(parents=True)
        (here / "task.txt").write_text("open the drawer\n")
        with open(here / "log.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "x", "y", "gripper", "dx", "dy", "close"])
            for t in range(steps):
                writer.writerow([f"{t:04d}.jpg", 0.1 * t, k, 1.0, 0.1, 0.0, t % 2])
                Image.fromarray(np.full((64, 64, 3), 8 * t, np.uint8)).save(here / f"{t:04d}.jpg")


def test_the_format_of_the_page_converts_its_logs(root, tree):
    page = root / "docs/howto/add_a_format.md"
    assert write_files(page, tree) == ["lapa_jax/data/formats/csv_log.py"]
    formats = tree / "lapa_jax/data/formats/__init__.py"
    text = formats.read_text()
    assert text.count("NAMES = (") == 1
    formats.write_text(text.replace("NAMES = (", 'NAMES = ("csv_log", '))
    write_logs(tree / "LOGS", episodes=8, steps=5)
    (tree / "LOGS/drawer_003/0002.jpg").write_bytes(b"no image")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    convert = [sys.executable, "-B", str(root / "tools/convert.py"), "LOGS"]
    refused = subprocess.run([*convert, "bad"], cwd=tree, env=environment, capture_output=True, text=True)
    assert "drawer_003" in refused.stdout + refused.stderr, "a damaged image is reported with its episode"
    shutil.rmtree(tree / "LOGS/drawer_003")

    converted, inspected = run_commands(page, root, tree)
    assert "7 episodes, 35 steps, 0 errors (csv_log)" in converted
    assert "| state |" in inspected and (tree / "data/drawer").is_dir()
    steps = {split: StepShards(tree / "data/drawer", split) for split in ("train", "val")}
    assert sum(len(part.episodes) for part in steps.values()) == 7 and len(steps["val"].episodes) >= 1
    first = steps["train"].episodes[0]
    np.testing.assert_allclose(steps["train"].array(first.start + 3, "state")[0], 0.3, rtol=1e-6)
    assert steps["train"].text(first.start) == "open the drawer" and steps["train"].fps == 10
    assert abs(int(steps["train"].image(first.start + 3)[0, 0, 0]) - 24) <= 2
