"""Folders of images as recorders and datasets lay them out: which files are the frames of an episode."""

import numpy as np
import pytest
from PIL import Image

from lapa_jax.data.formats.image_folders import MISSING, ImageFolder, missing_numbers, pattern_of
from lapa_jax.data.formats.video import find
from lapa_jax.data.image_files import SCALED
from tests.data import videos

OPTIONS = {"captions": None, "fps": None}


def colour(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(videos.frame(number)).save(path)


def deep(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64), 3000 + number, np.uint16)).save(path)


def mask(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64), number, np.uint8)).save(path)


def numbers(folder) -> list[int]:
    return [videos.number_of(image) for image in folder]


@pytest.mark.parametrize(
    "frame, other, write, reason",
    [
        ("frame-{:06d}.color.png", "frame-{:06d}.depth.png", deep, "frame-#.depth.png (depth or masks by name)"),
        ("{:04d}.png", "{:04d}_mask.png", mask, "#_mask.png (depth or masks by name)"),
        ("rgb{:d}.jpg", "d{:d}.png", deep, "d#.png (16-bit or float single channel beside colour)"),
        ("{:05d}.jpg", "{:05d}.png", mask, "#.png (8-bit single channel beside colour)"),
        ("a_{:d}.png", "b_{:d}.png", mask, "b_#.png (8-bit single channel beside colour)"),
    ],
)
def test_depth_and_masks_beside_colour(tmp_path, frame, other, write, reason):
    for k in range(12):
        colour(tmp_path / frame.format(k), k)
        write(tmp_path / other.format(k), k)
    folder = ImageFolder(tmp_path, 10)
    assert numbers(folder) == list(range(12)) and folder.left_out == (reason,) and folder.fps == 10


def test_two_cameras_in_one_folder_are_refused(tmp_path):
    for k in range(3):
        colour(tmp_path / f"{k}_left.png", k)
        colour(tmp_path / f"{k}_right.png", 20 - k)
    with pytest.raises(ValueError, match=r"2 series of images \(#_left.png, #_right.png\): put each into a folder"):
        ImageFolder(tmp_path, None).open()


def test_depth_alone_is_scaled_or_refused_by_its_name(tmp_path):
    for k in range(2):
        deep(tmp_path / f"plain/{k}.png", k)
        deep(tmp_path / f"named/{k}.depth.png", k)
    folder = ImageFolder(tmp_path / "plain", None, white=65535)
    assert [image.max() for image in folder] == [12, 12] and folder.remarks == {SCALED: 2}
    with pytest.raises(ValueError, match="depth maps only"):
        ImageFolder(tmp_path / "named", None).open()


@pytest.mark.parametrize(
    "present, missing",
    [
        ([1, 2, 3, 40, 41], 36),
        ([0, 1, 2, 3], 0),
        ([0, 5, 10, 15, 30], 2),  # every fifth frame was written
        ([33, 67, 100, 133, 167, 233], 1),  # milliseconds of 30 frames a second
        ([7, 9], 0),
    ],
)
def test_missing_numbers_are_counted(tmp_path, present, missing):
    for k, number in enumerate(present):
        colour(tmp_path / f"img_{number:05d}.png", k)
    folder = ImageFolder(tmp_path, None)
    assert numbers(folder) == list(range(len(present))) and folder.remarks[MISSING] == missing


def test_nothing_is_said_of_names_with_two_counters():
    assert missing_numbers([(1, 5), (1, 9), (2, 0)]) == 0 and missing_numbers([(), (), ()]) == 0
    assert pattern_of("a12_0003.JPEG") == pattern_of("a12_0004.jpg") == "a#_#.jpg"


def test_pages_are_frames_where_the_file_is_alone(tmp_path):
    pages = [Image.fromarray(videos.frame(k)) for k in range(5)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert numbers(ImageFolder(tmp_path, None)) == list(range(5))
    colour(tmp_path / "other.tif", 9)
    with pytest.raises(ValueError, match=r"image stack.tif: it holds 5 pages"):
        list(ImageFolder(tmp_path, None))


def test_folders_of_depth_and_thumbnails_of_videos_are_no_episodes(tmp_path):
    for k in range(2):
        colour(tmp_path / f"ep1/rgb/{k}.png", k)
        deep(tmp_path / f"ep1/depth/{k}.png", k)
    for name in ("clip", "clip_depth"):
        videos.write(tmp_path / f"films/{name}.mp4", 3)
    colour(tmp_path / "films/clip.jpg", 1)
    listing = find(tmp_path, OPTIONS)
    assert [item.path for item in listing.items] == ["ep1/rgb", "films/clip.mp4"]
    assert listing.left_out == {
        "images with the name of a video beside them": 1,
        "videos or folders of depth or masks beside colour, the first ep1/depth": 2,
    }


@pytest.mark.parametrize(
    "frames, other, write, episodes",
    [
        ("ep{e}/cam/{k}.png", "ep{e}/zed/{k}.png", deep, ["ep0/cam", "ep1/cam"]),
        ("rgb/ep{e}/{k}.jpg", "ids/ep{e}/{k}.png", mask, ["rgb/ep0", "rgb/ep1"]),
        ("ep{e}/{k}.jpg", "ep{e}/ids/{k}.png", mask, ["ep0", "ep1"]),
        # others on the way, a grey camera of other times, and episodes of one kind that differ in their numbers only
        ("left{e}/{k}.png", "right{e}/{k}.png", colour, ["left0", "left1", "right0", "right1"]),
        ("ep{e}/cam/{k}.png", "ep{e}/grey/1{k}.png", mask, ["ep0/cam", "ep0/grey", "ep1/cam", "ep1/grey"]),
        ("ep{e}/{k}.png", "ep{e}7/{k}.png", deep, ["ep0", "ep07", "ep1", "ep17"]),
    ],
)
def test_folders_of_depth_are_known_by_their_kind(tmp_path, frames, other, write, episodes):
    for e in range(2):
        for k in range(3):
            colour(tmp_path / frames.format(e=e, k=k), k)
            write(tmp_path / other.format(e=e, k=k), k)
    assert [item.path for item in find(tmp_path, OPTIONS).items] == episodes


def test_an_unreadable_image_is_named(tmp_path):
    colour(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="^image 2.png: an image is damaged"):
        list(ImageFolder(tmp_path, None))
