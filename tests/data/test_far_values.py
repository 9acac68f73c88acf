"""Dimensions whose normalised values are far out are named at conversion, inspection and start, with the choices."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.contents import describe
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.far_values import LIMIT, choices, far_values
from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.statistics import column_statistics
from lapa_jax.data.training import open_training

NAMES = ("plain", "tails", "joint", "gripper")


def episodes(seed: int = 0) -> np.ndarray:
    """f32[10, 400, 4]: a plain dimension, heavy tails (to 30 times their percentiles), a joint that hardly moves and at
    times is 0, and a gripper."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 4000))
    rows[2:] = 1.5692 + 2e-4 * rows[2], rows[3] > 0
    rows[1, ::1000], rows[2, ::500] = 70.0, 0.0
    return rows.T.astype(np.float32).reshape(10, 400, 4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("far")
    (folder / "source").mkdir()
    for number, action in enumerate(episodes()):
        np.savez(folder / f"source/{number}.npz", action=action, fps=10.0)
    return folder / "out", convert(folder / "source", folder / "out", Options(val_fraction=0.2))


def data(folder, **changes) -> dict:
    return {"path": str(folder), "samples": "chunks", "fields": ("action",), "chunk_length": 4, "normalize": "q01_q99",
            **changes}  # fmt: skip


@pytest.mark.parametrize("mode", ["q01_q99", "q01_q99_clip", "mean_std", "min_max", "none"])
def test_the_largest_values_are_those_that_normalising_gives(mode):
    rows = episodes(1).reshape(-1, 4)
    summary = column_statistics([rows])
    largest = np.abs(Normalizer(summary, mode).normalize(rows)).max(0)
    found = far_values(summary, mode, NAMES)
    expected = {"q01_q99": [1, 2], "q01_q99_clip": [1, 2], "mean_std": [1, 2]}.get(mode, [])
    assert [one.number for one in found] == expected
    for one in found:
        np.testing.assert_allclose(one.largest, largest[one.number], rtol=1e-3)
        assert one.text.startswith(NAMES[one.number]) and "98 % of its values lie in" in one.text
    if mode == "q01_q99_clip":
        share = (np.abs(rows[:, 1] - rows[:, 1].mean()) > 2.4).mean()
        told = float(found[0].text.rpartition("; ")[2].partition(" %")[0]) / 100
        assert abs(told - 0.02) < 0.005 and abs(share - 0.02) < 0.01, "the share that is cut off"


def test_training_refuses_values_beyond_the_limit_unless_told_otherwise(shards):
    folder, _ = shards
    with pytest.raises(UserError, match=r"values far out in 1 dimensions of 'action', .*max_normalized=20: 1: 98 %"):
        pipeline.check_trainable(pipeline.build(data(folder), "train"))
    source = pipeline.build(data(folder), "train")
    notes = pipeline.check_trainable(source, None)
    assert [note.split(":")[1] for note in notes] == [" data set 'out', 'action', 1", " data set 'out', 'action', 2"]
    assert "scaled by its whole range" in notes[1] and all(note.startswith("warning") for note in notes)
    assert pipeline.check_trainable(source, 100.0) == notes[1:], "what the limit allows needs no word"
    for mode in ("min_max", "q01_q99_clip"):
        pipeline.check_trainable(pipeline.build(data(folder, normalize=mode), "train"))
    with pytest.raises(UserError, match="=min_max .*, data.normalize=q01_q99_clip .*--action .*=3[0-9] takes"):
        open_training(data(folder), batch_size=4)
    opened = open_training(data(folder, max_normalized=40.0), batch_size=4)
    assert list(opened.notes) == notes[1:]


def test_conversion_and_inspection_name_them(shards, root):
    folder, report = shards
    told = report["far_values"]["action"]
    assert [text.partition(":")[0] for text in told] == ["1", "2"] and "makes values of 3" in told[0]
    assert json.loads((folder / "report.json").read_text())["far_values"] == report["far_values"]
    text = describe(StepShards(folder, "train"))
    assert "Values far out:" in text and told[0] in text and "data.normalize=q01_q99_clip" in text
    again = subprocess.run(
        [sys.executable, root / "tools/convert.py", folder.parent / "source", folder, "--val_fraction", "0.2"],
        capture_output=True, text=True, cwd=root, check=True,
    )  # fmt: skip
    assert "warning: values far out in 'action'" in again.stdout and told[0] in again.stdout


def test_leaving_dimensions_out(shards, tmp_path):
    folder, _ = shards
    options = Options(action="action[2:4],action[0:1]", split="train")
    report = convert(folder.parent / "source", tmp_path / "out", options)
    assert list(report["far_values"]) == ["action"]
    column = np.concatenate(list(StepShards(tmp_path / "out", "train").column("action")))
    np.testing.assert_array_equal(column, episodes().reshape(-1, 4)[:, [2, 3, 0]])
    with pytest.raises(UserError, match=r"'action\[2:9\]' is outside of its 4 values"):
        convert(folder.parent / "source", tmp_path / "no", Options(action="action[2:9]"))


def test_words():
    assert "max_normalized" not in choices("q01_q99", 1.0) and "data.max_normalized=3354" in choices("q01_q99", 3353.2)
    assert LIMIT == 20
