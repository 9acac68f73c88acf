import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lapa_jax.data.formats.image_folders import ImageFolder
from lapa_jax.data.formats.reading import natural_key
from lapa_jax.data.formats.video import find
from lapa_jax.data.video import Video, resample
from tests.data import videos


@pytest.mark.parametrize("ending", ["mp4", "webm", "avi", "mkv", "gif"])
def test_every_container(tmp_path, ending):
    path = videos.write(tmp_path / f"v.{ending}", 12)
    frames = Video(path)
    images = list(frames)
    assert [videos.number_of(image) for image in images] == list(range(12))
    assert images[0].shape == (48, 64, 3) and images[0].dtype == np.uint8
    assert frames.fps == pytest.approx(10, rel=0.01)


@given(
    source=st.integers(1, 60), target=st.integers(1, 60), count=st.integers(1, 200), start=st.sampled_from([0.0, 3.7])
)
def test_resampling_takes_the_frame_on_screen(source, target, count, start):
    if target > source:
        return
    frames = [types.SimpleNamespace(time=start + k / source, k=k) for k in range(count)]
    got = [f.k for f in resample(iter(frames), target)]
    last = (count - 1) / source
    # independently: for each tick within the video, the newest frame that is at most a quarter of an interval late
    ticks = [n / target for n in range(len(got) + 2) if n / target <= last + 0.25 / target - 1e-9 or n == 0]
    expected = [max(k for k in range(count) if k / source <= tick + 0.25 / target + 1e-9) for tick in ticks]
    assert len(got) in (len(expected), len(expected) + 1)
    boundary = any(abs(k / source - (tick + 0.25 / target)) < 1e-6 for tick in ticks for k in range(count))
    assert boundary or got[: len(expected)] == expected
    assert got == sorted(got) and len(set(got)) == len(got), "frames advance and none repeats"


def test_target_rate_of_a_video(tmp_path):
    path = videos.write(tmp_path / "v.mp4", 24, rate=30)
    frames = Video(path, 10)
    assert [videos.number_of(image) for image in frames] == list(range(0, 24, 3)) and frames.fps == 10
    with pytest.raises(ValueError, match="30 frames per second, less than --fps 60"):
        list(Video(path, 60))


def test_varying_frame_rate_follows_the_clock(tmp_path):
    times = [0.0, 0.1, 0.2, 0.5, 0.52, 0.54, 0.56, 0.6, 0.7, 0.8]
    path = videos.write(tmp_path / "v.mkv", len(times), rate=10, times=times)
    assert [videos.number_of(i) for i in Video(path, 10)] == [0, 1, 2, 2, 2, 4, 7, 8, 9]


@pytest.mark.parametrize("turn, corner", [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotation_of_phones_is_applied(tmp_path, turn, corner):
    image = next(iter(Video(videos.write(tmp_path / "v.mp4", 3, turn=turn))))
    assert image.shape == ((48, 64, 3) if turn == 180 else (64, 48, 3))
    assert image[corner].mean() > 230 and image[-corner[0] - 1, -corner[1] - 1].mean() < 60


def test_truncated_and_foreign_files(tmp_path):
    path = videos.write(tmp_path / "v.mkv", 28, rate=5)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated|damaged|Invalid"):
        list(Video(path))
    path.write_bytes(b"this is no video")
    with pytest.raises(ValueError, match="Invalid"):
        list(Video(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError):
        list(Video(path))


def test_messages_do_not_tell_where_the_data_lie(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "1.png").write_bytes(b"x")
    for frames in (Video(tmp_path / "v.mp4"), ImageFolder(tmp_path, None)):
        with pytest.raises(ValueError) as error:
            list(frames)
        assert str(tmp_path) not in str(error.value)


def test_pictures_are_sorted_by_number(tmp_path):
    order = ["f1.png", "f2.png", "f10.png", "f11.png", "g0.png"]
    for number, name in enumerate(order):
        Image.fromarray(videos.frame(number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    frames = ImageFolder(tmp_path, 5)
    assert [videos.number_of(i) for i in frames] == [0, 1, 2, 3, 4] and frames.fps == 5
    assert ImageFolder(tmp_path, None).fps is None
    Image.fromarray(videos.frame(0)).convert("L").save(tmp_path / "f0.png")
    assert next(iter(frames)).shape == (48, 64, 3), "grey pictures become RGB"


@given(st.lists(st.text("abA019_.-", min_size=1, max_size=8), max_size=10))
def test_natural_order_is_total(names):
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_find_is_sorted_and_counts_the_rest(tmp_path):
    for name in ("b/2.mp4", "b/1.MP4", "a.gif", "seq/x/1.jpg", "seq/x/2.jpg", "b/t.json", ".hidden/v.mp4", "out/v.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    listing = find(tmp_path, {"captions": None, "fps": None}, exclude=tmp_path / "out")
    expected = [("a.gif", "video", 2), ("b/1.MP4", "video", 2), ("b/2.mp4", "video", 2), ("seq/x", "pictures", 4)]
    assert [(i.path, i.at["kind"], i.size) for i in listing.items] == expected
    assert listing.left_out == {"files .json": 1}
