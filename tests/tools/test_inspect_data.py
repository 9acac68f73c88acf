import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lapa_jax.data import images
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import ShardWriter
from tests.commands import error_of
from tests.data.convert import film
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
    assert drawn == ["inspect/set/index.html", "inspect/set/contact_sheet.png", "inspect/set/actions.png"]
    page = (tmp_path / drawn[0]).read_text()
    assert page.count("data:image/png;base64,") == 2 and "Episodes of val" in page and "http" not in page
    # what there is to worry about stands before everything else, on the page and in the terminal
    assert "- **Warning:** Only 2 episodes are held out" in done.stdout.split("## Features")[0]
    assert page.index("Only 2 episodes are held out") < page.index("data:image/png")
    for name in drawn[1:]:
        assert min(Image.open(tmp_path / name).size) > 100
    after = {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.endswith(".index.npz")}
    assert {name: size for name, size in before.items() if not name.endswith(".index.npz")} == after


@pytest.fixture(scope="module")
def of_sample(root, tmp_path_factory):
    """The folder with the sample's page."""
    folder = tmp_path_factory.mktemp("inspected")
    done = run(root, folder, "sample", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_page_of_the_sample_holds_in_a_browser(browser, of_sample):
    browser.check(of_sample / "index.html")


def test_the_sample_and_pairs(root, of_sample, tmp_path):
    assert {path.name for path in of_sample.iterdir()} == {"index.html", "contact_sheet.png", "actions.png"}
    with ShardWriter(tmp_path / "pairs" / "train-00000.tar") as writer:
        for i in range(3):
            picture = images.encode(np.full((32, 32, 3), 50 * i, np.uint8))
            writer.add(f"{i:06d}", {"t.jpg": picture, "t1.jpg": picture})
    done = run(root, tmp_path, tmp_path / "pairs", "--out", tmp_path / "out2")
    assert done.returncode == 0 and "| pairs | 3 |" in done.stdout, done.stderr
    assert {path.name for path in (tmp_path / "out2").iterdir()} == {"index.html", "contact_sheet.png"}


def test_what_it_cannot_look_into_is_one_line(root, tmp_path):
    step_shards.write(tmp_path / "set")
    for arguments, told in (
        ((tmp_path / "nowhere",), "does not exist"),
        ((tmp_path,), "holds no step shards"),
        ((tmp_path / "set", "--split", "test"), "has no steps in split 'test'"),
    ):
        done = run(root, tmp_path, *arguments)
        assert done.returncode == 2 and done.stdout == "" and told in error_of(done.stderr)
    assert not (tmp_path / "inspect").exists(), "nothing is written before it is known that all is well"


def test_what_a_filter_did_is_shown(root, tmp_path):
    film.write(tmp_path / "in/v.mp4", np.concatenate([film.scene(0, 20), film.scene(1, 20), film.black(5)]))
    film.write(tmp_path / "in/w.mp4", film.scene(2, 20))
    convert(tmp_path / "in", tmp_path / "out", Options(size=96, filter="all", split="train"))
    done = run(root, tmp_path, tmp_path / "out", "--out", tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    assert "The filter (cuts=2" in done.stdout and "What the filter did" in page
    assert "v.mp4: frame 20" in page and "v.mp4: frames 40 to 44" in page
    assert page.count("data:image/jpeg;base64,") == 2
