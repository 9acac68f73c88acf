import os
import subprocess
import sys

import numpy as np
from PIL import Image

from lapa_jax.data import images
from lapa_jax.data.shards.step_shards import ShardWriter
from tests.inference import step_shards


def run(root, folder, *arguments):
    command = [sys.executable, str(root / "tools" / "inspect_data.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


def test_it_prints_and_draws_and_leaves_the_data_alone(root, tmp_path):
    folder = step_shards.write(tmp_path / "set")
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    done = run(root, tmp_path, folder, "--split", "val")
    assert done.returncode == 0, done.stderr
    assert "## Episodes of val" in done.stdout and "- 2 x push it" in done.stdout
    drawn = [line.removeprefix("- ") for line in done.stdout.split("## Pictures")[1].strip().splitlines()]
    assert drawn == ["inspect/set/contact_sheet.png", "inspect/set/actions.png"]
    for name in drawn:
        assert min(Image.open(tmp_path / name).size) > 100
    after = {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.endswith(".index.npz")}
    assert {name: size for name, size in before.items() if not name.endswith(".index.npz")} == after


def test_the_sample_and_pairs(root, tmp_path):
    done = run(root, tmp_path, "sample", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"contact_sheet.png", "actions.png"}
    with ShardWriter(tmp_path / "pairs" / "train-00000.tar") as writer:
        for i in range(3):
            picture = images.encode(np.full((32, 32, 3), 50 * i, np.uint8))
            writer.add(f"{i:06d}", {"t.jpg": picture, "t1.jpg": picture})
    done = run(root, tmp_path, tmp_path / "pairs", "--out", tmp_path / "out2")
    assert done.returncode == 0 and "| pairs | 3 |" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "out2").iterdir()] == ["contact_sheet.png"]


def test_what_it_cannot_look_into_is_one_line(root, tmp_path):
    step_shards.write(tmp_path / "set")
    for arguments, told in (
        ((tmp_path / "nowhere",), "does not exist"),
        ((tmp_path,), "holds no step shards"),
        ((tmp_path / "set", "--split", "test"), "has no steps in split 'test'"),
    ):
        done = run(root, tmp_path, *arguments)
        assert done.returncode == 2 and done.stdout == "" and told in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "inspect").exists(), "nothing is written before it is known that all is well"
