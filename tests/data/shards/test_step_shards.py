import copy
import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.shards import tar
from lapa_jax.data.shards.files import DamagedSample
from lapa_jax.data.shards.index import build_index, open_index
from lapa_jax.data.shards.step_shards import (
    DATASET,
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    step_key,
)
from lapa_jax.data.shards.table import table_path
from tests.inference import step_shards


@pytest.fixture
def folder(tmp_path):
    return step_shards.write(tmp_path / "data")


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def test_stdlib_reads_what_we_write(folder):
    with tarfile.open(folder / "train-00000.tar") as archive:
        members = archive.getmembers()
        assert [m.name for m in members[:4]] == [f"ep0_000000.{f}" for f in ("action.npy", "image.jpg", "json", "txt")]
        assert all(m.mtime == m.uid == m.gid == 0 and m.mode == 0o644 and m.isreg() for m in members)
        contents = {m.name: archive.extractfile(m).read() for m in members}
    data = StepShards(folder)
    for i in range(11):
        for field, value in data.read(i).items():
            assert contents.pop(f"{data.key(i)}.{field}") == value
    assert not contents, "every member of the tar was read"
    listing = subprocess.run(["tar", "tf", folder / "train-00000.tar"], capture_output=True, text=True, check=True)
    assert listing.stdout.split() == [m.name for m in members]


def test_steps_come_back(folder):
    data = StepShards(folder)
    assert [tuple(e) for e in data.episodes] == [("ep0", 0, 7), ("ep1", 7, 4), ("ep2", 11, 9), ("ep3", 20, 3)]
    assert len(data) == 23 and data.fps == 10.0 and data.instructions() == ["push it"]
    assert np.abs(data.image(12).astype(int) - step_shards.picture(2, 1)).max() <= 2
    assert data.meta(12)["episode"] == "ep2" and data.meta(12)["step"] == 1 and data.text(12) == "push it"
    assert data.has(5, "action.npy") and not data.has(6, "action.npy"), "the last step of an episode has no action"
    assert data.array(5, "action").dtype == np.float32
    with pytest.raises(UserError, match="ep0_000006.*action"):
        data.array(6, "action")
    with pytest.raises(IndexError):
        data.read(23)


def test_column_is_all_values_in_order(folder):
    data = StepShards(folder)
    single = [data.array(i, "action") for i in range(len(data)) if data.has(i, "action.npy")]
    chunks = list(data.column("action", numbers=12))
    assert sum(map(len, chunks)) == len(single) and max(map(len, chunks)) <= 6
    np.testing.assert_array_equal(np.concatenate(chunks), np.stack(single))
    assert list(data.column("state")) == []


def test_same_content_same_bytes(tmp_path):
    one, two = (step_shards.write(tmp_path / name) for name in ("one", "two"))
    for name in (DATASET, "train-00000.tar", "val-00000.tar"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert StepShards(one).fingerprint != StepShards(step_shards.write(tmp_path / "three", seed=1)).fingerprint


def test_a_copy_has_no_open_files(folder):
    data = StepShards(folder)
    before = data.read(3)
    other = copy.deepcopy(data)  # goes by the same protocol as pickling
    assert not other._files._descriptors and data._files._descriptors
    assert other.read(3) == before and repr(other) == repr(data)


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a.tar") as writer:
        writer.add("k_000000", {"txt": b"x"})
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["", "a.b_000000"])
def test_keys_that_would_break_the_field_rule(tmp_path, key):
    with pytest.raises(UserError), ShardWriter(tmp_path / "a.tar") as writer:
        writer.add(key, {"txt": b"x"})


def test_index_is_kept_and_rebuilt_when_stale(folder):
    path = folder / "val-00000.tar"
    first = open_index(path)
    saved = path.with_name(path.name + ".index.npz")
    stamp = saved.stat().st_mtime_ns
    open_index(path)
    assert saved.stat().st_mtime_ns == stamp, "a current index is not written again"
    with ShardWriter(path) as writer:
        writer.add(step_key("other", 0), {"txt": b"hello"})
    second = open_index(path)
    assert len(first) == 11 and [k.decode() for k in second.keys] == ["other_000000"]
    saved.write_bytes(saved.read_bytes()[:-40])
    np.testing.assert_array_equal(open_index(path).offsets, second.offsets)
    saved.write_bytes(b"no index at all")
    np.testing.assert_array_equal(open_index(path).sizes, second.sizes)


