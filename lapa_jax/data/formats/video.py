"""Folders of videos and of image sequences."""

import os
import pathlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import image_files, modalities, video
from lapa_jax.data.formats import beside
from lapa_jax.data.formats.base import Episode, Item, Listing, folder_of
from lapa_jax.data.formats.captions import Caption, match, read_captions
from lapa_jax.data.formats.image_folders import ImageFolder, not_colour
from lapa_jax.data.formats.reading import find_file, walk

FEATURES = {
    "image": "the frame, RGB",
    "action": "f32[A] from the table of episodes: what was done from this frame to the next, in the recorder's units",
    "state": "f32[S] from the table of episodes, in the recorder's units",
    "instruction": "from the table of episodes, or the .txt of the video's name",
}


def detect(source: pathlib.Path) -> bool:
    """Whether a folder holds videos or images, at any depth, or a file is a video."""
    if source.is_file():
        return source.suffix.lower() in video.ENDINGS
    endings = (pathlib.PurePath(n).suffix.lower() for _, _, names in os.walk(source) for n in names if n[0] != ".")
    return any(ending in video.ENDINGS + image_files.ENDINGS for ending in endings)


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """All episodes under a folder, at any depth, sorted by relative path.

    Every video file is an episode, and so is every folder that directly holds images. Hidden files and folders, the
    folder `exclude`, and depth or masks beside colour are left out. The table `options["captions"]` gives instructions
    and arrays of actions; without one, a text file beside a video and of its name is its instruction.
    """
    left_out = {}
    if source.is_file():
        entries, others = [(source.name, "video", source.stat().st_size)], {}
    else:
        entries, others, left_out = _walk(source, exclude)
    captions, notes = _captions(options, [path for path, _, _ in entries])
    used = Counter(pathlib.PurePath(caption.arrays).suffix for caption in captions.values() if caption.arrays)
    if captions and pathlib.Path(options["captions"]).resolve().is_relative_to(source.resolve()):
        used[pathlib.Path(options["captions"]).suffix] += 1
    unread = {}
    texts = {path: caption.text for path, caption in captions.items()}
    if options["captions"] is None and source.is_dir():
        texts = beside.texts(source, [path for path, _, _ in entries])
        used[".txt"] += len(texts)
        notes |= {"texts of the videos' names": len(texts)} if texts else {}
        unread = beside.unread(source, [path for path, _, _ in entries], exclude)
    items = []
    for path, kind, size in sorted(entries):
        caption = captions.get(path)
        at = {"kind": kind, "arrays": caption.arrays} if caption and caption.arrays else {"kind": kind}
        items.append(Item(path, path, at, size, caption.split if caption else "", texts.get(path, "")))
    if any("arrays" in item.at for item in items):
        notes["arrays"] = sum("arrays" in item.at for item in items)
    left_out |= {f"files {ending or 'without ending'}": n for ending, n in (Counter(others) - used).items()}
    return Listing(items, left_out=left_out, notes=notes, unread=unread)


def _walk(root: pathlib.Path, exclude: pathlib.Path | None) -> tuple[list[tuple[str, str, int]], dict, dict]:
    """(path, kind, bytes) of the episodes, how many other files there are by ending, and what else is left out."""
    entries, others, thumbnails, named = [], Counter(), 0, {}
    for here, names in walk(root, exclude):
        relative = here.relative_to(root).as_posix()
        paths = [here / name for name in names]
        videos = [path for path in paths if path.suffix.lower() in video.ENDINGS]
        images = [path for path in paths if path.suffix.lower() in image_files.ENDINGS]
        others.update(path.suffix.lower() for path in paths if path not in videos and path not in images)
        # downloaders write a picture of each video beside it, under its name
        stems = {path.stem for path in videos}
        thumbnails += sum(path.stem in stems for path in images)
        images = [path for path in images if path.stem not in stems]
        entries += [(path.relative_to(root).as_posix(), "video", path.stat().st_size) for path in videos]
        if images:
            entries.append((relative, "pictures", sum(path.stat().st_size for path in images)))
            named[relative] = [path.name for path in images]
    left_out = {"images with the name of a video beside them": thumbnails} if thumbnails else {}
    stems = {os.path.splitext(path)[0] if kind == "video" else path: path for path, kind, _ in entries}
    by_name = {stems[stem] for stem in modalities.beside_colour(stems)}
    depth = sorted({*by_name, *not_colour(root, {path: named[path] for path in named if path not in by_name})})
    if depth:
        left_out[f"videos or folders of depth or masks beside colour, the first {depth[0]}"] = len(depth)
    return [entry for entry in entries if entry[0] not in depth], dict(sorted(others.items())), left_out


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
    matched, unused = match(rows, paths, table)
    counts = {"captions_without_video": unused, "videos_without_caption": len(paths) - len(matched)}
    if empty := sum(not caption.text for caption in matched.values()):
        counts["captions_without_text"] = empty
    return matched, {"captions": pathlib.Path(table).name, **counts}


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One video or folder of images as an episode, with the arrays that the table of episodes names for it."""
    path = folder_of(source) / item.path
    is_video = item.at["kind"] == "video"
    frames = video.Video(path, options["fps"]) if is_video else ImageFolder(path, options["fps"], options["white"])
    frames.open()
    columns, left_out = {}, [*frames.left_out]
    if "arrays" in item.at:
        arrays = read_arrays(find_file(pathlib.Path(options["captions"]).parent / item.at["arrays"]))
        columns = {name: arrays[name] for name in ("action", "state") if name in arrays}
        left_out += sorted(set(arrays) - set(columns))
    return Episode({"image": frames}, columns, item.text, fps=frames.fps, left_out=left_out, remarks=frames.remarks)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; anything else, pickles included, is a ValueError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"arrays file {path.name} does not exist") from None
    except Exception as error:  # zip, zlib and numpy each have their own errors for damaged files
        raise ValueError(f"arrays file {path.name} cannot be read ({error})") from None


