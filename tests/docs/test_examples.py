"""The scripts that users copy, as they stand."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.inference import small_policy


@pytest.fixture(scope="module")
def policy(root):
    return small_policy.make(root, state=0)


@pytest.mark.parametrize("options, execute", [((), 1), (("--execute", "3"), 3), (("--execute", "99"), 4)])
def test_the_policy_that_acts_step_by_step(root, policy, tmp_path, options, execute):
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    policy.save_pretrained(tmp_path / "run")
    command = [sys.executable, root / "docs/examples/run_policy.py", "--run", tmp_path / "run", "--images", tmp_path,
               "--instruction", "push it", *options]  # fmt: skip
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    printed = np.array([line.split() for line in done.stdout.splitlines()], float)
    chunks = [policy.chunk(image, "push it") for image in images]
    expected = [chunks[step - step % execute][step % execute] for step in range(6)]
    np.testing.assert_allclose(printed, expected, atol=2e-5)
