"""WebDataset: a folder of tars, or one of them.

What a sample is follows from its members:

  video  `.mp4` (or another video), with `.npz` or `.action.npy`, `.state.npy` for the whole of it: an episode
  pair   `.t.jpg` and `.t1.jpg`: an episode of two steps
  step   pictures (`.jpg`, `.image.jpg`, `.image_wrist.png`, ...) or numbers of one moment: a step of an episode, placed
         by its key `{episode}_{number}`, or by the fields `episode` and `step` of its `.json`
  array  `.npz` or `.action.npy` [T, A] without pictures: an episode

beside `.txt` (the instruction) and `.json`; those of the key `{episode}` alone speak of all its steps. A source holds
samples of one kind. Tars are never unpacked, their indexes are built in memory, and nothing is written beside them.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.base import COLUMNS, MAIN, Episode, Item, Listing, choose_cameras, folder_of
from lapa_jax.data.formats.image_folders import missing_numbers
from lapa_jax.data.formats.reading import walk
from lapa_jax.data.formats.webdataset import names as member_names
from lapa_jax.data.formats.webdataset import tar_samples as samples
from lapa_jax.data.formats.webdataset.members import Window
from lapa_jax.data.formats.webdataset.tar_samples import ARRAY, KINDS, NONE, PAIR, STEP, VIDEO, Tar, camera_of
from lapa_jax.data.image_files import ENDINGS as IMAGES
from lapa_jax.data.shards.index import build_index
from lapa_jax.data.video import ENDINGS as VIDEOS
from lapa_jax.data.video import Video

FEATURES = {
    "image": "pictures (.jpg, .png, .webp, ...) or the frames of a video; other cameras by the name before the ending",
    "action": "f32[A] from .action.npy, `action` in .npz or .json: from this frame to the next, in the source's units",
    "state": "f32[S] from .state.npy, `state` in .npz or .json, in the source's units",
    "latent": "i32[N] from .latent.npy: codes of a tokenizer that the source does not name",
    "feature": "f32[F] from .feature.npy, `feature` in .npz",
    "instruction": ".txt, or in .json: " + ", ".join(samples.TEXT_FIELDS),
}

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXT_KEY = re.compile(r"_(text|instruction|caption|annotation|language|lang)$")
"""What keys of texts of whole episodes end in, beside the episode's own."""
_SPLIT = re.compile(r"(train|training|val|valid|validation|test)(?![a-z])")


def detect(source: pathlib.Path) -> bool:
    """Whether a file is a tar, or a folder or one of its folders holds tars."""
    if source.is_file():
        return source.name.lower().endswith((".tar", *_COMPRESSED))
    return any(path.suffix.lower() == ".tar" for pattern in ("*", "*/*") for path in source.glob(pattern))


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """The episodes of all tars, at any depth, in the order of the tars.

    Headers are read, and where keys do not place a step, each step's `.json`. Splits follow from names of tars or
    folders (`train-*`, `val-*`, `test_*`).

    Raises:
      UserError: a tar is damaged, compressed or unsafe (links, devices, names that leave the folder), samples are of
        different kinds, or a step does not say where it belongs.
    """
    paths, left_out = _tars(source, exclude)
    _open.cache_clear()
    root = folder_of(source)
    tars = {path.relative_to(root).as_posix(): _opened(path) for path in paths}
    kinds = {}
    for name, tar in tars.items():
        kinds[name] = samples.kinds(tar)
        member_names.check_dots(tar, kinds[name])
        tar.close()  # there may be more tars than a process may have open files
    kind = _one_kind(tars, kinds, source)
    if options["fps"] is not None and kind != VIDEO:
        raise UserError(f"--fps resamples videos, and {source} holds {KINDS[kind]}: leave it at native")
    rows = {name: np.flatnonzero(kinds[name] == kind) for name in tars}
    notes, whole, unread = {"samples": KINDS[kind]}, 0, {}
    if kind == STEP:
        items, missing = _steps(tars, rows)
        items, unread = _with_texts(items, tars, kinds)
        whole = sum("about" in item.at for item in items)
        if any(missing):
            notes |= {"episodes_with_gaps_in_their_numbers": sum(count > 0 for count in missing)}
            notes |= {"frame_numbers_missing": sum(missing)}
        notes |= {"texts of whole episodes": whole} if whole else {}
    else:
        items = [_item(name, tars[name], int(row), kind) for name in tars for row in rows[name]]
    if lost := sum(int((kinds[name] == NONE).sum()) for name in tars) - whole:
        left_out["samples without pictures or arrays"] = lost
    if joined := sum(tar.joined for tar in tars.values()):
        notes["members named {key}_{field}.{ending}, read as {key}.{field}.{ending}"] = joined
    if ignored := sum(tar.index.ignored for tar in tars.values()):
        left_out["companions of macOS and Windows (._*, .DS_Store)"] = ignored
    return Listing(_with_splits(items), left_out=left_out, notes=notes, unread=unread)


