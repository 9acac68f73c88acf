"""Folders of images: which of the files are one camera's frames, in which order, and which numbers are missing.

The names of a folder's images follow patterns: "rgb_0001.png" and "rgb_0002.png" are a series, "depth_0001.png" belongs
to another. An episode is one series of colour images; depth and masks beside it are told by their names, or by their
kind (16-bit or palette images beside colour), and left out. So are folders of them beside folders of colour images.
"""

import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lapa_jax.data import image_files, modalities
from lapa_jax.data.formats.reading import natural_key

MISSING = "frame numbers missing between those that are there"
"""Remark: how many."""


class ImageFolder:
    """The frames of a folder of images, uint8[H, W, 3], one in memory at a time.

    A folder with a single file of several pages or animation frames has these as its frames.

    Args:
      path: the folder.
      fps: the rate at which the images were taken, or None: images have no clock.
      white: the value of white in images of 16 bits, as `image_files.open_frame` takes it.

    Attributes:
      fps: as given. left_out: patterns of the images that are left out, and why. remarks: how many frame numbers are
        missing, and what was done to images; complete after reading.

    Raises:
      ValueError: an image cannot be read, or there is no single series of colour images.
    """

    def __init__(self, path: pathlib.Path, fps: float | None, white: int | None = None):
        self._path, self.fps, self._white = path, fps, white
        self._names: list[str] | None = None
        self.left_out: tuple[str, ...] = ()
        self.remarks: Counter = Counter()

    def open(self) -> "ImageFolder":
        """Chooses the files; of each series the first is looked into."""
        if self._names is None:
            names = [name for name in os.listdir(self._path) if is_image(name)]
            series: dict[str, list[str]] = {}
            for name in sorted(names, key=natural_key):
                series.setdefault(pattern_of(name), []).append(name)
            self._names, left_out = self._choose(series)
            self.left_out = tuple(left_out)
            if missing := missing_numbers([numbers_of(name) for name in self._names]):
                self.remarks[MISSING] = missing
        return self

    def _choose(self, series: dict[str, list[str]]) -> tuple[list[str], list[str]]:
        """The names of the frames in order, and what is left out."""
        reasons = {pattern: "depth or masks by name" for pattern in series if modalities.is_depth(pattern)}
        if len(reasons) == len(series):
            reasons = {}
        if len(series) - len(reasons) > 1:
            kinds = {pattern: self._kind(names[0]) for pattern, names in series.items() if pattern not in reasons}
            if image_files.COLOUR in kinds.values():
                other = (image_files.INDEXED, image_files.DEEP)
                reasons |= {pattern: f"{kind} beside colour" for pattern, kind in kinds.items() if kind in other}
        chosen = [pattern for pattern in series if pattern not in reasons]
        numbers = Counter(number for pattern in chosen for number in {numbers_of(name) for name in series[pattern]})
        if any(count > 1 for number, count in numbers.items() if number):
            raise ValueError(f"it holds {len(chosen)} series of images ({', '.join(chosen[:3])}): put each into a "
                             "folder of its own")  # fmt: skip
        names = sorted((name for pattern in chosen for name in series[pattern]), key=natural_key)
        if len(chosen) == 1 and modalities.is_depth(chosen[0]) and self._kind(names[0]) == image_files.DEEP:
            raise ValueError(f"it holds depth maps only ({chosen[0]}), no colour images")
        return names, [f"{pattern} ({reason})" for pattern, reason in reasons.items()]

    def _kind(self, name: str) -> str:
        with _naming(name):
            return image_files.kind_of(self._path / name)

    def __iter__(self) -> Iterator[np.ndarray]:
        self.open()
        for name in self._names:
            with _naming(name):
                path, only_one = self._path / name, len(self._names) > 1
                yield from image_files.open_pages(path, self.remarks, only_one, self._white)


