"""The pages "add a ...": their files are written where they say, and their commands are run as they stand there."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lapa_jax.data.shards.step_shards import StepShards
from tests.docs_code import blocks, write_files

PARAMETERS = """
import sys
from lapa_jax.core import config
from lapa_jax.train import setup
print(setup.parameter_table(setup.prepare(config.load(sys.argv[1]))))
"""
"""Prints the parameters of a config, of which nothing is compiled."""


@pytest.fixture
def tree(root, tmp_path):
    """A copy of the package in an empty folder, for pages that add a file to it."""
    shutil.copytree(root / "lapa_jax", tmp_path / "lapa_jax", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(command: list[str], folder) -> subprocess.CompletedProcess:
    """Runs Python in a folder whose `lapa_jax` is the one with the page's files."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-B", *command], cwd=folder, env=environment, capture_output=True, text=True)


def run_commands(page, root, folder) -> list[str]:
    """Runs the lines of the page's bash blocks; what each prints."""
    printed = []
    for line in (line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()):
        python, script, *arguments = shlex.split(line)
        assert python == "python"
        done = run([str(root / script), *arguments], folder)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return printed


def run_calls(page, folder, check: str) -> None:
    """Runs the page's Python blocks that begin with `import lapa_jax`, and a check behind them, in one process."""
    code = [block.text for block in blocks(page) if block.text.startswith("import lapa_jax")]
    done = run(["-c", "\n".join([*code, check])], folder)
    assert done.returncode == 0, done.stderr


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
    refused = run([str(root / "tools/convert.py"), "LOGS", "bad"], tree)
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


def test_the_tokenizer_of_the_page_is_trained_and_loaded(root, tree):
    page = root / "docs/howto/add_a_tokenizer.md"
    shutil.copytree(root / "configs", tree / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    assert write_files(page, tree) == ["lapa_jax/models/tokenizers/linear_fsq.py", "configs/linear_fsq.py"]
    run_commands(page, root, tree)
    metrics = json.loads((tree / "runs/linear_fsq/eval/metrics.json").read_text())["metrics"]
    assert metrics["action_r2"] > 0.8, metrics
    run_calls(page, tree, "assert codes.shape == (4,) and actions.shape == (8, 2) and abs(actions).max() < 0.06")


def test_the_head_of_the_page_is_trained_and_acts(root, tree):
    page = root / "docs/howto/add_a_head.md"
    assert write_files(page, tree) == ["lapa_jax/models/policies/heads/mixture.py"]
    shutil.copytree(root / "configs", tree / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    run_commands(page, root, tree)
    metrics = json.loads((tree / "runs/mixture/eval/metrics.json").read_text())["metrics"]
    assert np.isfinite(metrics["action_mse"])
    run_calls(page, tree, "assert chunk.shape == (4, 2) and np.isfinite(chunk).all()")


def test_the_variant_of_the_head_page_is_a_variant(root, tree):
    """The function that the page adds to a config, added."""
    page = root / "docs/howto/add_a_head.md"
    write_files(page, tree)
    shutil.copytree(root / "configs", tree / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    config = tree / "configs/vla_action.py"
    variant = next(block.text for block in blocks(page) if block.text.startswith("def mixture("))
    text = config.read_text().replace("HEADS = {", f"{variant}\n\nHEADS = {{\"mixture\": mixture, ")
    config.write_text(text)
    done = run(["-c", PARAMETERS, "configs/vla_action.py:test+mixture"], tree)
    assert done.returncode == 0 and "act/out/kernel" in done.stdout, done.stderr
