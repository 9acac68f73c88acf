import io
import json
import os
import random
import shutil
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.formats import rlds
from lapa_jax.data.formats.rlds import tfrecord
from tests.data.formats import make_rlds

OPTIONS = {"fps": None, "size": None, "resize": "squash", "cameras": "all", "action": "all", "state": "all"}
OPTIONS |= {"convention": None, "captions": None, "split": "auto"}


def options(**changes):
    return {**OPTIONS, **changes}


def read(source, **changes):
    listing = rlds.find(source, options(**changes))
    return {item.name: rlds.standardize(source, item, options(**changes)) for item in listing.items}


@pytest.fixture
def made(tmp_path):
    return tmp_path, make_rlds.make(tmp_path)


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_what_was_written_is_read(made):
    source, content = made
    listing = rlds.find(source, OPTIONS)
    assert rlds.detect(source) and rlds.detect(source / "1.0.0") and not rlds.detect(source / "1.0.0/features.json")
    assert [(i.name, i.split) for i in listing.items] == [(n, n.split("-")[0]) for n in sorted(content)]
    assert listing.missing == [] and listing.left_out == {} and listing.notes["convention"]["name"] == "bridge"
    json.dumps(listing.notes, allow_nan=False)
    for item in listing.items:
        episode, expected = rlds.standardize(source, item, OPTIONS), content[item.name]
        for name in ("action", "state"):
            assert episode.columns[name].dtype == np.float32
            np.testing.assert_array_equal(episode.columns[name], expected[name])
        assert (episode.text, episode.fps) == (expected["text"], 5.0)
        assert episode.dropped == {"first step, whose action is zero": 1}
        assert episode.left_out == ("language_embedding",)
        frames = [np.asarray(Image.open(io.BytesIO(frame))) for frame in episode.cameras["image"]]
        np.testing.assert_array_equal(frames, expected["frames"])
        assert list(episode.cameras) == ["image", "image_1", "image_2", "image_3"]
        assert list(episode.cameras["image_3"]) == [None] * len(frames), "blank frames of other cameras are none"
        assert None not in list(episode.cameras["image_1"])


def test_real_data_as_an_independent_reading_has_them(shared):
    """Against grain's TFRecord reader and a plain walk through the protocol buffer, with nothing of TFDS."""
    source = shared / "data/bridge_debug"
    listing = rlds.find(source, OPTIONS)
    assert len(listing.items) == 50 and [i.split for i in listing.items].count("val") == 25
    for split in ("train", "val"):
        (path,) = source.rglob(f"*-{split}.tfrecord*")
        items = [i for i in listing.items if i.split == split]
        for item, data in zip(items, grain.experimental.TFRecordIterDataset(str(path)), strict=True):
            raw, episode = example(data), rlds.standardize(source, item, OPTIONS)
            action = np.array(raw["steps/action"], np.float32).reshape(-1, 7)
            state = np.array(raw["steps/observation/state"], np.float32).reshape(-1, 7)
            assert np.abs(action[0, :6]).max() < 1e-6 and len(action) == 10
            np.testing.assert_array_equal(episode.columns["action"], action[1:])
            np.testing.assert_array_equal(episode.columns["state"], state[1:])
            assert {episode.text.encode()} == {t.strip() for t in raw["steps/language_instruction"]}
            for i in range(3):
                frames = list(episode.cameras["image" if i == 0 else f"image_{i}"])
                assert frames == raw[f"steps/observation/image_{i}"][1:], "the bytes of the pictures are untouched"
            assert list(episode.cameras["image_3"]) == [None] * 9
    frame = next(iter(rlds.standardize(source, listing.items[0], OPTIONS).cameras["image"]))
    np.testing.assert_array_equal(images.decode(frame), np.asarray(Image.open(io.BytesIO(frame))))


def example(data):
    """{name: list} of a serialised tf.train.Example, from the wire format: Example > Features > map > lists."""
    ((_, features),) = messages(data)
    found = {}
    for _, entry in messages(features):
        (_, name), (_, feature) = messages(entry)
        ((kind, values),) = messages(feature)
        values = [value for _, value in messages(values)]
        found[name.decode()] = list(np.frombuffer(values[0], "<f4")) if kind == 2 else values
    return found


