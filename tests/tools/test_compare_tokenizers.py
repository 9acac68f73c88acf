import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from tests.evaluate.codecs.action_shards import episodes, write
from tools import compare_tokenizers


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    rng = np.random.default_rng(0)
    return write(tmp_path_factory.mktemp("data") / "s", episodes(rng, [30] * 6), episodes(rng, [21] * 2))


def run(root, *arguments):
    command = [sys.executable, str(root / "tools" / "compare_tokenizers.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def without_times(results):
    for entry in results.values():
        for codec in entry["codecs"]:
            del codec["microseconds"]
    return results


def test_it_writes_tables_figures_and_plots_the_same_every_time(root, tmp_path, shards):
    both = ("--data", f"walks={shards}", f"Short walks={shards}", "--chunk_length", 10, "Short walks=5",
            "--gripper", "walks=0")  # fmt: skip
    one, found = ("--data", f"Short walks={shards}", "--chunk_length", 5), []
    for name, options in (("a", both), ("b", one)):
        done = run(root, *options, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        found.append(without_times(json.loads((tmp_path / name / "comparison.json").read_text())))
    assert found[0]["Short walks"] == found[1]["Short walks"]
    written = {"comparison.json", "comparison.md", "tokenizers_walks.png", "tokenizers_short_walks.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == written
    assert [found[0][name]["chunk_length"] for name in ("walks", "Short walks")] == [10, 5]
    assert set(found[0]["walks"]["grippers"]) == {"0", "2"} and set(found[0]["Short walks"]["grippers"]) == {"2"}
    page = (tmp_path / "a" / "comparison.md").read_text()
    assert "## Short walks" in page and "(tokenizers_short_walks.png)" in page
    for codec in found[0]["walks"]["codecs"]:
        assert f"| {codec['name']} |" in page or not codec["usual"]
    assert min(Image.open(tmp_path / "a" / "tokenizers_walks.png").size) > 300


def test_the_sample_has_a_clock(root, tmp_path):
    done = run(root, "--data", "sample=sample", "--chunk_seconds", 1.6, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    entry = json.loads((tmp_path / "comparison.json").read_text())["sample"]
    assert entry["chunk_length"] == 4 and entry["seconds_per_step"] == pytest.approx(0.4)
    for codec in entry["codecs"]:
        assert codec["bits_per_second"] == pytest.approx(2.5 * codec["bits_per_step"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "s"), "--data s is not of the form NAME=SHARDS"),
        (("--data", "s=/nowhere"), "data folder /nowhere does not exist"),
        (("--data", "a b=SHARDS", "a-b=SHARDS"), "is given twice, or another's name differs in signs only"),
        (("--data", "s=SHARDS", "--chunk_length", "x"), "--chunk_length x: 'x' is no number of length"),
        (("--data", "s=SHARDS", "--chunk_length", "0"), "chunks must be longer than 0"),
        (("--data", "walks=SHARDS", "--chunk_length", "wlks=4"), "did you mean 'walks'?"),
        (("--data", "s=SHARDS", "--chunk_length", "99"), "no episode of train has 99 actions; give s shorter chunks"),
        (("--data", "s=SHARDS", "--gripper", "s=x"), "'x' is no dimension"),
        (("--data", "s=SHARDS", "--gripper", "s=7"), "gripper dimension 7 does not exist; actions have 3 dimensions"),
        (("--data", "s=SHARDS", "--runs", "fsq"), "--runs fsq is not of the form NAME=RUN"),
        (("--data", "s=SHARDS", "--runs", "fsq=/nowhere"), "/nowhere does not exist"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, shards, arguments, told):
    monkeypatch.setattr(compare_tokenizers, "_one_thread", lambda: None)
    out = tmp_path / "out"
    with pytest.raises(UserError) as refused:
        given = [argument.replace("SHARDS", str(shards)) for argument in arguments]
        compare_tokenizers.main([*given, "--out", str(out)])
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert not out.exists()


def test_the_command_ends_with_2(root, tmp_path):
    done = run(root, "--data", "s=/nowhere", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr .startswith("error: data folder /nowhere does not exist; ")