def test_touched_tar_is_indexed_anew(folder):
    path = folder / "val-00000.tar"
    open_index(path)
    saved = path.with_name(path.name + ".index.npz")
    before = saved.read_bytes()
    os.utime(path, ns=(1, 1))
    open_index(path)
    assert saved.read_bytes() != before


def test_unwritable_folder_is_read(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr("lapa_jax.data.shards.mapped.atomic_path", refuse)
    shards = StepShards(folder)
    assert len(shards) == 23 and shards.instructions() == ["push it"] and shards.read(3)
    assert len(np.concatenate(list(shards.column("action")))) == 19
    assert not list(folder.glob("*.npz")) and not list(folder.glob(".*"))


def test_webdataset_key_rule(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "dir", b"", type=tarfile.DIRTYPE)
        for name in ("./dir.x/k1.left.jpg", "dir.x/k1.cls", "dir.x/" + "n" * 200 + ".jpg", "é.txt"):
            add(archive, name, name.encode())
    index = build_index(tmp_path / "a.tar")
    assert [k.decode() for k in index.keys] == ["dir.x/k1", "dir.x/" + "n" * 200, "é"]
    assert index.fields == ("cls", "jpg", "left.jpg", "txt")
    data = (tmp_path / "a.tar").read_bytes()
    start, size = index.offsets[0, 2], index.sizes[0, 2]
    assert data[start : start + size] == b"./dir.x/k1.left.jpg" and index.offsets[0, 3] == -1


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_scan_agrees_with_stdlib(tmp_path, form):
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for i in range(20):
            length = (7 if form == tarfile.USTAR_FORMAT else 9) * i + 1
            add(archive, f"{'d' * length}/{i}.bin", rng.bytes(int(rng.integers(0, 3000))))
    with tarfile.open(tmp_path / "a.tar") as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    assert [(m.name, m.offset, m.size) for m in tar.scan(tmp_path / "a.tar")] == expected


@pytest.mark.parametrize(
    "name, fields, word",
    [
        ("/etc/k.txt", {}, "outside"),
        ("a/../../k.txt", {}, "outside"),
        ("k.txt", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "symbolic link"),
        ("k.txt", {"type": tarfile.LNKTYPE, "linkname": "j.txt"}, "hard link"),
        ("k.txt", {"type": tarfile.CHRTYPE}, "device"),
        ("k.txt", {"type": tarfile.FIFOTYPE}, "pipe"),
        (".hidden", {}, "no key"),
        ("j.txt", {}, "twice"),
    ],
)
def test_dangerous_members_are_refused(tmp_path, name, fields, word):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        add(archive, "j.txt")
        add(archive, name, b"" if fields else b"x", **fields)
    with pytest.raises(UserError, match=rf"bad\.tar.*{word}"):
        build_index(tmp_path / "bad.tar")


def test_every_truncation_is_noticed(folder):
    path = folder / "train-00000.tar"
    whole = path.read_bytes()
    short = folder / "short.tar"
    for length in [*range(0, len(whole) - 1024, 509), len(whole) - 1024]:
        short.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"short\.tar at byte \d+.*truncated"):
            build_index(short)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_random_damage_is_an_error_or_harmless(tmp_path, form):
    """Whatever bytes are changed, a scan ends with the members of the whole archive or with an error naming the tar."""
    rng = np.random.default_rng(0)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for i in range(6):
            add(archive, f"{'d' * 24 * i}d/{i}.bin" if form != tarfile.USTAR_FORMAT else f"{i}.bin", rng.bytes(300))
    whole, refused = path.read_bytes(), 0
    expected = list(tar.scan(path))
    for _ in range(700):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 20)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            index = build_index(path)
        except UserError as error:
            refused += 1
            assert "a.tar" in str(error)
        else:
            assert len(index) == len(expected)
    assert refused > 300


