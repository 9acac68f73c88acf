"""What is said of data before training, against shards in which it was planted."""

import numpy as np
import pytest

from lapa_jax.core.files import write_json
from lapa_jax.data import images, text
from lapa_jax.data.checks import as_markdown, findings
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    step_key,
    write_dataset,
)
from lapa_jax.data.statistics import column_statistics

NAMES = ["x", "y", "spare", "gripper"]


def episode(rng, length: int, idle: range = range(0)) -> dict[str, np.ndarray]:
    """Random displacements and the states that they lead to; the gripper opens and closes; `spare` never moves."""
    action = rng.normal(size=(length, 4))
    action[:, 2] = 0.25
    action[:, 3] = rng.random(length) < 0.4
    action[list(idle), :2], action[list(idle), 3] = 0.0, 1.0
    state = np.cumsum(action[:, :2], 0) - action[:, :2]
    return {"action": action.astype(np.float32), "state": state.astype(np.float32)}


def write(folder, episodes, texts, rates, columns=("action", "state"), val: int = 5, features=None):
    """Shards of these episodes, and `val` more that are held out."""
    rows = {name: [] for name in columns}
    splits = {}
    for split, chosen in (("train", episodes), ("val", episodes[:1] * val)):
        with ShardWriter(folder / f"{split}-00000.tar") as writer:
            for k, own in enumerate(chosen):
                for t in range(len(own["action"])):
                    meta = {"episode": f"e{k}", "step": t, "length": len(own["action"]), "fps": rates[k % len(rates)]}
                    members = {"json": json_bytes(meta)}
                    members |= {f"{name}.npy": array_bytes(own[name][t]) for name in columns}
                    if texts[k % len(texts)]:
                        members["txt"] = texts[k % len(texts)].encode()
                    if "frames" in own:
                        members["image.jpg"] = images.encode(own["frames"][t])
                    writer.add(step_key(f"e{k}", t), members)
                if split == "train":
                    for name in columns:
                        rows[name].append(own[name])
        steps = sum(len(own["action"]) for own in chosen)
        splits[split] = {"episodes": len(chosen), "steps": steps, "shards": [writer.summary] if chosen else []}
    kinds = {name: {"shape": [rows[name][0].shape[1]], "dtype": "float32"} for name in columns}
    if "action" in kinds:
        kinds["action"]["names"] = NAMES
    statistics = {name: column_statistics([np.concatenate(rows[name])]) for name in columns}
    fps = rates[0] if len(set(rates)) == 1 else None
    write_dataset(folder, features=kinds | (features or {}), fps=fps, source={}, splits=splits, statistics=statistics)
    return StepShards(folder)


def told(shards, gap=0.6, length=64) -> tuple[str, str]:
    """(all warnings, all others), a line each."""
    found = findings(shards, Gap(seconds=gap), text.build({"name": "bytes"}), length)
    assert [finding.warning for finding in found] == sorted((f.warning for f in found), reverse=True), "warnings first"
    assert {type(finding.warning) for finding in found} == {bool}
    return tuple("\n".join(f.text for f in found if f.warning == warning) for warning in (True, False))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_good_data_have_no_warnings_but_their_dead_dimension(tmp_path, rng):
    episodes = [episode(rng, 60) for _ in range(8)]
    warnings, notes = told(write(tmp_path, episodes, ["push it", "pull it"], [10.0]))
    assert warnings == "1 of 4 dimensions of 'action' never change: spare."
    assert "Splits: train 8 episodes with 480 steps, val 5 episodes with 300 steps." in notes
    assert "Frames per second: 10." in notes
    assert "No idle stretches of 2 s or more, by the state, in 8 episodes." in notes
    # bos and the bytes of the text
    assert "2 instructions. The longest prompt takes 8 tokens of ByteTokenizer()" in notes
    assert "Gripper 'gripper' of 'action' goes from 0 to 1 in two steps, and is 1 in" in notes


def test_every_fault_is_told(tmp_path, rng):
    episodes = [episode(rng, 60), episode(rng, 4), episode(rng, 60, range(10, 50))]
    episodes[0]["action"][7, 0] = 4000.0
    episodes[0]["action"][:, 3] = np.linspace(0, 90, 60)
    warnings, _ = told(write(tmp_path, episodes, ["a" * 80, "b", ""], [10.0, 10.0, 30.0], val=0), length=32)
    assert "Nothing is held out" in warnings
    assert "2 frame rates, 10, 30" in warnings
    assert "1 of 3 episodes are no longer than the gap of 0.6 s, and give no frame pair; the shortest has 4" in warnings
    assert "The longest prompt takes 81 tokens of ByteTokenizer(), data.text_length is 32" in warnings
    assert "1 of 3 episodes have no instruction." in warnings
    assert "'action' holds values far out: x: 98 % of its values lie in" in warnings
    assert "Choices: data.normalize=" in warnings
    assert "Gripper 'gripper' of 'action' goes from 0 to 90, beyond -1 to 1." in warnings


