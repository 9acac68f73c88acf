"""Depth maps, masks and the like, told from colour images by their names."""

import re
from collections.abc import Iterable

DEPTH = frozenset(
    "depth depths depthmap depthmaps disparity disparities mask masks seg segs segm segmap segmaps segmentation "
    "segmentations semantic semantics annotations normals flow points pointcloud pointmap xyz heatmap heatmaps".split()
)
"""Words that name what has the shape of images and shows no colours."""

COLOUR = frozenset(
    "rgb color colors colour colours image images img imgs frame frames picture pictures photo photos video videos jpg "
    "jpeg png jpegimages".split()
)
"""Words that only say that something is an image."""

_WHOLE_NAMES = frozenset("label labels instance instances disp confidence ir infrared infra".split())
"""Words that name depth and the like as well, but may mean something else in longer names."""

_QUALITIES = frozenset("aligned registered raw".split())
"""Words that may stand beside those."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+")


def words(name: str) -> list[str]:
    """The words of a file's or camera's name in lower case: "wristDepth_01" has wrist and depth."""
    return [word.lower() for word in _WORD.findall(name)]


def is_depth(name: str) -> bool:
    """Whether a name says that something holds depth, masks, normals, points or flow."""
    return not DEPTH.isdisjoint(words(name))


def is_colour(name: str) -> bool:
    """Whether a name says that something holds images, and not what `is_depth` tells."""
    return not COLOUR.isdisjoint(words(name)) and not is_depth(name)


def is_all_depth(name: str) -> bool:
    """Whether a name says nothing but that."""
    parts = set(words(name))
    return not parts.isdisjoint(DEPTH | _WHOLE_NAMES) and parts <= DEPTH | COLOUR | _WHOLE_NAMES | _QUALITIES


def subject(name: str) -> tuple[str, ...]:
    """What a name says beside the kind of its images, numbers included: that of colour and depth of one thing is equal.

    "clip_3_depth" and "clip_3_rgb" both give ("clip", "3").
    """
    parts = re.findall(rf"\d+|{_WORD.pattern}", name)
    return tuple(part.lower() for part in parts if part.lower() not in DEPTH | COLOUR)


def beside_colour(paths: Iterable[str]) -> list[str]:
    """Of files and folders those that hold depth or masks of what another of them shows in colour.

    A path is one where a part of it says depth or mask, and there is another path that does not and has the same
    subject ("depth/clip1" and "rgb/clip1", "clip1_mask" and "clip1"), or lies in the same folder as the part that
    says nothing else ("clip1/depth" and "clip1/left").

    Args:
      paths: relative, with "/" between their parts and without endings.
    """
    parts = {path: [part for part in path.split("/") if part != "."] for path in paths}
    colour = {path: own for path, own in parts.items() if not any(is_depth(part) or is_all_depth(part) for part in own)}
    subjects = {_subject(own) for own in colour.values()}
    folders = {tuple(own[:depth]) for own in colour.values() for depth in range(len(own))}
    of_colour = []
    for path, own in parts.items():
        alone = any(is_all_depth(part) and tuple(own[:i]) in folders for i, part in enumerate(own))
        if path not in colour and (alone or _subject(own) in subjects):
            of_colour.append(path)
    return of_colour


def _subject(parts: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(own for own in map(subject, parts) if own)
