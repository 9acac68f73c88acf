"""Folders of videos and of image sequences: finding the episodes and reading their frames."""

import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import beside
from lapa_jax.data.formats.base import Episode, Item, Listing, folder_of
from lapa_jax.data.formats.captions import Caption, match, read_captions
from lapa_jax.data.formats.reading import find_file

VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".gif", ".mov", ".m4v", ".mpg", ".mpeg")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


FEATURES = {
    "image": "the frame, RGB",
    "action": "f32[A] from the table of episodes: what was done from this frame to the next, in the recorder's units",
    "state": "f32[S] from the table of episodes, in the recorder's units",
    "instruction": "from the table of episodes, or the .txt of the video's name",
}


def detect(source: pathlib.Path) -> bool:
    """Whether a folder holds videos or pictures, at any depth, or a file is a video."""
    if source.is_file():
        return source.suffix.lower() in VIDEOS
    endings = (pathlib.PurePath(n).suffix.lower() for _, _, names in os.walk(source) for n in names if n[0] != ".")
    return any(ending in VIDEOS + PICTURES for ending in endings)


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """All episodes under a folder, at any depth, sorted by relative path.

    Every video file is an episode, and so is every folder that directly holds pictures. Hidden files and folders and
    the folder `exclude` are left out. The table `options["captions"]` gives instructions and arrays of actions; without
    one, a text file beside a video and of its name is its instruction.
    """
    if source.is_file():
        found, others = [(source.name, "video", source.stat().st_size)], {}
    else:
        found, others = _walk(source, exclude)
    captions, notes = _captions(options, [path for path, _, _ in found])
    used = Counter(pathlib.PurePath(caption.arrays).suffix for caption in captions.values() if caption.arrays)
    if captions and pathlib.Path(options["captions"]).resolve().is_relative_to(source.resolve()):
        used[pathlib.Path(options["captions"]).suffix] += 1
    unread = {}
    texts = {path: caption.text for path, caption in captions.items()}
    if options["captions"] is None and source.is_dir():
        texts = beside.texts(source, [path for path, _, _ in found])
        used[".txt"] += len(texts)
        notes |= {"texts of the videos' names": len(texts)} if texts else {}
        unread = beside.unread(source, [path for path, _, _ in found], exclude)
    items = []
    for path, kind, size in sorted(found):
        caption = captions.get(path)
        at = {"kind": kind, "arrays": caption.arrays} if caption and caption.arrays else {"kind": kind}
        items.append(Item(path, path, at, size, text=texts.get(path, "")))
    if any("arrays" in item.at for item in items):
        notes["arrays"] = sum("arrays" in item.at for item in items)
    left_out = {f"files {ending or 'without ending'}": n for ending, n in (Counter(others) - used).items()}
    return Listing(items, left_out=left_out, notes=notes, unread=unread)


def _walk(root: pathlib.Path, exclude: pathlib.Path | None) -> tuple[list[tuple[str, str, int]], dict[str, int]]:
    """(path, kind, bytes) of the episodes, and how many other files there are by ending."""
    found, others = [], {}
    for folder, folders, names in os.walk(root, followlinks=True):
        here = pathlib.Path(folder)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (here / n).resolve() != exclude)
        relative = here.relative_to(root).as_posix()
        pictures = []
        for name in sorted(n for n in names if not n.startswith(".")):
            ending = pathlib.PurePath(name).suffix.lower()
            if ending in VIDEOS:
                path = name if relative == "." else f"{relative}/{name}"
                found.append((path, "video", (here / name).stat().st_size))
            elif ending in PICTURES:
                pictures.append(here / name)
            else:
                others[ending] = others.get(ending, 0) + 1
        if pictures:
            found.append((relative, "pictures", sum(p.stat().st_size for p in pictures)))
    return found, dict(sorted(others.items()))