def _tars(source: pathlib.Path, exclude: pathlib.Path | None) -> tuple[list[pathlib.Path], dict[str, int]]:
    """All tars in the order of their paths, and how many other files there are by ending."""
    if source.is_file():
        tars, others = [source], Counter()
    else:
        tars, others = [], Counter()
        for here, names in walk(source, exclude):
            for name in names:
                if name.lower().endswith((".tar", *_COMPRESSED)):
                    tars.append(here / name)
                else:
                    others[pathlib.PurePath(name).suffix.lower()] += 1
    for path in tars:
        if path.name.lower().endswith(_COMPRESSED):
            raise UserError(f"{path} is compressed; random access needs a plain tar, decompress it first")
    if not tars:
        raise UserError(f"{source} holds no .tar, so it is no WebDataset")
    return sorted(tars), {f"files {ending or 'without ending'}": n for ending, n in sorted(others.items())}


def _opened(path: pathlib.Path) -> Tar:
    status = path.stat()
    return _open(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _open(path: pathlib.Path, size: int, time: int) -> Tar:
    """A process that reads one episode after another scans each tar once."""
    return Tar(path, *member_names.join_classic(build_index(path)))


def _one_kind(tars: Mapping[str, Tar], kinds: Mapping[str, np.ndarray], source: pathlib.Path) -> int:
    first: dict[int, str] = {}
    for name, kind in kinds.items():
        for value, row in zip(*np.unique(kind, return_index=True)):
            first.setdefault(int(value), f"'{tars[name].key(row)}' in {name}")
    present = [kind for kind in sorted(first) if kind != NONE]
    if len(present) > 1:
        two = " and ".join(f"{KINDS[kind]} ({first[kind]})" for kind in present[:2])
        raise UserError(f"{source} mixes {two}; put each kind into a folder of its own")
    if not present:
        fields = sorted({field for tar in tars.values() for field in tar.index.fields})
        raise UserError(f"{source} holds no sample with pictures, a video or arrays; it has {fields or 'no members'}")
    return present[0]


def _item(name: str, tar: Tar, row: int, kind: int) -> Item:
    at = {"kind": kind, "tar": name, "row": row}
    return Item(f"{name.removesuffix('.tar')}/{tar.key(row)}", name, at, tar.bytes_of([row]))


def _with_splits(items: list[Item]) -> list[Item]:
    """Held-out episodes are those whose tar or folder is named so; without any, splits are left to the converter."""
    held_out = {path: _is_held_out(path) for path in {item.path for item in items}}
    if not any(held_out.values()):
        return items
    return [item._replace(split="val" if held_out[item.path] else "train") for item in items]


def _is_held_out(path: str) -> bool:
    words = (_SPLIT.match(part.lower()) for part in reversed(pathlib.PurePosixPath(path).parts))
    word = next((match[1] for match in words if match), "train")
    return not word.startswith("train")


class _Part:
    """The steps of one episode that lie in one tar."""

    def __init__(self):
        self.numbers: list[int] = []
        self.rows: list[int] = []


def _steps(tars: Mapping[str, Tar], rows: Mapping[str, np.ndarray]) -> tuple[list[Item], list[int]]:
    """Episodes from steps, which may lie in several tars and in any order; and how many numbers each of them lacks."""
    groups: dict[tuple[bool, str], dict[str, _Part]] = {}
    for name, tar in tars.items():
        for row, place in zip(rows[name].tolist(), _places(tar, rows[name])):
            part = groups.setdefault((_is_held_out(name), place.episode), {}).setdefault(name, _Part())
            part.numbers.append(place.step)
            part.rows.append(row)
        tar.close()
    for (_, episode), parts in groups.items():
        for name, part in parts.items():
            if len(set(part.numbers)) < len(part.numbers):
                twice = next(number for number, count in Counter(part.numbers).items() if count > 1)
                raise UserError(f"{tars[name].path}: step {twice} of episode '{episode}' occurs twice")
    episodes = [(episode, parts) for (_, episode), parts in groups.items()]
    if any(len({n for p in parts.values() for n in p.numbers}) < _count(parts) for _, parts in episodes):
        # each tar counts its episodes anew
        episodes = [(episode, {name: part}) for episode, parts in episodes for name, part in parts.items()]
    names = Counter(episode for episode, _ in episodes)
    items, lacking = [], []
    for episode, parts in episodes:
        name = episode if names[episode] == 1 else f"{next(iter(parts)).removesuffix('.tar')}/{episode}"
        item, missing = _step_item(name, parts, tars)
        items.append(item)
        lacking.append(missing)
    order = {name: i for i, name in enumerate(tars)}
    return sorted(items, key=lambda item: (order[item.path], item.at["runs"][0][1])), lacking


def _with_texts(
    items: list[Item], tars: Mapping[str, Tar], kinds: Mapping[str, np.ndarray]
) -> tuple[list[Item], dict[str, str]]:
    """Items that know the sample which speaks of the whole episode: `traj_0.txt`, or `traj_0_text.txt`, beside
    `traj_0_step_000.jpg`; and the texts that belong to none of them, see `base.Listing.unread`."""
    about: dict[str, list[tuple[str, int]]] = {}
    for name, tar in tars.items():
        for row in np.flatnonzero(kinds[name] == NONE).tolist():
            about.setdefault(_TEXT_KEY.sub("", tar.key(row)), []).append((name, row))
    with_texts, used = [], set()
    for item in items:
        of_item = {name for name, _, _ in item.at["runs"]}
        episode = item.name.removeprefix(f"{item.path.removesuffix('.tar')}/")
        places = [place for place in about.get(episode, []) if place[0] in of_item]
        with_texts.append(item._replace(at=item.at | {"about": list(places[0])}) if len(places) == 1 else item)
        used |= {places[0]} if len(places) == 1 else set()
    others = [tars[name].key(row) for places in about.values() for name, row in places
              if (name, row) not in used and "txt" in map(str.lower, tars[name].fields(row))]  # fmt: skip
    if not others:
        return with_texts, {}
    what = f"{len(others)} texts that belong to no step, the first {others[0]}.txt"
    return with_texts, {"instructions": f"{what}; the text of an episode has its key, such as {items[0].name}.txt"}


def _count(parts: Mapping[str, _Part]) -> int:
    return sum(len(part.numbers) for part in parts.values())


def _places(tar: Tar, rows: np.ndarray) -> Iterator[samples.Place]:
    """Where each step belongs: by its key where the first json agrees or tells nothing, else by its json."""
    if not len(rows):
        return
    first = int(rows[0])
    place = samples.place_in_json(tar, first)
    by_json = place is not None and place != samples.place_in_key(tar.key(first))
    for row in rows.tolist():
        place = samples.place_in_json(tar, row) if by_json else samples.place_in_key(tar.key(row))
        yield samples.check_place(tar, row, place)


def _step_item(name: str, parts: Mapping[str, _Part], tars: Mapping[str, Tar]) -> tuple[Item, int]:
    """The item of an episode whose steps lie in one or more tars, and how many numbers are missing between them."""
    steps = sorted((n, tar, row) for tar, part in parts.items() for n, row in zip(part.numbers, part.rows))
    runs: list[list] = []
    for _, tar, row in steps:
        if runs and runs[-1][0] == tar and runs[-1][1] + runs[-1][2] == row:
            runs[-1][2] += 1
        else:
            runs.append([tar, row, 1])
    size = sum(tars[tar].bytes_of(part.rows) for tar, part in parts.items())
    return Item(name, runs[0][0], {"kind": STEP, "runs": runs}, size), missing_numbers([(n,) for n, _, _ in steps])


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One episode: a video, a pair, arrays, or the steps that belong together."""
    root, at = folder_of(source), item.at
    try:
        if at["kind"] == STEP:
            tars = {name: _opened(root / name) for name, _, _ in at["runs"]}
            places = [(tars[name], first + k) for name, first, n in at["runs"] for k in range(n)]
            about = (_opened(root / at["about"][0]), at["about"][1]) if "about" in at else None
            return _step_episode(places, about, options)
        tar = _opened(root / at["tar"])
        return {VIDEO: _video, PAIR: _pair, ARRAY: _arrays}[at["kind"]](tar, at["row"], options)
    except (UserError, OSError) as error:
        raise ValueError(str(error).replace(f"{root}{os.sep}", "")) from None


def _video(tar: Tar, row: int, options: Mapping) -> Episode:
    fields = _cameras([(tar, row)], VIDEOS)
    chosen = choose_cameras(list(fields), options["cameras"], MAIN)
    values = samples.values_of(tar, row, 2)
    if options["fps"] is not None and values.columns:
        raise ValueError(f"{tar.key(row)} has arrays of a row a frame, and --fps would drop frames: leave it at native")
    images = {f".{field}" for field in tar.fields(row) if camera_of(field, IMAGES)}
    left = values.left_out | images | _left_cameras(fields, chosen)
    cameras, remarks = {}, Counter()
    for camera, member in (chosen or choose_cameras(list(fields), "all", MAIN)).items():
        window = Window(tar.path, *tar.place(row, fields[camera][0]))
        cameras[member] = Video(window, options["fps"], None if options["fps"] else values.fps, remarks).open()
        left |= {f"{what} of .{fields[camera][0]}" for what in cameras[member].left_out}
    episode = _episode(cameras, values.columns, values.text, values.task, cameras[MAIN].fps, left)
    return dataclasses.replace(episode, remarks=remarks)


def _pair(tar: Tar, row: int, options: Mapping) -> Episode:
    """What belongs to a pair belongs to its first frame: its action and codes lead to the second."""
    choose_cameras([MAIN], options["cameras"])
    fields = _cameras([(tar, row)], IMAGES)
    values = samples.values_of(tar, row, 1)
    columns = {name: rows[None] for name, rows in values.columns.items()}
    left = values.left_out | _left_cameras(fields, ("t", "t1")) | ({"fps (json)"} if values.fps else set())
    pictures = _Pictures([(tar, row), (tar, row)], [fields["t"][0], fields["t1"][0]])
    return _episode({MAIN: pictures}, columns, values.text, values.task, None, left)


def _arrays(tar: Tar, row: int, options: Mapping) -> Episode:
    values = samples.values_of(tar, row, 2)
    return _episode({}, values.columns, values.text, values.task, values.fps, values.left_out)


def _episode(cameras: Mapping, columns: Mapping, text, task: str, fps: float | None, left_out: set[str]) -> Episode:
    unread = samples.unread(left_out)
    return Episode(cameras, columns, text, task, fps, left_out=sorted(left_out), unread=unread)


class _Pictures:
    """The pictures of one camera as bytes, read one at a time; None where a step has none (its field is None)."""

    def __init__(self, places: Sequence[tuple[Tar, int]], fields: Sequence[str | None]):
        self._places, self._fields = places, fields

    def __iter__(self) -> Iterator[bytes | None]:
        for (tar, row), field in zip(self._places, self._fields):
            yield None if field is None else tar.read(row, field)


def _cameras(places: Sequence[tuple[Tar, int]], endings: Sequence[str]) -> dict[str, list[str | None]]:
    """{camera: its field in each sample, or None}; a camera with two pictures in one sample is a ValueError."""
    cameras: dict[str, list[str | None]] = {}
    for i, (tar, row) in enumerate(places):
        for field in tar.fields(row):
            camera = camera_of(field, endings)
            if camera is not None:
                fields = cameras.setdefault(camera, [None] * len(places))
                if fields[i] is not None:
                    raise ValueError(f"{tar.key(row)} has two pictures of camera '{camera}', .{fields[i]} and .{field}")
                fields[i] = field
    return cameras


def _left_cameras(fields: Mapping, chosen) -> set[str]:
    return {f"camera {camera}" for camera in fields if camera not in chosen}


def _step_episode(
    places: Sequence[tuple[Tar, int]], about: tuple[Tar, int] | None, options: Mapping
) -> Episode:
    fields = _cameras(places, IMAGES)
    chosen = choose_cameras(list(fields), options["cameras"], MAIN) if fields else {}
    values = [samples.values_of(tar, row, 1) for tar, row in places]
    keys = [tar.key(row) for tar, row in places]
    _check_order(keys, [v.place for v in values])
    whole = samples.values_of(*about, 1) if about else None
    rates = {v.fps for v in [*values, whole] if v and v.fps}
    if len(rates) > 1:
        raise ValueError(f"its steps tell different frame rates, {sorted(rates)}")
    texts = [v.text or (whole.text if whole else "") for v in values]
    tasks = {v.task for v in values} - {""} or ({whole.task} if whole else {""})
    cameras = {member: _Pictures(places, fields[camera]) for camera, member in chosen.items()}
    left = set().union(*(v.left_out for v in [*values, whole] if v)) | _left_cameras(fields, chosen)
    columns = {n: _stack(n, keys, [v.columns.get(n) for v in values]) for n in COLUMNS if _has(values, n)}
    text, task = texts[0] if len(set(texts)) == 1 else texts, tasks.pop() if len(tasks) == 1 else ""
    return _episode(cameras, columns, text, task, rates.pop() if rates else None, left)


def _has(values: Sequence[samples.Values], name: str) -> bool:
    return any(name in v.columns for v in values)


def _stack(name: str, keys: Sequence[str], rows: list[np.ndarray | None]) -> np.ndarray:
    """The rows of a column; only the last step may lack it."""
    if rows[-1] is None:
        rows = rows[:-1]
    for key, row in zip(keys, rows):
        if row is None:
            raise ValueError(f"{key} has no '{name}', while other steps of its episode have it")
        if row.shape != rows[0].shape:
            raise ValueError(f"{key} has {row.shape[0]} values of '{name}', {keys[0]} has {rows[0].shape[0]}")
    return np.stack(rows)


def _check_order(keys: Sequence[str], places: Sequence[samples.Place | None]) -> None:
    """What each step's json says must not contradict the keys, which the listing went by."""
    placed = [(key, place) for key, place in zip(keys, places) if place is not None]
    for (_, before), (key, place) in zip(placed, placed[1:]):
        if place.episode != before.episode or place.step <= before.step:
            raise ValueError(f"{key}.json says step {place.step} of episode '{place.episode}', which is not its place")