@pytest.mark.parametrize("columns, by", [(("action", "state"), "state"), (("action",), "action")])
def test_idle_stretches(tmp_path, rng, columns, by):
    """41 states are equal where 40 displacements are zero; a displacement that goes on is no idleness."""
    episodes = [episode(rng, 60, range(10, 50)), episode(rng, 60, range(10, 20)), episode(rng, 60)]
    episodes[2]["action"][:, :2], episodes[2]["action"][:, 3] = 0.5, 1.0
    episodes[2]["state"] = np.cumsum(episodes[2]["action"][:, :2], 0)
    warnings, _ = told(write(tmp_path, episodes, ["go"], [10.0], columns))
    count = 41 if by == "state" else 40
    share = f"{100 * count / 180:.0f} % of the steps lie in stretches of 2 s or more in which the {by} hardly changes"
    assert share in warnings and "in 1 of 3 episodes" in warnings


def test_absolute_actions_that_stand_are_idle(tmp_path, rng):
    """Joint angles far from zero: their standing still is idleness, though they are no zeros."""
    episodes = [episode(rng, 60) for _ in range(3)]
    for own in episodes:
        own["action"][:, :2] = np.cumsum(rng.normal(size=(60, 2)), 0) + 500.0
        own["action"][20:50] = own["action"][20]
    warnings, _ = told(write(tmp_path, episodes, ["go"], [10.0], ("action",)))
    assert "50 % of the steps lie in stretches" in warnings


def test_idle_images_where_there_are_no_numbers(tmp_path, rng):
    from tests.data.convert import film

    shots = [film.held(film.scene(0, 30), 10, 30), film.scene(1, 40)]
    episodes = [{"action": np.zeros((len(shot), 1), np.float32), "frames": shot} for shot in shots]
    camera = {"image": {"shape": [96, 96, 3], "codec": "jpeg", "resize": "squash"}}
    warnings, _ = told(write(tmp_path, episodes, [""], [10.0], (), features=camera))
    assert "30 % of the steps" in warnings and "the images hardly change, in 1 of 2 episodes" in warnings


def test_images_and_clocks(tmp_path, rng):
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    episodes = [{"action": np.zeros((4, 1), np.float32), "frames": frames}]
    camera = {"image": {"shape": [48, 64, 3], "codec": "jpeg"}, "image_wrist": {"codec": "jpeg"}}
    warnings, notes = told(write(tmp_path, episodes, [""], [None], (), features=camera))
    assert "Images of 'image' are 64 x 48, and the data do not say how they become square" in warnings
    assert "Images of 'image_wrist' have different sizes" in warnings
    assert "1 of 1 episodes have no frame rate: set gaps in frames" in warnings
    assert "No episode has an instruction" in notes and "Frames per second" not in notes


def test_what_the_conversion_reports(tmp_path, rng):
    shards = write(tmp_path, [episode(rng, 60)] * 2, ["go"], [10.0])
    report = {"errors": [{"path": "a.mp4", "error": "damaged"}], "missing": [], "remarks": {"frames repeated": 3}}
    report |= {"notes": {"frame_numbers_missing": 5}, "filter": {"rules": "cuts=2", "cut": 7}}
    write_json(tmp_path / "report.json", report)
    warnings, notes = told(shards)
    assert "1 episodes could not be read; the first: a.mp4: damaged." in warnings
    assert "5 frame numbers are missing" in warnings and "All episodes have one instruction, 'go'" in warnings
    assert "In conversion: frames repeated: 3." in notes and "The filter (cuts=2): cut 7." in notes


def test_markdown(tmp_path, rng):
    found = findings(write(tmp_path, [episode(rng, 30)] * 2, ["go", "come"], [10.0]), Gap(frames=2),
                     text.build({"name": "bytes"}), 64)  # fmt: skip
    lines = as_markdown(found).splitlines()
    assert lines[0] == "## What to know first" and lines[2].startswith("- **Warning:** ")
    assert len(lines) == 2 + len(found)
