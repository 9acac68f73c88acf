"""The embedded sample: small, whole, made by the recorder as it says, and usable without a simulator."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax import sample
from lapa_jax.data import images
from lapa_jax.data.shards.step_shards import StepShards

FOLDER = pathlib.Path(sample.path())
RECORDED_WITH = "4."


def lines() -> list[dict]:
    return [json.loads(line) for line in (FOLDER / "episodes.jsonl").read_text().splitlines()]


def test_it_is_small_and_holds_short_episodes_of_every_family():
    files = [path for path in FOLDER.iterdir() if path.suffix in (".tar", ".json", ".jsonl")]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert 40 <= len(lines()) <= 60 and len({line["task"] for line in lines()}) == 5
    held_out = sum(line["split"] == "val" for line in lines())
    assert 5 <= held_out <= 15


def test_every_step_has_picture_instruction_and_action():
    told = {line["id"]: line for line in lines()}
    for split in ("train", "val"):
        shards = StepShards(FOLDER, split)
        assert {e.id for e in shards.episodes} == {i for i, line in told.items() if line["split"] == split}
        for episode in shards.episodes:
            line, last = told[episode.id], episode.start + episode.length - 1
            assert episode.length == line["frames"]
            for i in (episode.start, last):
                assert shards.image(i).shape == (64, 64, 3) and shards.text(i) == line["instruction"]
            assert all(shards.array(i, "action").shape == (2,) for i in range(episode.start, last))
            assert not shards.has(last, "action.npy")


def test_it_needs_no_simulator(root):
    program = (
        "import sys; sys.modules['mujoco'] = None\n"
        "from lapa_jax.data import pipeline\n"
        "pairs = pipeline.build({'path': 'sample', 'gap_seconds': 0.6}, 'train', fields=('frames', 'net_action'))\n"
        "print(pairs[0]['frames'].shape, len(pairs) > 200)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 64, 64, 3) True", done.stderr


@pytest.mark.usefixtures("gl")
def test_the_seeds_give_its_first_steps():
    """Under every MuJoCo: layouts and instructions do not depend on its physics."""
    from lapa_jax.sim.env import make

    env, quality = make("push_table", size=64), json.loads((FOLDER / "recording.json").read_text())["quality"]
    stored = {split: StepShards(FOLDER, split) for split in ("train", "val")}
    for line in lines()[::5]:
        env.reset(line["seed"], line["task"])
        assert env.instruction == line["instruction"]
        shards = stored[line["split"]]
        (episode,) = [e for e in shards.episodes if e.id == line["id"]]
        picture = images.decode(images.encode(env.observe()["image"], quality)).astype(int)
        assert np.abs(picture - shards.image(episode.start)).mean() < 1
    env.close()


@pytest.mark.usefixtures("gl")
def test_the_recorder_makes_it_again(mujoco):
    """From the options beside it. Pictures may differ in a few pixels under another GL driver, the rest may not."""
    if not mujoco.__version__.startswith(RECORDED_WITH):
        pytest.skip(f"recorded with MuJoCo {RECORDED_WITH}; {mujoco.__version__} moves blocks a little differently")
    from lapa_jax.sim.env import make
    from lapa_jax.sim.recording import Options, record_episode

    values = json.loads((FOLDER / "recording.json").read_text())
    options = Options(**{**values, "columns": tuple(values["columns"])})
    env = make(options.env, size=options.size)
    stored = {split: StepShards(FOLDER, split) for split in ("train", "val")}
    for number, line in list(enumerate(lines()))[::10]:
        again = record_episode(env, options, number, line["task"])
        assert (again.seed, again.instruction, len(again.image)) == (line["seed"], line["instruction"], line["frames"])
        shards = stored[line["split"]]
        (episode,) = [e for e in shards.episodes if e.id == line["id"]]
        for step in range(episode.length):
            picture = images.decode(images.encode(again.image[step], options.quality)).astype(int)
            assert np.abs(picture - shards.image(episode.start + step)).mean() < 1
            if step < episode.length - 1:
                action = shards.array(episode.start + step, "action")
                np.testing.assert_array_equal(action, again.arrays["action"][step])
