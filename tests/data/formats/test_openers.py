"""Every format opens its images and videos with the same two openers: what holds for one holds for all of them."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.data import image_files, images
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import StepShards
from tests.data import test_video, videos
from tests.data.formats import make_lerobot, make_robomimic
from tests.data.formats import make_webdataset as wds
from tests.data.test_image_files import file_of

FRAMES = [videos.frame(k) for k in range(5)]


def go(source, **options):
    """(report, shards of all episodes) of a conversion."""
    out = source.parent / f"{source.name}_out{len(list(source.parent.iterdir()))}"
    report = convert(source, out, Options(**{"size": None, "split": "train", **options}))
    return report, StepShards(out)


def cameras(shards) -> list[str]:
    return sorted(name for name, feature in shards.features.items() if feature.get("codec") == "jpeg")


def numbers(shards, episode=0) -> list[int]:
    first = shards.episodes[episode]
    return [videos.number_of(shards.image(first.start + t)) for t in range(first.length)]


def tar_of(folder, **members):
    """A tar of steps; members: {field with _ for ".": bytes of each step}."""
    rows = [(f"ep_{t:03d}.{field.replace('_', '.')}", data[t]) for t in range(5) for field, data in members.items()]
    wds.write_tar(folder / "train-0.tar", rows)
    return folder


@pytest.mark.parametrize("field, why", [
    ("depth_png", "camera depth"), ("mask_png", "camera mask"),
    ("sensor_png", "camera image_sensor (16-bit or float single channel beside colour)"),
])  # fmt: skip
def test_depth_members_are_no_cameras(tmp_path, field, why):
    deep = [file_of(np.full((48, 64), 3000 + t, np.uint16), "PNG") for t in range(5)]
    folder = tar_of(tmp_path / "in", jpg=[file_of(frame, "JPEG") for frame in FRAMES], **{field: deep})
    report, shards = go(folder)
    assert cameras(shards) == ["image"] and numbers(shards) == [0, 1, 2, 3, 4] and report["fields_left_out"] == [why]
    if "sensor" in field:
        # who asks for it and says what is white has it
        with pytest.raises(UserError, match="is 3000, as of a camera of 12 bits: say which value is white"):
            go(folder, cameras="image,sensor")
        report, shards = go(folder, cameras="image,sensor", white=65535)
        assert cameras(shards) == ["image", "image_sensor"] and shards.image(0, "image_sensor").max() == 12
        assert report["remarks"] == {image_files.SCALED: 5}
        with pytest.raises(UserError, match="no camera"):
            go(folder, cameras="nothing")


def test_grey_cameras_are_cameras(tmp_path):
    grey = [file_of(Image.fromarray(frame).convert("L"), "JPEG") for frame in FRAMES]
    _, shards = go(tar_of(tmp_path / "in", jpg=[file_of(frame, "JPEG") for frame in FRAMES], left_jpg=grey))
    assert cameras(shards) == ["image", "image_left"]
    (tmp_path / "alone").mkdir()
    wds.write_tar(tmp_path / "alone/a.tar", [(f"ep_{t}.jpg", data) for t, data in enumerate(grey)])
    assert numbers(go(tmp_path / "alone")[1]) == [0, 1, 2, 3, 4]


def test_a_main_camera_of_depth_is_refused(tmp_path):
    deep = [file_of(np.full((48, 64), 3000, np.uint16), "PNG") for _ in range(5)]
    folder = tar_of(tmp_path / "in", png=deep, wrist_jpg=[file_of(frame, "JPEG") for frame in FRAMES])
    with pytest.raises(UserError, match="the main camera holds 16-bit .* name the cameras with --cameras"):
        go(folder)
    assert cameras(go(folder, cameras="wrist")[1]) == ["image"]


def test_turned_jpegs_of_archives_come_out_upright(tmp_path):
    tags = Image.Exif()
    tags[274] = 6
    stored = [file_of(frame, "JPEG", exif=tags, quality=95) for frame in FRAMES]
    upright = [file_of(frame, "JPEG", exif=Image.Exif(), quality=95) for frame in FRAMES]
    _, shards = go(tar_of(tmp_path / "in", jpg=stored))
    assert shards.image(0).shape == (64, 48, 3) and shards.image(0)[:8, -8:].min() > 230, "the white corner is at right"
    _, shards = go(tar_of(tmp_path / "upright", jpg=upright))
    assert [shards.read(t)["image.jpg"] for t in range(5)] == upright, "no second loss"


def test_videos_of_archives(tmp_path):
    """Covers, variable frame rates with and without a word beside them, and --fps."""
    path = test_video.write(tmp_path / "v.mp4", test_video.even(12))
    covered = test_video.with_cover(path.read_bytes(), True, "PNG")
    uneven = test_video.write(tmp_path / "w.mp4", test_video.PHONE).read_bytes()
    about = json.dumps({"fps": 12}).encode()
    wds.write_tar(tmp_path / "in/a.tar", [("a.mp4", covered), ("b.mp4", uneven), ("b.json", about)])
    report, shards = go(tmp_path / "in")
    assert numbers(shards) == list(range(12)) and list(shards.episode_fps()) == [10, 12]
    assert report["fields_left_out"] == ["cover picture (png) of .mp4"]
    wds.write_tar(tmp_path / "without/a.tar", [("a.mp4", covered), ("b.mp4", uneven)])
    with pytest.raises(UserError, match="a.tar#a/b: its frame rate is variable, .* resample it with --fps"):
        go(tmp_path / "without")
    report, shards = go(tmp_path / "without", fps=5.0)
    assert numbers(shards) == [0, 2, 4, 6, 8, 10] and shards.fps == 5
    wds.write_tar(tmp_path / "acts/a.tar", [("a.mp4", covered), ("a.action.npy", wds.npy(np.zeros((11, 2))))])
    with pytest.raises(UserError, match="--fps would drop frames"):
        go(tmp_path / "acts", fps=5.0)
    with pytest.raises(UserError, match="--fps resamples videos, and .* holds single frames or steps"):
        go(tar_of(tmp_path / "steps", jpg=[file_of(frame, "JPEG") for frame in FRAMES]), fps=5.0)


def test_missing_numbers_of_steps_are_counted(tmp_path):
    rows = [(f"ep_{t}.jpg", file_of(FRAMES[k], "JPEG")) for k, t in enumerate((0, 1, 2, 5, 7))]
    wds.write_tar(tmp_path / "in/a.tar", rows)
    notes = go(tmp_path / "in")[0]["notes"]
    assert notes["frame_numbers_missing"] == 3 and notes["episodes_with_gaps_in_their_numbers"] == 1


@pytest.mark.parametrize("version", ["make", "make_v3"])
def test_lerobot_depth_by_kind_and_by_name(tmp_path, monkeypatch, version):
    content = make_lerobot.content

    def with_depth(seed=0):
        episodes = content(seed)
        for episode in episodes.values():
            episode["wrist"] = np.arange(len(episode["action"]), dtype=np.uint16)[:, None, None] + np.full(
                (1, 16, 16), 3000, np.uint16
            )
        return episodes

    monkeypatch.setattr(make_lerobot, "content", with_depth)
    getattr(make_lerobot, version)(tmp_path / "kind")
    report, shards = go(tmp_path / "kind")
    assert cameras(shards) == ["image"]
    assert "camera image_wrist (16-bit or float single channel beside colour)" in report["fields_left_out"]
    monkeypatch.setattr(make_lerobot, "PICTURE", "observation.images.wrist_depth")
    getattr(make_lerobot, version)(tmp_path / "name")
    report, shards = go(tmp_path / "name")
    assert cameras(shards) == ["image"] and "observation.images.wrist_depth" in report["fields_left_out"]


def test_lerobot_videos_have_covers_and_turns_too(tmp_path):
    make_lerobot.make(tmp_path / "in")
    for number in range(3):
        path = tmp_path / f"in/videos/chunk-000/{make_lerobot.VIDEO}/episode_{number:06d}.mp4"
        path.write_bytes(test_video.with_cover(path.read_bytes(), True, "JPEG"))
        test_video.set_matrix(path, (0, 1, -1, 0))
    made = make_lerobot.content()
    report, shards = go(tmp_path / "in", cameras="front")
    assert report["remarks"] == {"left out of videos: cover picture (mjpeg)": 3}
    for number, episode in enumerate(made.values()):
        for t, frame in enumerate(episode["frames"]):
            seen = shards.image(shards.episodes[number].start + t).astype(int)
            assert np.abs(seen - np.rot90(frame, -1)).max() < 12, "a quarter turn clockwise"


@pytest.mark.parametrize("stored", ["float", "rgba", "channels first"])
def test_hdf5_images_of_every_type(tmp_path, stored):
    made = make_robomimic.make(tmp_path / "in")
    as_stored = {
        "float": lambda a: (a / 255).astype(np.float32),
        "rgba": lambda a: np.concatenate([a, np.full((*a.shape[:3], 1), 255, np.uint8)], -1),
        "channels first": lambda a: a.transpose(0, 3, 1, 2),
    }[stored]
    with h5py.File(tmp_path / "in/demos.hdf5", "a") as file:
        for demo in file["data"].values():
            values = demo["obs/agentview_image"][()]
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = as_stored(values)
            demo["obs/agentview_depth"] = np.zeros((len(values), 16, 16, 1), np.float32)
            demo["obs/pose"] = np.tile(np.eye(4), (len(values), 1, 1))
            demo["obs/seg"] = np.zeros((len(values), 16, 16, 1), np.uint8)
    report, shards = go(tmp_path / "in", quality=100)
    assert cameras(shards) == ["image"]
    assert {"obs/agentview_depth", "obs/pose", "obs/seg"} <= set(report["fields_left_out"])
    expected = made["demos/demo_0"]["frames"]
    for t in range(len(expected)):
        assert shards.read(t)["image.jpg"] == images.encode(expected[t], 100), "as if it had been uint8 RGB"


def test_pictures_of_several_pages_are_no_steps(tmp_path):
    import io

    buffer = io.BytesIO()
    pages = [Image.fromarray(frame) for frame in FRAMES]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="holds 5 pages or frames"):
        go(tar_of(tmp_path / "in", tif=[buffer.getvalue()] * 5))
