"""The table of contents against shards of known contents, and against a reading of the tar by another library."""

import io
import json
import re
import tarfile

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import write_json
from lapa_jax.data import images
from lapa_jax.data.contents import choose_split, describe, describe_pairs
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    step_key,
    write_dataset,
)
from lapa_jax.data.statistics import column_statistics

LENGTHS = (3, 20, 11)


def write(folder, split="val", labels=None):
    """Three episodes of 5, 10 and 15 fps, two cameras of which one is seldom there, an action of three dimensions."""
    rng, rows = np.random.default_rng(0), []
    with ShardWriter(folder / f"{split}-00000.tar") as writer:
        for e, length in enumerate(LENGTHS):
            for step in range(length):
                meta = {"episode": f"e{e}", "step": step, "length": length, "fps": 5.0 * (e + 1), "source": "x"}
                rows.append(np.array([step / 10, rng.random() < 0.5, 0.3], np.float32))
                members = {"json": json_bytes({**meta, "task": f"task {e % 2}"}), "action.npy": array_bytes(rows[-1])}
                members["image.jpg"] = images.encode(np.full((60, 100, 3), 40 * e, np.uint8))
                if step % 2:
                    members["image_wrist.jpg"] = images.encode(np.full((80, 80, 3), 200, np.uint8))
                if e:
                    members["txt"] = f"do $this$ | well {e}".encode()
                writer.add(step_key(f"e{e}", step), members)
    features = {"image": {"shape": [60, 100, 3], "codec": "jpeg"}, "image_wrist": {"codec": "jpeg"}}
    features |= {"action": {"shape": [3], "dtype": "float32", "names": ["x|y", "gripper", "z"]}}
    source = {"name": "hand", "format": "made", "options": {"size": 64, "fps": None}} | (labels or {})
    splits = {split: {"episodes": 3, "steps": sum(LENGTHS), "shards": [writer.summary]}}
    splits["train" if split == "val" else "val"] = {"episodes": 0, "steps": 0, "shards": []}
    statistics = {"action": column_statistics([np.array(rows)])}
    write_dataset(folder, features=features, fps=None, source=source, splits=splits, statistics=statistics)
    return folder


def cells(text, first) -> list[str]:
    """The cells of the table row that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[2:-1]]


def test_it_tells_what_is_there(tmp_path):
    text = describe(StepShards(write(tmp_path / "set"), "val"))
    assert text.startswith("# set\n")
    assert cells(text, "image") == ["60 x 100 x 3", "jpeg", ""] and cells(text, "image_wrist")[0] == "varies"
    assert cells(text, "action") == ["3", "float32", "x|y, gripper, z"]
    assert cells(text, "val")[:3] == ["3", "34", "1"] and cells(text, "train")[:2] == ["0", "0"]
    assert cells(text, "frames per second") == ["5 to 15"] and cells(text, "converted with") == ["size 64"]
    assert cells(text, "steps") == ["3", "7", "11", "15.5", "20", "11.3"]
    assert cells(text, "seconds")[0] == "0.6" and cells(text, "seconds")[4] == "2.0"
    assert "2 instructions, 1 episodes without one:\n- 1 x do $this$ | well 1" in text
    assert "2 tasks:\n- 2 x task 0\n- 1 x task 1" in text
    assert "There is no report.json" in text


def test_its_statistics_are_those_of_the_rows(tmp_path):
    folder = write(tmp_path / "set")
    with tarfile.open(folder / "val-00000.tar") as tar:
        files = [tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith("action.npy")]
    rows = np.stack([np.load(io.BytesIO(file)) for file in files]).astype(np.float64)
    text = describe(StepShards(folder, "val"))
    assert "### action, 34 rows" in text
    for i, (name, kind) in enumerate([("x\\|y", "continuous"), ("gripper", "binary"), ("z", "constant")]):
        column = rows[:, i]
        expected = [column.mean(), column.std(), column.min(), *np.quantile(column, [0.01, 0.99]), column.max()]
        got = cells(text, name)
        assert got[0] == kind
        np.testing.assert_allclose(np.array(got[1:], float), expected, rtol=6e-4, atol=1e-12)


def test_what_the_conversion_dropped_is_told(tmp_path):
    folder = write(tmp_path / "set")
    report = {"episodes": 3, "steps": 34, "format": "made", "errors": [], "blank_pictures": {"image_wrist": 17}}
    report |= {"missing": [{"path": f"p{i}", "error": "not there"} for i in range(5)], "fields_left_out": ["reward"]}
    write_json(folder / "report.json", report)
    text = describe(StepShards(folder, "val"))
    assert "- blank pictures: image_wrist: 17" in text and "- fields left out: reward" in text
    assert "- missing: error: not there, path: p0;" in text and "... (5 in all)" in text and "errors" not in text
    write_json(folder / "report.json", {"episodes": 3, "steps": 34, "errors": []})
    assert "Nothing was dropped, left out or damaged." in describe(StepShards(folder, "val"))


def test_statistics_of_an_earlier_version_are_shown_as_they_are(tmp_path):
    folder = write(tmp_path / "set")
    write_json(folder / "statistics.json", {"action": {"count": 34, "mean": [1.0, 2.0, 3.0]}})
    text = describe(StepShards(folder, "val"))
    assert cells(text, "gripper") == ["", "2"]
    write_json(folder / "statistics.json", {})
    assert "None: there are no columns of real numbers." in describe(StepShards(folder, "val"))


def test_labels_say_whose_they_are(tmp_path):
    labels = {"labels": {"tokenizer": "abc", "codebook_size": 8, "gap": {"seconds": 0.6, "frames": None}}}
    text = describe(StepShards(write(tmp_path / "set", "train", labels), "train"))
    assert cells(text, "labels: tokenizer") == ["abc"] and cells(text, "labels: gap") == ["frames: None, seconds: 0.6"]


def test_pairs_without_a_dataset_file(tmp_path):
    with ShardWriter(tmp_path / "train-00000.tar") as writer:
        for i in range(5):
            picture = images.encode(np.full((48, 64, 3), 9 * i, np.uint8))
            writer.add(f"{i:06d}", {"t.jpg": picture, "t1.jpg": picture})
    assert choose_split(tmp_path) == "train"
    text = describe_pairs(PairShards(tmp_path))
    assert cells(text, "pairs") == ["5"] and cells(text, "t1.jpg") == ["48 x 64 x 3", "jpeg", ""]


def test_the_split_is_the_one_with_steps(tmp_path):
    folder = write(tmp_path / "set")
    assert choose_split(folder) == "val" and choose_split(folder, "train") == "train"
    assert choose_split(write(tmp_path / "other", "train")) == "train"
    with pytest.raises(UserError, match="does not exist"):
        choose_split(tmp_path / "nowhere")


def test_the_sample_agrees_with_its_own_list():
    from lapa_jax import sample

    text = describe(StepShards(sample.path()))
    with open(f"{sample.path()}/episodes.jsonl") as file:
        lines = [json.loads(line) for line in file]
    train = [line for line in lines if line["split"] == "train"]
    assert cells(text, "train")[:2] == [str(len(train)), str(sum(line["frames"] for line in train))]
    assert f"{len({line['instruction'] for line in train})} instructions, 0 episodes without one" in text
