import io
import json
import os
import pathlib
import resource
import shutil
import tarfile

import av
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.formats import detect, webdataset
from lapa_jax.data.shards.step_shards import StepShards
from tests.data import videos
from tests.data.formats import make_webdataset as wds

OPTIONS = Options(size=None).for_readers()


def read(source, **options):
    """{item name: Episode} and the listing."""
    listing = webdataset.find(source, {**OPTIONS, **options})
    return {i.name: webdataset.standardize(source, i, {**OPTIONS, **options}) for i in listing.items}, listing


def shown(episode, camera="image"):
    frames = [f if isinstance(f, np.ndarray) else wds.seen(f) for f in episode.cameras[camera]]
    return np.stack(frames)


@pytest.mark.parametrize("make", [wds.make, wds.make_videos, wds.make_pairs])
def test_every_kind_gives_what_was_written(tmp_path, make):
    made = make(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert webdataset.detect(tmp_path) and detect(tmp_path) == "webdataset"
    episodes, listing = read(tmp_path)
    assert list(episodes) == list(made) and not listing.missing and not listing.left_out
    for name, expected in made.items():
        episode = episodes[name]
        assert episode.text == expected["text"]
        assert set(episode.columns) == set(expected) - {"text", "frames"}
        for column, rows in episode.columns.items():
            np.testing.assert_array_equal(rows, expected[column])
        error = np.abs(shown(episode).astype(int) - expected["frames"]).mean()
        assert error < (8 if make is wds.make_videos else 0.01), "the loss of a video, and none of a picture"
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "nothing is written beside the source"


def test_the_recorded_set_read_with_other_tools(shared):
    source = shared / "data" / "webdataset_push_table"
    episodes, listing = read(source)
    with tarfile.open(source / "shard-000000.tar") as file:
        content = {entry.name: file.extractfile(entry).read() for entry in file}
    keys = sorted({name.partition(".")[0] for name in content})
    assert list(episodes) == [f"shard-000000/{key}" for key in keys] and len(keys) == 10
    for key in keys:
        episode, facts = episodes[f"shard-000000/{key}"], json.loads(content[f"{key}.json"])
        arrays = np.load(io.BytesIO(content[f"{key}.npz"]))
        with av.open(io.BytesIO(content[f"{key}.mp4"])) as container:
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        np.testing.assert_array_equal(shown(episode), frames)
        np.testing.assert_array_equal(episode.columns["action"], arrays["action"])
        np.testing.assert_array_equal(episode.columns["state"], arrays["state"])
        assert len(frames) == len(arrays["action"]) + 1
        assert (episode.text, episode.task, episode.fps) == (facts["instruction"], facts["task"], facts["fps"])
        assert not episode.left_out


@pytest.mark.parametrize("make", [wds.make, wds.make_videos, wds.make_pairs])
def test_conversion(tmp_path, make):
    made = make(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", Options(size=None, split="val"), 0)
    assert report["format"] == "webdataset" and report["episodes"] == 3 and not report["errors"]
    data = StepShards(tmp_path / "out", "val")
    for e, (name, expected) in zip(data.episodes, made.items(), strict=True):
        assert e.id == name.replace("/", "-") and e.length == len(expected["frames"])
        assert data.text(e.start) == expected["text"]
        for column in set(expected) & set(data.features):
            rows = [data.array(e.start + t, column) for t in range(len(expected[column]))]
            np.testing.assert_array_equal(rows, expected[column])
        if make is not wds.make_videos:
            stored = [data.read(e.start + t)["image.jpg"] for t in range(e.length)]
            np.testing.assert_array_equal([wds.seen(d) for d in stored], expected["frames"])


def test_our_own_shards_are_webdataset_too(root, tmp_path):
    folder = tmp_path / "sample"  # without the features, latents and videos that lie in folders of it
    shutil.copytree(root / "lapa_jax" / "sample", folder, ignore=shutil.ignore_patterns("features", "latents", "mp4"))
    episodes, listing = read(folder)
    splits = {item.name: item.split for item in listing.items}
    for split in ("train", "val"):
        data = StepShards(folder, split)
        assert {e.id for e in data.episodes} == {name for name, told in splits.items() if told == split}
        for e in data.episodes[:3]:
            steps = range(e.start, e.start + e.length)
            assert list(episodes[e.id].cameras["image"]) == [data.read(i)["image.jpg"] for i in steps]
            actions = [data.array(i, "action") for i in steps if data.has(i, "action.npy")]
            np.testing.assert_array_equal(episodes[e.id].columns["action"], actions)
            assert episodes[e.id].text == data.text(e.start) and episodes[e.id].fps == data.meta(e.start)["fps"]


def steps(count=3, **members):
    """The members of an episode "e" of small pictures, each step with `members` ({field: bytes})."""
    picture = wds.jpeg(np.zeros((16, 16, 3), np.uint8))
    return [(f"e_{t}.{f}", d) for t in range(count) for f, d in {"jpg": picture, **members}.items()]


def test_shuffled_steps_come_in_order_of_their_numbers(tmp_path):
    made = wds.episodes(3)
    members = [m for name, content in made.items() for m in wds.step_members(name, content, start=7)]
    keys = sorted({name.partition(".")[0] for name, _ in members})
    np.random.default_rng(0).shuffle(keys)
    for number in (0, 1):
        chosen = [m for key in keys[number::2] for m in members if m[0].partition(".")[0] == key]
        wds.write_tar(tmp_path / f"{number}.tar", chosen)
    episodes, listing = read(tmp_path)
    assert set(episodes) == set(made) and "episodes_with_gaps_in_their_numbers" not in listing.notes
    for name, content in made.items():
        np.testing.assert_array_equal(episodes[name].columns["state"], content["state"])
        np.testing.assert_array_equal(episodes[name].columns["action"], content["action"])


def test_steps_placed_by_their_json(tmp_path):
    """Keys that merely count through the tar, as in `000012.jpg` and `sample_000012.jpg`."""
    for key in ("{:06d}", "sample_{:06d}"):
        members, number = [], 0
        for episode in ("x", "y"):
            for step in (0, 2, 1):
                place = {"video_id": episode, "frame_idx": step, "camera": "top", "caption": f"go {episode}{step}"}
                members.append((f"{key.format(number)}.json", json.dumps(place).encode()))
                members.append((f"{key.format(number)}.jpg", wds.jpeg(np.full((16, 16, 3), 40 * step, np.uint8))))
                number += 1
        wds.write_tar(tmp_path / "a.tar", members)
        episodes, _ = read(tmp_path)
        assert list(episodes) == ["x", "y"]
        assert [int(f.mean().round()) for f in shown(episodes["x"])] == [0, 40, 80]
        assert episodes["y"].text == ["go y0", "go y1", "go y2"] and episodes["y"].left_out == ["camera (json)"]


def test_tars_that_each_count_anew(tmp_path):
    for name, shade in (("train/a", 10), ("train/b", 90), ("test/a", 200)):
        picture = wds.jpeg(np.full((16, 16, 3), shade, np.uint8))
        wds.write_tar(tmp_path / f"{name}.tar", [(f"0_{t}.jpg", picture) for t in (0, 1, 3)])
    episodes, listing = read(tmp_path)
    assert {item.name: item.split for item in listing.items} == {
        "train/a/0": "train",
        "train/b/0": "train",
        "test/a/0": "val",
    }
    assert {name: int(shown(e).mean().round()) for name, e in episodes.items()} == {
        "train/a/0": 10, "train/b/0": 90, "test/a/0": 200,
    }  # fmt: skip
    assert listing.notes["episodes_with_gaps_in_their_numbers"] == 3


def test_cameras_and_what_is_left_out(tmp_path):
    grey = [wds.jpeg(np.full((16, 16, 3), v, np.uint8)) for v in (10, 120)]
    wrist = {"image.jpg": grey[0], "image_wrist.png": wds.jpeg(np.full((16, 16, 3), 200, np.uint8), "PNG")}
    members = [
        (n, d) for n, d in steps(3, **wrist, cls=b"3", **{"mask.npy": b"?"}) if n not in ("e_1.image_wrist.png",)
    ]
    wds.write_tar(
        tmp_path / "a.tar",
        [m for m in members if not m[0].endswith("_0.jpg") and m[0].count(".") > 1 or ".cls" in m[0]],
    )
    (tmp_path / "notes.md").write_text("x")
    episodes, listing = read(tmp_path)
    episode = episodes["e"]
    assert list(episode.cameras) == ["image", "image_wrist"] and episode.left_out == [".cls", ".mask.npy"]
    assert [f is None for f in episode.cameras["image_wrist"]] == [False, True, False]
    assert listing.left_out == {"files .md": 1}
    chosen = read(tmp_path, cameras="image_wrist")[0]["e"]
    assert list(chosen.cameras) == ["image"] and next(iter(chosen.cameras["image"]))[:4] == b"\x89PNG"
    assert "camera image" in chosen.left_out
    with pytest.raises(ValueError, match="no camera 'left'.*it has image, image_wrist"):
        read(tmp_path, cameras="left")


def test_numbers_without_pictures(tmp_path):
    rows = np.arange(12, dtype="f8").reshape(4, 3)
    wds.write_tar(tmp_path / "steps" / "a.tar", [(f"e_{t}.state.npy", wds.npy(rows[t])) for t in range(4)])
    wds.write_tar(tmp_path / "npz" / "a.tar", [("e.npz", wds.npz(actions=rows, reward=rows[:, 0]))])
    wds.write_tar(tmp_path / "npy" / "a.tar", [("e.feature.npy", wds.npy(rows)), ("e.json", b'{"action": [1, 2, 3]}')])
    (stepwise,), (npz,), (npy,) = (list(read(tmp_path / n)[0].values()) for n in ("steps", "npz", "npy"))
    assert not stepwise.cameras and not npz.cameras and not npy.cameras
    np.testing.assert_array_equal(stepwise.columns["state"], rows)
    np.testing.assert_array_equal(npz.columns["action"], rows)
    np.testing.assert_array_equal(npy.columns["feature"], rows)
    np.testing.assert_array_equal(npy.columns["action"], [[1], [2], [3]])
    assert npz.left_out == ["reward (npz)"] and npy.columns["action"].dtype == np.float32


def test_frame_rates(tmp_path):
    clip = videos.write(tmp_path / "v.mp4", 6, rate=15).read_bytes()
    for facts, fps in (({}, 15), ({"fps": 5}, 5), ({"fps": None}, 15)):
        wds.write_tar(tmp_path / "t" / "a.tar", [("v.mp4", clip), ("v.json", json.dumps(facts).encode())])
        episode = read(tmp_path / "t")[0]["a/v"]
        assert episode.fps == fps, "known before a frame is read"
        assert [videos.number_of(f) for f in episode.cameras["image"]] == list(range(6))
    wds.write_tar(tmp_path / "t" / "a.tar", [("v.mp4", clip), ("v.json", b'{"fps": "fast"}')])
    with pytest.raises(ValueError, match=r"v\.json: fps is 'fast'"):
        read(tmp_path / "t")


def test_more_tars_than_open_files(tmp_path):
    for number in range(40):
        wds.write_tar(
            tmp_path / f"{number:03d}.tar", [(n.replace("e_", f"{number}_"), d) for n, d in steps(2, json=b"{}")]
        )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        items = webdataset.find(tmp_path, OPTIONS).items
        lengths = [len(shown(webdataset.standardize(tmp_path, item, OPTIONS))) for item in items]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert lengths == [2] * 40


PICTURE = wds.jpeg(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize(
    "members, message",
    [
        ([("000_t.jpg", PICTURE)], "'000' lacks one of its two frames"),
        ([("0_image.jpg", PICTURE), ("0_latent.npy", b""), ("0.txt", b"x")], "'0' does not say which step"),
        ([(f"run/22.0{i}.jpg", PICTURE) for i in range(4)], r"'run/22\.00\.jpg' would be camera '00' .* first dot"),
        ([(f"{i // 5}.{i % 5}.png", PICTURE) for i in range(20)], r"'0\.0\.png' would be camera '0' of sample '0'"),
        ([(f"clip.v2_{i:06d}.jpg", PICTURE) for i in range(4)], "camera 'v2_000000' of sample 'clip', one of 4"),
        ([(f"2023.01.0{i}_clip.mp4", b"") for i in range(3)], "camera '01.00_clip' of sample '2023', one of 3"),
        ([("000001.jpg", PICTURE)], r"'000001' does not say which step.*\{episode\}_\{number\}"),
        ([("0.t.jpg", PICTURE)], "'0' lacks one of its two frames"),
        (
            [("0.t.jpg", PICTURE), ("0.t1.jpg", PICTURE), ("1.mp4", b"")],
            r"mixes frame pairs \('0' in a\.tar\) and videos",
        ),
        ([("e_1.jpg", PICTURE), ("e_01.jpg", PICTURE)], "step 1 of episode 'e' occurs twice"),
        ([("e.TXT", b"x"), ("e.cls", b"1")], r"no sample with pictures, a video or arrays; it has \['TXT', 'cls'\]"),
        ([("e_1.jpg", PICTURE), ("e_1.json", b"{")], "e_1.json: no valid JSON"),
        ([("../e_1.jpg", PICTURE)], "points outside the archive"),
        ([("a/../../e_1.jpg", PICTURE)], "points outside the archive"),
        ([("/e_1.jpg", PICTURE)], "points outside the archive"),
        ([("/" + "a" * 150 + "/e_1.jpg", PICTURE)], "points outside the archive"),
        ([("e_1.jpg", PICTURE), ("e_1.jpg", PICTURE)], "'e_1.jpg' occurs twice"),
        ([("e_1.jpg", PICTURE), ("./e_1.jpg", PICTURE)], "'e_1.jpg' occurs twice"),
        ([("README", b"x")], "'README' has no key and field"),
        ([], "holds no sample"),
    ],
)
def test_sources_that_are_refused(tmp_path, members, message):
    wds.write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    long = "folder" * 20 + "ü/e"
    for name, refused in ((long, False), ("../" + long, True), ("/" + long, True)):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as file:
            for t in range(2):
                entry = tarfile.TarInfo(f"{name}_{t}.jpg")
                entry.size = len(PICTURE)
                file.addfile(entry, io.BytesIO(PICTURE))
        if refused:
            with pytest.raises(UserError, match="points outside"):
                read(tmp_path)
        else:
            assert list(read(tmp_path)[0]) == [long]


@pytest.mark.parametrize(
    "kind, what",
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (b"S", "of unknown type"),
    ],
)
def test_links_and_devices_are_refused(tmp_path, kind, what):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        entry = tarfile.TarInfo("e_0.jpg")
        entry.type, entry.linkname = kind, "/etc/passwd"
        file.addfile(entry)
    with pytest.raises(UserError, match=f"'e_0.jpg' is {what}"):
        read(tmp_path)


def test_compressed_and_absent(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar"):
        read(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="compressed"):
        read(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("e_0.jpg"))
    with pytest.raises(UserError, match="compressed"):
        read(tmp_path / "a.tar")


def test_the_output_in_the_source_is_no_source(tmp_path):
    wds.make(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "out")
    listing = webdataset.find(tmp_path, OPTIONS, (tmp_path / "out").resolve())
    assert all("out" not in item.path for item in listing.items) and len(listing.items) == 3


@pytest.mark.parametrize(
    "members, message",
    [
        (steps(2)[:1] + [("e_0.action.npy", b"\x93NUMPY")], r"e_0\.action\.npy: no readable array"),
        (steps(2) + [("e_1.state.npy", wds.npy([1.0]))], "e_0 has no 'state'"),
        (steps(2) + [("e_0.state.npy", wds.npy([1.0])), ("e_1.state.npy", wds.npy([1.0, 2]))], "e_1 has 2 values"),
        (steps(1) + [("e_0.action.npy", wds.npy([[1.0]]))], r"shape \[1, 1\], expected \[values\]"),
        (steps(1) + [("e_0.action.npy", wds.npy(np.array([{}])))], "Object arrays|objects"),
        (steps(1) + [("e_0.action.npy", wds.npy([np.nan]))], "not finite"),
        (steps(1) + [("e_0.latent.npy", wds.npy([0.5]))], "no int32"),
        (steps(1) + [("e_0.action.npy", wds.npy([1.0])), ("e_0.json", b'{"actions": [1]}')], "more than once"),
        (steps(1) + [("e_0.json", b'{"action": [1, [2]]}')], "rows of different lengths"),
        (steps(1) + [("e_0.jpeg", PICTURE)], r"two pictures of camera 'image', \.jpeg and \.jpg"),
        (steps(1) + [("e_0.txt", b"\xff")], r"e_0\.txt: no UTF-8"),
        (steps(2, json=b'{"fps": 5}')[:-1] + [("e_1.json", b'{"fps": 6}')], "different frame rates"),
        (
            steps(2)[:1]
            + [("e_0.json", b'{"episode": "e", "step": 0}')]
            + steps(2)[1:]
            + [("e_1.json", b'{"episode": "f", "step": 1}')],
            "e_1.json says step 1 of episode 'f', which is not its place",
        ),
        ([("v.mp4", b"no video")], "Invalid"),
        ([("v.npz", b"PK")], r"v\.npz: no readable npz"),
        ([("v.npz", wds.npz(action=np.zeros((2, 2)))[:-40])], r"v\.npz: no readable npz"),
    ],
)
def test_damaged_episodes_name_the_place(tmp_path, members, message):
    wds.write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message) as error:
        for episode in read(tmp_path)[0].values():
            shown(episode)
    assert str(tmp_path) not in str(error.value)


def test_a_checksum_that_is_there_is_checked(tmp_path, root):
    path = tmp_path / "train-00000.tar"
    shutil.copy(root / "lapa_jax" / "sample" / "train-00000.tar", path)
    item = webdataset.find(path, OPTIONS).items[0]
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xda")  # in the first picture, before its compressed data
    data[at + 20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="image.jpg: its checksum is wrong"):
        shown(webdataset.standardize(path, item, OPTIONS))


def test_a_tar_that_goes_away(tmp_path):
    wds.make(tmp_path)
    items = webdataset.find(tmp_path, OPTIONS).items
    for path in pathlib.Path(tmp_path).glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"data-000\.tar") as error:
        webdataset.standardize(tmp_path, items[0], OPTIONS)
    assert str(tmp_path) not in str(error.value)


def test_members_named_with_an_underscore(tmp_path):
    """The names that LAPA's specification gives: every one is a sample of its own to WebDataset."""
    made = wds.episodes(4)
    pairs, labelled, demonstrations = [], [], []
    for e, (name, content) in enumerate(made.items()):
        images = [wds.jpeg(frame) for frame in content["frames"]]
        codes = np.arange(4) + e
        pairs += [(f"{e:06d}_t.jpg", images[0]), (f"{e:06d}_t1.jpg", images[1])]
        pairs.append((f"{e:06d}.json", json.dumps({"video_id": name, "frame_idx": 0}).encode()))
        for t, image in enumerate(images):
            number = f"{len(labelled) // 4:06d}"
            place = json.dumps({"video_id": name, "frame_idx": t, "task_id": 3}).encode()
            labelled += [(f"{number}_image.jpg", image), (f"{number}.txt", content["text"].encode())]
            labelled += [(f"{number}_latent.npy", wds.npy(codes + t)), (f"{number}.json", place)]
            key = f"traj_{e:05d}_step_{t:03d}"
            demonstrations += [(f"{key}_image.jpg", image), (f"{key}_image_wrist.jpg", images[0])]
            if t < len(content["action"]):
                demonstrations.append((f"{key}_action.npy", wds.npy(content["action"][t])))
        demonstrations += [(f"traj_{e:05d}.txt", content["text"].encode()), (f"traj_{e:05d}.json", b'{"fps": 5}')]
    for folder, members in (("pairs", pairs), ("labelled", labelled), ("demonstrations", demonstrations)):
        wds.write_tar(tmp_path / folder / "a.tar", members)
    found, listing = read(tmp_path / "pairs")
    for episode, content in zip(found.values(), made.values(), strict=True):
        np.testing.assert_array_equal(shown(episode), [wds.seen(wds.jpeg(f)) for f in content["frames"][:2]])
    assert listing.notes["members named {key}_{field}.{ending}, read as {key}.{field}.{ending}"] == 6
    found, listing = read(tmp_path / "labelled")
    for e, (name, content) in enumerate(made.items()):
        assert found[name].text == content["text"] and len(shown(found[name])) == len(content["frames"])
        expected = np.arange(4) + e + np.arange(len(content["frames"]))[:, None]
        np.testing.assert_array_equal(found[name].columns["latent"], expected)
    found, listing = read(tmp_path / "demonstrations")
    assert listing.notes["texts of whole episodes"] == 3 and not listing.left_out
    for (name, episode), content in zip(found.items(), made.values(), strict=True):
        assert name.startswith("traj_0000") and list(episode.cameras) == ["image", "image_wrist"]
        assert episode.text == content["text"] and episode.fps == 5 and not episode.left_out
        np.testing.assert_array_equal(episode.columns["action"], content["action"])


def test_a_text_for_each_episode(tmp_path):
    members = [(n.replace("e_", f"{name}_"), d) for name in "ab" for n, d in steps(3)]
    members += [(f"{name}.txt", name.encode()) for name in "ab"]
    wds.write_tar(tmp_path / "0.tar", [*members, ("c.txt", b"of no episode"), ("a_1.txt", b"its own")])
    wds.write_tar(tmp_path / "1.tar", [(n.replace("e_", "a_"), d) for n, d in steps(2)])
    found, listing = read(tmp_path)
    assert {name: episode.text for name, episode in found.items()} == {
        "0/a": ["a", "its own", "a"], "b": "b", "1/a": ""
    }  # fmt: skip
    assert listing.left_out == {"samples without pictures or arrays": 1}
    assert "1 texts that belong to no step, the first c.txt" in listing.unread["instructions"]
    members = [(name.replace("e_", "traj_0_step_"), data) for name, data in steps(3)]
    wds.write_tar(tmp_path / "0.tar", [*members, ("traj_0_text.txt", b"go")])
    found, listing = read(tmp_path)
    assert found["traj_0"].text == "go" and not listing.unread


def test_companions_of_macos_are_no_samples(tmp_path):
    made = wds.make(tmp_path / "plain")
    for path in sorted((tmp_path / "plain").glob("*.tar")):
        with tarfile.open(path) as file:
            members = [(entry.name, file.extractfile(entry).read()) for entry in file]
        mixed = [(".DS_Store", b"x"), ("__MACOSX/b/._1_0000.jpg", b"x")]
        for name, data in members:
            folder, _, base = name.rpartition("/")
            mixed += [(f"./{folder}/._{base}".replace("//", "/"), b"\0\5\x16\7"), (name, data)]
        wds.write_tar(tmp_path / "mac" / path.name, mixed)
    (plain, _), (mac, listing) = read(tmp_path / "plain"), read(tmp_path / "mac")
    assert list(mac) == list(made)
    for name, episode in mac.items():
        np.testing.assert_array_equal(shown(episode), shown(plain[name]))
    names = [name for path in (tmp_path / "mac").glob("*.tar") for name in tarfile.open(path).getnames()]
    count = sum("._" in name for name in names)
    assert listing.left_out == {"companions of macOS and Windows (._*, .DS_Store)": count + 2}


def test_endings_in_capitals(tmp_path):
    picture = wds.jpeg(np.full((16, 16, 3), 90, np.uint8))
    fields = {"JPG": picture, "IMAGE_WRIST.PNG": picture, "TXT": b"push it", "ACTION.NPY": wds.npy([1.0, 2.0])}
    fields["Json"] = b'{"fps": 7}'
    wds.write_tar(tmp_path / "A.TAR", [(f"ep_{t}.{field}", data) for t in range(3) for field, data in fields.items()])
    (episode,) = read(tmp_path)[0].values()
    assert list(episode.cameras) == ["image", "image_wrist"] and episode.text == "push it" and episode.fps == 7
    np.testing.assert_array_equal(episode.columns["action"], [[1, 2]] * 3)
    assert not episode.left_out


@pytest.mark.parametrize("key", ["ep_000001", "000001"])
def test_cameras_with_numbers_are_cameras(tmp_path, key):
    members = []
    for t in range(6):
        place = json.dumps({"episode": "e", "step": t}).encode()
        members += [(f"{key[:-1]}{t}.{camera}", PICTURE) for camera in ("image_0.jpg", "image_1.jpg", "image_002.jpg")]
        members += [(f"{key[:-1]}{t}.3.jpg", PICTURE), (f"{key[:-1]}{t}.left.rgb.jpg", PICTURE)]
        members.append((f"{key[:-1]}{t}.json", place))
    wds.write_tar(tmp_path / "a.tar", members)
    (episode,) = read(tmp_path)[0].values()
    assert len(episode.cameras) == 5