@pytest.mark.parametrize("table", ["kept", "made again"])
def test_every_flipped_byte_of_a_shard_is_found(folder, table):
    """The archive format has no checksum of the data, so members carry one: see `tar.member`."""
    path = folder / "train-00000.tar"
    whole = path.read_bytes()
    good = StepShards(folder)
    expected = [good.read(i) for i in range(len(good))]
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(whole), 400, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if table == "made again":
            table_path(folder, "train").unlink()
        try:
            data = StepShards(folder)
            assert [data.read(i) for i in range(len(data))] == expected, "padding may change, samples may not"
        except UserError as error:
            refused += 1
            assert "train-00000.tar" in str(error)
            table_path(folder, "train").touch()
    assert refused > (100 if table == "made again" else 80)


def test_a_tar_that_is_cut_while_it_is_read_costs_samples_not_the_run(folder):
    """The loader counts a `DamagedSample`, see `data.max_bad_samples`."""
    data = StepShards(folder)
    assert data.read(0)
    os.truncate(folder / "train-00000.tar", 100)
    with pytest.raises(DamagedSample, match=r"train-00000\.tar ends at byte \d+"):
        data.read(1)


def test_archives_joined_into_one_file_are_refused(folder):
    """The second of them would be lost: the first's end mark ends the scan."""
    path = folder / "train-00000.tar"
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(UserError, match=r"train-00000\.tar at byte \d+: data follow the end mark"):
        list(tar.scan(path))


def test_long_names_that_are_cut_within_a_character(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "d/" + "ü" * 60 + ".txt", b"x")
    assert [m.name for m in tar.scan(tmp_path / "a.tar")] == ["d/" + "ü" * 60 + ".txt"]


def test_damage_is_named(folder):
    path = folder / "train-00000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:512].replace(b"ep0", b"eq0") + whole[512:])
    with pytest.raises(UserError, match=r"train-00000\.tar at byte 0.*checksum"):
        StepShards(folder)
    path.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=r"train-00000\.tar has \d+ bytes.*damaged"):
        StepShards(folder)
    path.write_bytes(b"\x1f\x8b" + whole[2:])
    with pytest.raises(UserError, match="compressed"):
        StepShards(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar"):
        StepShards(folder)


def test_damaged_picture_is_named(folder):
    data = StepShards(folder)
    path = folder / "train-00000.tar"
    whole = path.read_bytes()
    at = whole.index(data.read(2, ["image.jpg"])["image.jpg"], whole.index(b"ep0_000002.image.jpg"))
    path.write_bytes(whole[:at] + b"\0" * 20 + whole[at + 20 :])
    with pytest.raises(UserError, match=r"train-00000\.tar.*ep0_000002\.image\.jpg is damaged"):
        StepShards(folder).image(2)


def test_what_is_no_shard_folder(tmp_path, folder):
    with pytest.raises(UserError, match="does not exist"):
        StepShards(tmp_path / "nothing")
    with pytest.raises(UserError, match="no step shards.*convert"):
        StepShards(tmp_path)
    with pytest.raises(UserError, match="no steps in split 'test'"):
        StepShards(folder, "test")
    (folder / ".convert").mkdir()
    values = json.loads((folder / DATASET).read_text())
    (folder / DATASET).write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        StepShards(folder)
    (folder / DATASET).unlink()
    with pytest.raises(UserError, match="unfinished"):
        StepShards(folder)


def test_steps_out_of_order_are_refused(folder):
    path = folder / "val-00000.tar"
    samples = [(step_key("ep", step), {"txt": b"x"}) for step in (0, 2, 1)]
    with ShardWriter(path) as writer:
        for key, members in samples:
            writer.add(key, members)
    values = json.loads((folder / DATASET).read_text())
    values["splits"]["val"]["shards"] = [writer.summary]
    (folder / DATASET).write_text(json.dumps(values))
    with pytest.raises(UserError, match="ep_000002.*out of order"):
        StepShards(folder, "val")


def test_byte_helpers():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(np.load(io.BytesIO(array_bytes(array))), array)
    assert json_bytes({"b": 1, "a": [1, 2]}) == b'{"a":[1,2],"b":1}'
    with pytest.raises(ValueError):
        json_bytes(float("nan"))


def test_resize_modes():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255
    assert (images.resize(image, 40, "center_crop") == 255).all()
    squashed = images.resize(image, 40, "squash")
    assert squashed.shape == (40, 40, 3) and (squashed[:, :8] == 0).all() and (squashed[:, 12:28] == 255).all()
    assert images.resize(squashed, 40) is squashed