def _captions(options: Mapping, paths: list[str]) -> tuple[dict[str, Caption], dict]:
    table = options["captions"]
    if table in (None, "none") or not paths:
        return {}, {}
    rows = read_captions(table)
    if options["fps"] is not None and any(row.arrays for row in rows):
        raise UserError(
            f"{table} names arrays with one action a frame: --fps would drop frames and leave the actions between "
            "them; convert with --fps native and choose the frame gap when training, or without (--captions none)"
        )
    found, unused = match(rows, paths, table)
    counts = {"captions_without_video": unused, "videos_without_caption": len(paths) - len(found)}
    if empty := sum(not caption.text for caption in found.values()):
        counts["captions_without_text"] = empty
    return found, {"captions": pathlib.Path(table).name, **counts}


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One video or folder of pictures as an episode, with the arrays that the table of episodes names for it."""
    frames = Frames(folder_of(source) / item.path, item.at["kind"], options["fps"])
    frames.open()
    columns, left_out = {}, []
    if "arrays" in item.at:
        arrays = read_arrays(find_file(pathlib.Path(options["captions"]).parent / item.at["arrays"]))
        columns = {name: arrays[name] for name in ("action", "state") if name in arrays}
        left_out = sorted(set(arrays) - set(columns))
    return Episode({"image": frames}, columns, item.text, fps=frames.fps, left_out=left_out)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; anything else, pickles included, is a ValueError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"arrays file {path.name} does not exist") from None
    except Exception as error:  # zip, zlib and numpy each have their own errors for damaged files
        raise ValueError(f"arrays file {path.name} cannot be read ({error})") from None


class Frames:
    """The frames of one episode, read one at a time.

    Iterating gives uint8[H, W, 3]. `fps` is the frame rate of what is given: the target, or the video's own, or None
    for pictures without a target.

    Args:
      path: a video file, a folder of pictures, or an open binary file that can seek and holds a video.
      kind: "video" or "pictures".
      fps: target in frames per second; None keeps every frame. At time k / fps the frame on screen then is taken. For
        pictures, which have no clock, it states the rate at which they were taken.

    Raises:
      ValueError: the file cannot be read, or is slower than `fps` (frames would repeat, and look like standing still).
    """

    def __init__(self, path: pathlib.Path | BinaryIO, kind: str, fps: float | None):
        self.path, self.kind, self.target = path, kind, fps
        self.fps = fps

    def open(self) -> None:
        """Looks into a video without decoding it, so that `fps` is known before its frames are read."""
        import av

        if self.kind == "video":
            try:
                with av.open(self._file()) as container:
                    self._stream(container)
            except (av.error.FFmpegError, UnicodeDecodeError) as error:
                raise _video_error(error) from None

    def _file(self) -> str | BinaryIO:
        if isinstance(self.path, pathlib.Path):
            return str(self.path)
        self.path.seek(0)
        return self.path

    def _file(self) -> str | BinaryIO:
        """What PyAV opens: a path, or the open file from its start."""
        if isinstance(self.path, pathlib.Path):
            return str(self.path)
        self.path.seek(0)
        return self.path

    def _stream(self, container):
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        stream = container.streams.video[0]
        stream.thread_count = 1  # episodes run side by side, one process each
        self._set_rate(stream.average_rate or stream.guessed_rate)
        return stream

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._pictures() if self.kind == "pictures" else self._video()

    def _pictures(self) -> Iterator[np.ndarray]:
        from PIL import Image, UnidentifiedImageError

        names = [n for n in os.listdir(self.path) if pathlib.PurePath(n).suffix.lower() in PICTURES]
        for name in sorted((n for n in names if not n.startswith(".")), key=natural_key):
            try:
                with Image.open(self.path / name) as picture:
                    yield np.asarray(picture.convert("RGB"))
            except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
                reason = str(error).replace(str(self.path / name), name)
                raise ValueError(f"picture {name}: {reason}") from None

    def _video(self) -> Iterator[np.ndarray]:
        import av

        try:
            with av.open(self._file()) as container:
                stream = self._stream(container)
                frames = _whole(container, stream)
                yield from frames_as_arrays(frames if self.target is None else resample(frames, self.target))
        except (av.error.FFmpegError, UnicodeDecodeError) as error:
            raise _video_error(error) from None

    def _set_rate(self, rate: Fraction | None) -> None:
        own = round(float(rate), 6) if rate else None
        if self.target is None:
            self.fps = own
        elif own is not None and own < self.target * 0.995:
            raise ValueError(f"it has {own:g} frames per second, less than --fps {self.target:g}: frames would repeat")


def _video_error(error: Exception) -> ValueError:
    """Without the path: reports must not depend on where the data lie."""
    return ValueError(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}")


def _whole(container, stream) -> Iterator:
    """The frames of a stream; a damaged frame, or an end well before the length in the header, is a ValueError.

    libav reads a truncated file without complaint as far as it goes: only the length tells.
    """
    end, count = 0.0, 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ValueError(f"frame {count} is damaged")
        count += 1
        end = frame.time if frame.time is not None else end
        yield frame
    if stream.duration is not None:
        length = float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    else:
        length = (container.duration or 0) / 1e6
    if count == 0:
        raise ValueError("it holds no frames")
    if end < length - max(1.0, 0.05 * length):
        raise ValueError(f"it ends after {end:.2f} s, its header says {length:.2f} s: the file is truncated")


def natural_key(name: str) -> tuple:
    """Sorts frame2 before frame10: numbers in a name count as numbers. Different names have different keys."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]
    return parts, name


def resample(frames: Iterator, fps: float) -> Iterator:
    """Of frames with a `.time` in seconds, those on screen at 0, 1/fps, 2/fps, ... after the first.

    A frame counts as on screen a quarter of an interval early, so that rounded time stamps do not shift the choice.
    """
    shown, start, count = None, None, 0
    for frame in frames:
        if frame.time is None:
            raise ValueError("its frames have no time stamps, --fps cannot be met; convert it with --fps native")
        start = frame.time if start is None else start
        while shown is not None and frame.time - start > (count + 0.25) / fps:
            yield shown
            count += 1
        shown = frame
    if shown is not None and shown.time - start > (count - 0.25) / fps:
        yield shown


def frames_as_arrays(frames: Iterator) -> Iterator[np.ndarray]:
    """PyAV frames as uint8[H, W, 3], upright: the rotation that phones write into the file is applied."""
    for frame in frames:
        image = frame.to_ndarray(format="rgb24")
        turns = round(frame.rotation / 90) % 4
        yield np.rot90(image, turns) if turns else image