def messages(data):
    """(field, bytes) of every length-delimited field of a protocol buffer message."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        assert tag & 7 == 2
        length, at = varint(data, at)
        yield tag >> 3, data[at : at + length]
        at += length


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def test_tensorflow_is_never_imported(made, root):
    source, _ = made
    code = (
        "import sys, pathlib, json\nfrom lapa_jax.data.formats import rlds\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "source, options = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "for item in rlds.find(source, options).items: rlds.standardize(source, item, options)\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules), 'neither is needed'"
    )
    subprocess.run([sys.executable, "-c", code, str(source), json.dumps(OPTIONS)], check=True, cwd=root)


def test_array_record_gives_the_same_as_tfrecord(made, tmp_path):
    source, content = made
    twin = tmp_path / "twin/bridge_dataset/1.0.0"
    shutil.copytree(source / "1.0.0", twin)
    edit(twin / "dataset_info.json", lambda info: info.update(fileFormat="array_record"))
    for path in list(twin.glob("*.tfrecord*")):
        payloads = [tfrecord.read(path, *record) for record in tfrecord.index(path)]
        make_rlds._write_shard(twin / path.name.replace("tfrecord", "array_record"), payloads, "array_record")
        path.unlink()
    episodes = read(twin)
    for name, expected in content.items():
        np.testing.assert_array_equal(episodes[name].columns["action"], expected["action"])
        frames = [images.decode(frame) for frame in episodes[name].cameras["image"]]
        np.testing.assert_array_equal(frames, expected["frames"])
    # and TFDS itself reads the same
    theirs = tfds.builder_from_directory(str(twin)).as_data_source("val")[0]
    action = np.stack([step["action"] for step in theirs["steps"]])
    np.testing.assert_array_equal(episodes["val-00000-00000"].columns["action"], action[1:])


def test_damaged_array_records_are_noticed_or_the_same(tmp_path):
    features = make_rlds.bridge_features()
    rng = np.random.default_rng(0)
    steps = [make_rlds._step(rng, t, 4, "x") for t in range(4)]
    make_rlds.write(tmp_path / "d", "bridge_dataset", features, {"train": [[steps, steps]]}, kind="array_record")
    (path,) = (tmp_path / "d").glob("*.array_record*")
    whole, seen = path.read_bytes(), {"same": 0, "refused": 0}
    want = {name: e.columns["action"].tobytes() for name, e in read(tmp_path / "d").items()}
    used = [i for i, byte in enumerate(whole) if byte]  # most of the file is padding
    for seed in range(60):
        damaged = bytearray(whole)
        damaged[random.Random(seed).choice(used)] ^= 1 << seed % 8
        path.write_bytes(damaged)
        try:
            got = {name: e.columns["action"].tobytes() for name, e in read(tmp_path / "d").items()}
            assert got == want, f"seed {seed} gives other numbers"
            seen["same"] += 1
        except (ValueError, UserError):
            seen["refused"] += 1
    assert seen["refused"] > 10, seen
    for data in (b"", b"x" * 100, whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{path.name}.*(ArrayRecord|the file is empty)"):
            rlds.find(tmp_path / "d", OPTIONS)


def test_missing_shards_are_reported_and_other_files_counted(made):
    source, content = made
    (source / "1.0.0/bridge_dataset-val.tfrecord-00000-of-00001").unlink()
    (source / "1.0.0/README.md").write_text("x")
    listing = rlds.find(source, OPTIONS)
    ((path, why),) = listing.missing
    assert path == "1.0.0/bridge_dataset-val.tfrecord-00000-of-00001" and "1 episodes" in why
    assert [i.name for i in listing.items] == [n for n in content if n.startswith("train")]
    assert listing.left_out == {"files that dataset_info.json does not list": 1}
    (source / "1.0.0/bridge_dataset-train.tfrecord-00000-of-00001").unlink()
    with pytest.raises(UserError, match="of 2 shards .* none is there"):
        rlds.find(source, OPTIONS)


def test_damaged_shards_name_file_and_byte(made):
    source, _ = made
    path = source / "1.0.0/bridge_dataset-train.tfrecord-00000-of-00001"
    whole = path.read_bytes()
    second = tfrecord.index(path)[1]
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=rf"{path.name}: the file is truncated: record 1 at byte {second.offset}"):
        rlds.find(source, OPTIONS)
    path.write_bytes(whole[: second.offset])
    with pytest.raises(UserError, match="it holds 1 episodes, dataset_info.json lists 2"):
        rlds.find(source, OPTIONS)
    path.write_bytes(whole)
    items = rlds.find(source, OPTIONS).items
    damaged = bytearray(whole)
    damaged[second.offset + 100] ^= 1
    path.write_bytes(damaged)
    rlds.standardize(source, items[0], OPTIONS)
    with pytest.raises(ValueError, match=f"record at byte {second.offset} is damaged"):
        rlds.standardize(source, items[1], OPTIONS)
    assert len(rlds.find(source, OPTIONS).items) == 3, "listing reads headers, not payloads"


def test_a_record_of_something_else(made):
    source, _ = made
    path = source / "1.0.0/bridge_dataset-val.tfrecord-00000-of-00001"
    for payload in (b"", b"\xff" * 30, b"hello"):
        tfrecord.write(path, [payload])
        (item,) = [i for i in rlds.find(source, OPTIONS).items if i.split == "val"]
        with pytest.raises(ValueError, match="no episode of this dataset"):
            rlds.standardize(source, item, OPTIONS)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.pop("splits"), "lacks 'name' or 'splits'"),
        (lambda i: i["splits"][0].pop("shardLengths"), "lacks 'name' or 'shardLengths'"),
        (lambda i: i["splits"][0].update(shardLengths="two"), "lacks 'name' or 'shardLengths'"),
        (lambda i: i.update(fileFormat="riegeli"), "'riegeli' is not read; tfrecord and array_record are"),
        (lambda i: i["splits"][0].update(filepathTemplate="../{SPLIT}"), "lies outside"),
        (lambda i: i["splits"][0].update(filepathTemplate="/etc/{SPLIT}"), "lies outside"),
        (lambda i: i.update(name="my_robot"), "no convention is known for the dataset 'my_robot'"),
    ],
)
def test_tables_that_cannot_be_used(made, change, message):
    source, _ = made
    edit(source / "1.0.0/dataset_info.json", change)
    with pytest.raises(UserError, match=message):
        rlds.find(source, OPTIONS)


def test_features_that_cannot_be_used(made):
    source, _ = made
    path = source / "1.0.0/features.json"
    good = path.read_text()
    for text, message in (
        ("{", "not valid JSON"),
        ("{}", "cannot be understood|no nested dataset"),
        ("[1]", "cannot be understood"),
        (good.replace("dataset_feature.Dataset", "nowhere.Dataset"), "cannot be understood"),
        (good.replace('"steps"', '"stops"'), "no nested dataset 'steps'"),
    ):
        path.write_text(text)
        os.utime(path, ns=(1, hash(text) % 10**15))
        with pytest.raises(UserError, match=message):
            rlds.find(source, OPTIONS)


def test_where_datasets_are_found(made, tmp_path):
    source, _ = made
    assert len(rlds.find(source / "1.0.0", OPTIONS).items) == 3
    (tmp_path / "other").mkdir()
    assert not rlds.detect(tmp_path / "other")
    with pytest.raises(UserError, match="is no TensorFlow Datasets folder"):
        rlds.find(tmp_path / "other", OPTIONS)
    shutil.copytree(source / "1.0.0", source / "1.1.0")
    with pytest.raises(UserError, match="holds 2 datasets or versions; give one of them: 1.0.0, 1.1.0"):
        rlds.find(source, OPTIONS)
    assert len(rlds.find(source, OPTIONS, exclude=(source / "1.1.0").resolve()).items) == 3


def test_shards_may_be_symbolic_links(made, tmp_path):
    """The cache of the Hugging Face hub lays out datasets so."""
    source, _ = made
    (tmp_path / "blobs").mkdir()
    for path in list((source / "1.0.0").iterdir()):
        blob = path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(blob)
    assert len(read(source / "1.0.0")) == 3


def test_cameras_and_states_by_name(made):
    source, content = made
    episode = read(source, cameras="image_2,image_0", state="state[6:7],state[0:2]")["train-00000-00000"]
    expected = content["train-00000-00000"]
    assert list(episode.cameras) == ["image", "image_0"]
    frames = [images.decode(frame) for frame in episode.cameras["image_0"]]
    np.testing.assert_array_equal(frames, expected["frames"])
    np.testing.assert_array_equal(episode.columns["state"], expected["state"][:, [6, 0, 1]])
    with pytest.raises(UserError, match="no camera 'image_9'.*image_0, image_1"):
        read(source, cameras="image_9")
    with pytest.raises(UserError, match="no state 'stat'.*did you mean 'state'"):
        read(source, state="stat")
    with pytest.raises(UserError, match="every|outside"):
        read(source, state="state[5:9]")


def episodes_of(tmp_path, change):
    """Two episodes of Bridge with their steps changed, read."""
    rng = np.random.default_rng(3)
    episodes = [[make_rlds._step(rng, t, 4, "push") for t in range(4)] for _ in range(2)]
    for steps in episodes:
        change(steps)
    make_rlds.write(tmp_path / "d", "bridge_dataset", make_rlds.bridge_features(), {"train": [episodes]})
    return read(tmp_path / "d")


def test_a_blank_main_camera_is_refused_a_blank_frame_is_not(tmp_path):
    blank = make_rlds.picture(np.random.default_rng(0), blank=True)

    def one(steps):
        steps[2]["observation"]["image_0"] = blank

    def all_of_them(steps):
        for step in steps[1:]:
            step["observation"]["image_0"] = blank

    assert list(episodes_of(tmp_path / "a", one)["train-00000-00000"].cameras["image"])[1] == blank
    with pytest.raises(ValueError, match="every frame of the main camera 'observation/image_0' is blank"):
        episodes_of(tmp_path / "b", all_of_them)


def test_a_damaged_picture_of_another_camera_names_step_and_camera(tmp_path):
    def change(steps):
        whole = steps[2]["observation"]["image_1"]
        steps[2]["observation"]["image_1"] = whole[: len(whole) // 2]

    episode = episodes_of(tmp_path, change)["train-00000-00000"]
    with pytest.raises(ValueError, match="step 2: the picture 'observation/image_1' cannot be decoded"):
        list(episode.cameras["image_1"])


def test_a_first_action_that_moves_is_kept(tmp_path):
    def change(steps):
        steps[0]["action"] = np.ones(7, np.float32)

    episode = episodes_of(tmp_path, change)["train-00000-00000"]
    assert episode.dropped == {} and len(episode.columns["action"]) == 4 == len(list(episode.cameras["image"]))


@pytest.mark.parametrize("flag, step", [("is_first", 2), ("is_last", 1)])
def test_two_episodes_in_one_record_are_refused(tmp_path, flag, step):
    with pytest.raises(ValueError, match=f"step {step} of 4 is marked {flag}"):
        episodes_of(tmp_path, lambda steps: steps[step].update({flag: True}))


def test_instructions_may_change_within_an_episode(tmp_path):
    episode = episodes_of(tmp_path, lambda steps: steps[3].update(language_instruction=" pull "))["train-00000-00001"]
    assert episode.text == ["push", "push", "pull"]


def test_numbers_that_are_not_finite(tmp_path):
    def change(steps):
        steps[2]["action"] = steps[2]["action"] * np.nan

    with pytest.raises(ValueError, match="'action' holds 7 numbers that are not finite"):
        episodes_of(tmp_path, change)


def test_without_held_out_episodes_the_split_is_open(tmp_path):
    episodes_of(tmp_path, lambda steps: None)
    assert {i.split for i in rlds.find(tmp_path / "d", OPTIONS).items} == {""}


def test_a_shard_that_vanished_after_the_listing(made):
    source, _ = made
    item = rlds.find(source, OPTIONS).items[0]
    (source / item.path).unlink()
    with pytest.raises(ValueError, match="No such file"):
        rlds.standardize(source, item, OPTIONS)


def test_the_forms_of_instructions():
    assert rlds._as_text(b" push ") == rlds._as_text(" push ") == "push"
    assert rlds._as_text(np.array([b"", b"push", b"pull"], object)) == "push"
    assert rlds._as_text(np.array([*"münze".encode(), 0, 0], np.int32)) == "münze"
    for value in (b"\xff", np.array([300], np.int32), np.array([0xC3], np.int64), np.array([1.5]), np.array(True)):
        with pytest.raises(ValueError, match="step 3: 'text' is no UTF-8 text"):
            rlds._text({"text": value}, ["text"], 3)
