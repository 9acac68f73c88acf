"""The table of a split: what it says, read by other means; when it is made again; what damage of it does."""

import copy
import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.reading import Column
from lapa_jax.data.samples.tasks import task_names
from lapa_jax.data.shards import mapped
from lapa_jax.data.shards.files import DamagedSample
from lapa_jax.data.shards.step_shards import DATASET, ShardWriter, StepShards, json_bytes, step_key, write_dataset
from lapa_jax.data.shards.table import Table, row_checks, table_path
from tests.data.samples import make

TEXTS = ["push it", None, "open it", "push it"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    drop = [(0, 2, "image.jpg"), (2, 1, "state.npy")]
    return make.write(tmp_path / "data", {"train": [[5, 3], [4]], "val": [[6]]}, texts=TEXTS, tasks=["a", "", "b", "c"],
                      cameras=("image", "image_wrist"), drop=drop, latents=4, fps=None)  # fmt: skip


def steps_of(folder, split="train") -> list[dict]:
    return [step for episode in make.decoded(folder, split) for step in episode]


def test_it_says_what_tarfile_and_numpy_read(folder):
    for split in ("train", "val"):
        shards, steps = StepShards(folder, split), steps_of(folder, split)
        assert len(shards) == len(steps)
        for member in ("image.jpg", "action.npy", "state.npy", "txt", "json", "none"):
            assert shards.table.present(member).tolist() == [member in step for step in steps]
        for name in ("action", "state", "feature", "latent"):
            column = Column(shards, name)
            for i, step in enumerate(steps):
                expected = step.get(f"{name}.npy", np.zeros(column.width))
                np.testing.assert_array_equal(column.take(np.array(i)), expected)
        assert [shards.text(i) for i in range(len(steps))] == [step.get("txt", "") for step in steps]
        assert shards.instructions() == sorted({step["txt"] for step in steps if "txt" in step})
        first = [episode[0] for episode in make.decoded(folder, split)]
        assert shards.tasks() == [step["json"].get("task", "") for step in first]
        assert shards.episode_fps().tolist() == [step["json"]["fps"] for step in first]
        assert task_names(shards) == [step["json"].get("task") or step.get("txt", "") for step in first]


def test_episodes_are_a_sequence(folder):
    episodes = StepShards(folder).episodes
    assert [tuple(e) for e in episodes] == [("ep0", 0, 5), ("ep1", 5, 3), ("ep2", 8, 4)]
    assert episodes[-1] == episodes[2] == episodes[1:][1] and len(episodes) == 3
    assert episodes == StepShards(folder).episodes and episodes != StepShards(folder, "val").episodes
    with pytest.raises(IndexError):
        episodes[3]


def test_every_step_s_instruction_counts(tmp_path):
    """Also one that comes after the first step of its episode."""
    with ShardWriter(tmp_path / "train-00000.tar") as writer:
        for t in range(6):
            members = {"json": json_bytes({"fps": 5}), "txt": b"first" if t < 4 else "then \u00e4".encode()}
            writer.add(step_key("e", t), members)
    splits = {"train": {"episodes": 1, "steps": 6, "shards": [writer.summary]}}
    write_dataset(tmp_path, features={}, fps=5, source={}, splits=splits, statistics={})
    shards = StepShards(tmp_path)
    assert shards.instructions() == ["first", "then \u00e4"] and shards.text(4) == "then \u00e4"


def test_it_is_kept_and_made_again_for_other_content(folder):
    StepShards(folder)
    path = table_path(folder, "train")
    made = path.stat().st_mtime_ns
    for tar in folder.glob("*.tar"):
        tar.touch()
    StepShards(folder)
    assert path.stat().st_mtime_ns == made, "a copy has other times"
    whole = path.read_bytes()
    for damaged in (b"", b"no table", whole[:-40], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert len(StepShards(folder)) == 12
        assert path.read_bytes() == whole, "made again, to the byte"
    dataset = json.loads((folder / DATASET).read_text())
    (folder / DATASET).write_text(json.dumps(dataset | {"fingerprint": "0" * 64}))
    StepShards(folder)
    assert path.read_bytes() != whole


def test_workers_are_sent_no_arrays(folder):
    shards = StepShards(folder)
    column = Column(shards, "action")
    assert len(ForkingPickler.dumps((shards, column))) < 700
    other, again = copy.deepcopy((shards, column))  # goes by the same protocol
    np.testing.assert_array_equal(again.take(np.arange(12)), column.take(np.arange(12)))
    assert other.read(3) == shards.read(3) and repr(other) == repr(shards)


def test_a_flipped_bit_of_the_table_never_gives_other_numbers(folder):
    """It is made again, or names itself, or does no harm."""
    shards, path, rng = StepShards(folder), table_path(folder, "train"), np.random.default_rng(0)
    names, rows = ("action", "state", "feature", "latent"), np.arange(len(shards))
    expected = [Column(shards, name).take(rows) for name in names]
    images, whole, named = [shards.read(i) for i in rows], path.read_bytes(), 0
    for at in rng.choice(len(whole), 300, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            data = StepShards(folder)
            same = [data.read(i) for i in rows] == images
            assert same, f"bit in byte {at}"
            for name, values in zip(names, expected):
                column = Column(data, name)
                taken = column.take(rows) * column.present[:, None]
                np.testing.assert_array_equal(taken, values)
        except UserError:
            named += 1
    assert named > 20


def test_rows_that_cannot_be_used_are_told_of(folder, monkeypatch):
    shards = StepShards(folder)
    column = Column(shards, "action")
    values = np.array(shards.table.arrays["column/action"])
    values[2, 1] += 1
    monkeypatch.setitem(shards.table.arrays, "column/action", values)
    with pytest.raises(DamagedSample, match="train.index.npz: action of ep0_000002 is damaged; remove this file"):
        column.take(np.array([[0, 1], [2, 3]]))
    assert column.take(np.array([0, 1, 3])).shape == (3, 3)


def test_checks_of_rows():
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    checks = row_checks(rows)
    for row in range(50):
        for bit in range(7 * 32):
            words = rows[row].view(np.uint32).copy()
            words[bit // 32] ^= np.uint32(1 << (bit % 32))
            assert row_checks(words.view(np.float32)[None])[0] != checks[row]
        assert row_checks(rows[row : row + 1, ::-1])[0] != checks[row]


def resident(path) -> int:
    """Bytes of a mapped file that this process holds, as the kernel counts them."""
    size, of_file = 0, False
    for line in open("/proc/self/smaps", encoding="utf-8"):
        name, _, value = line.partition(":")
        if "-" in name:  # the head of a mapping: addresses, ..., path
            of_file = line.rstrip().endswith(str(path))
        elif of_file and name == "Rss":
            size += int(value.split()[0]) * 1024
    return size


def test_rows_that_are_read_at_random_are_not_held(tmp_path):
    path, rows, rng = tmp_path / "x.npz", np.arange(2_000_000).reshape(-1, 2), np.random.default_rng(0)
    about = np.frombuffer(json.dumps({"texts": [], "damaged": {}}).encode(), np.uint8)
    episodes = {f"episode/{name}": np.zeros(0, np.int64) for name in ("id", "start", "length")}
    mapped.write(path, {"column/action": rows, "about": about, **episodes})
    table = Table(mapped.open_mapped(path))
    for steps in (rng.integers(0, len(rows), 500), [7, 8, 9, 9, 8, 3], [], [len(rows) - 1]):
        steps = np.array(steps, np.int32)
        np.testing.assert_array_equal(table.take("column/action", steps), rows[steps])
    assert resident(path) <= 8192, "of the other arrays"
    table.arrays["column/action"].max()
    assert resident(path) >= rows.nbytes, "what is read through the map is"


def test_mapped_arrays_are_an_npz_and_aligned(tmp_path):
    arrays = {"a/b.jpg": np.arange(30).reshape(10, 3), "flags": np.ones(7, bool), "none": np.zeros((0, 3), np.float32),
              "ids": np.array([b"abc", b"d"])}  # fmt: skip
    mapped.write(tmp_path / "x.npz", arrays)
    found, plain = mapped.open_mapped(tmp_path / "x.npz"), np.load(tmp_path / "x.npz")
    assert list(found) == plain.files == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(plain[name], array)
        assert not len(array) or found[name].ctypes.data % 64 == 0
    mapped.write(tmp_path / "y.npz", arrays)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