def not_colour(root: pathlib.Path, folders: Mapping[str, Sequence[str]]) -> list[str]:
    """Of folders of images those that hold depth or masks by the kind of their images, beside a folder of colour.

    Folders lie beside each other where their paths differ in one part, and not in its numbers alone: "ep1/rgb" and
    "ep1/aligned", "rgb/ep1" and "ids/ep1", or "ep1" and "ep1/ids", while "ep1" and "ep2" are two episodes. 16-bit
    images are depth then. 8-bit images of a single channel are masks where the frames have the same numbers; else they
    are a grey camera's.

    Args:
      root: of the paths. folders: {path relative to root, with "/": the names of its images, in natural order}.
    """
    beside: dict[tuple, dict[str, str]] = {}
    for path in folders:
        parts = tuple(part for part in path.split("/") if part != ".")
        for i in range(len(parts)):
            beside.setdefault((parts[:i], parts[i + 1 :]), {})[path] = re.sub(r"\d+", "#", parts[i])
        for i in range(len(parts) + 1):  # the folder itself, for those that have one part more
            beside.setdefault((parts[:i], parts[i:]), {})[path] = ""
    kinds: dict[str, str] = {}
    left_out = set()
    for labels in beside.values():
        if len(set(labels.values())) < 2:
            continue
        for path in labels:
            if path not in kinds:
                kinds[path] = _kind_in(root / path / folders[path][0])
        colour: dict[tuple, set[str]] = {}
        for path, label in labels.items():
            if kinds[path] == image_files.COLOUR:
                colour.setdefault(_span(folders[path]), set()).add(label)
        of_all = set().union(*colour.values())
        for path, label in labels.items():
            of_same_numbers = colour.get(_span(folders[path]), set())
            others = {image_files.DEEP: of_all, image_files.INDEXED: of_same_numbers}.get(kinds[path], set())
            if others - {label}:
                left_out.add(path)
    return sorted(left_out)


def _kind_in(path: pathlib.Path) -> str:
    """The kind of a file's image. JPEGs are never depth or masks, and what is damaged is reported when it is read."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return image_files.COLOUR
    try:
        return image_files.kind_of(path)
    except ValueError:
        return image_files.COLOUR


def _span(names: Sequence[str]) -> tuple:
    """The numbers of the first and the last image, and how many images there are."""
    return numbers_of(names[0]), numbers_of(names[-1]), len(names)


class _naming:
    """Puts the name of a file before errors about it, and takes its path out of them."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError | ValueError):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ValueError(f"image {self._name}: {reason}") from None


def is_image(name: str) -> bool:
    """Whether a file name is that of an image that is not hidden."""
    return not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in image_files.ENDINGS


def pattern_of(name: str) -> str:
    """What the names of a series have in common: "a12_0003.png" and "a12_0004.png" give "a#_#.png"."""
    stem, ending = os.path.splitext(name)
    ending = {".jpeg": ".jpg", ".tiff": ".tif"}.get(ending.lower(), ending.lower())
    return re.sub(r"\d+", "#", stem) + ending


def numbers_of(name: str) -> tuple[int, ...]:
    """The numbers in the name of a file, without its ending."""
    return tuple(int(digits) for digits in re.findall(r"\d+", os.path.splitext(name)[0]))


def missing_numbers(numbers: Sequence[tuple[int, ...]]) -> int:
    """How many numbers are left out between frames, where their usual distance says that there should be one.

    Args:
      numbers: of each frame. Where more than one of them changes, nothing can be said.
    """
    if len(numbers) < 3 or len({len(parts) for parts in numbers}) > 1 or not numbers[0]:
        return 0
    table = np.array(numbers, np.float64)
    changing = np.flatnonzero((table != table[0]).any(0))
    if len(changing) != 1:
        return 0
    distances = np.diff(np.sort(table[:, changing[0]]))
    usual = np.sort(distances)[(len(distances) - 1) // 2]
    return int(np.maximum(np.rint(distances / usual) - 1, 0).sum()) if usual > 0 else 0
