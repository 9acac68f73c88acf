"""One episode becomes one part: its samples as tar members in a file, and a small JSON that says it is whole."""

import base64
import itertools
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lapa_jax.core.files import atomic_path, placeholder, read_json, write_json
from lapa_jax.data import formats, image_files, images
from lapa_jax.data.convert import filter as filtering
from lapa_jax.data.convert import scenes
from lapa_jax.data.convert.filter import Filter
from lapa_jax.data.convert.plan import item_of, place_of
from lapa_jax.data.formats.base import COLUMNS, MAIN, Episode, folder_of
from lapa_jax.data.formats.reading import missing_download
from lapa_jax.data.shards import step_shards

_IN_MEMORY = 64 << 20
_APART = "; convert data of different kinds to folders of their own, a mixture joins them again when training"


class Job(NamedTuple):
    """What a worker needs to make a part.

    Attributes:
      source: what is converted. parts: the parts folder.
      plan: the plan without its episodes. options: for the reader, with full paths. entry: the episode's in the plan.
    """

    source: str
    parts: str
    plan: dict
    options: dict
    entry: dict


class Failure(NamedTuple):
    """An episode that could not be converted, and why."""

    id: str
    error: str


def make_part(job: Job) -> Failure | None:
    """Converts one episode; a file that cannot be read is a `Failure`, not an exception."""
    try:
        _write(job)
    except ValueError as error:
        why = missing_download(folder_of(pathlib.Path(job.source)), _files_of(job.entry)) or str(error)
        return Failure(job.entry["id"], " ".join(why.split()))
    return None


def _files_of(entry: Mapping) -> Iterator[str]:
    """Every text in an entry of the plan that may name a file: its path, and those in what the format keeps of it."""
    yield entry["path"]
    waiting = [entry["at"]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            waiting += value.values() if isinstance(value, Mapping) else value


def _write(job: Job) -> None:
    """Frames go to a spool first: each sample's `.json` tells the episode's length, known only at the end."""
    entry, plan = job.entry, job.plan
    rules = Filter.parse(plan["options"]["filter"])
    episode = formats.read_episode(plan["format"], pathlib.Path(job.source), item_of(entry), job.options)
    columns = _columns(episode.columns, plan["columns"])
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=job.parts) as spool:
        watch = _Watch() if rules else None
        frames = [
            {member: (spool.tell(), spool.write(jpeg)) for member, jpeg in step.items()}
            for step in _pictures(episode, plan, job.options, watch)
        ]
        steps = _check_lengths(columns, len(frames) if episode.cameras else None)
        texts = _texts(episode.text, steps)
        kept, events, signatures = [(0, steps)], [], {}
        if rules:
            small = np.stack(watch.frames)
            kept, events = filtering.pieces(rules, small, watch.size, episode.fps)
            signatures = {first: scenes.signature(small[first:end]).hex() for first, end in kept}
        # an episode that is kept whole is none of several pieces, and keeps its name
        names = [entry["id"]] if kept == [(0, steps)] else [f"{entry['id']}--{k}" for k in range(len(kept))]
        meta = {"fps": episode.fps, "source": place_of(entry)} | ({"task": episode.task} if episode.task else {})
        pieces = []
        with atomic_path(pathlib.Path(job.parts) / f"{entry['id']}.part") as path, open(path, "wb") as file:
            for name, (first, end) in zip(names, kept):
                start = file.tell()
                about = meta | {"episode": name, "length": end - first}
                about |= {} if name == entry["id"] else {"source_step": first}
                for step in range(first, end):
                    members = {"json": step_shards.json_bytes({**about, "step": step - first})}
                    for member, (offset, size) in (frames[step] if frames else {}).items():
                        spool.seek(offset)
                        members[f"{member}.jpg"] = spool.read(size)
                    if texts[step]:
                        members["txt"] = texts[step].encode()
                    for column, rows in columns.items():
                        if step < len(rows):
                            members[f"{column}.npy"] = step_shards.array_bytes(rows[step])
                    file.write(step_shards.sample_bytes(step_shards.step_key(name, step - first), members))
                shown = Counter(member for step in frames[first:end] for member in step)
                cameras = sorted(set(episode.cameras) - set(plan["not_colour"]))
                blank = {member: end - first - shown[member] for member in cameras if shown[member] < end - first}
                piece = {"id": name, "first": first, "steps": end - first, "start": start}
                piece |= {"bytes": file.tell() - start, "blank": blank}
                if rules:
                    piece |= {"signature": signatures[first], "instruction": texts[first]}
                pieces.append(piece)
        strips = _strips(events, kept, rules, spool, frames) if rules else {}
    not_colour = {f"camera {m} ({why} beside colour)" for m, why in plan["not_colour"].items() if m in episode.cameras}
    summary = {"pieces": pieces, "fps": episode.fps, "left_out": sorted({*episode.left_out, *not_colour})}
    summary |= {"dropped": dict(episode.dropped), "text": any(texts), "remarks": dict(sorted(episode.remarks.items()))}
    summary |= {"filtered": filtering.counts(events), "strips": strips}
    write_json(meta_path(job.parts, entry["id"]), summary)


class _Watch:
    """Small copies of the main camera's frames for the filter, and the size of its images in the source."""

    def __init__(self):
        self.frames: list[np.ndarray] = []
        self.size = (0, 0)

    def see(self, source: np.ndarray, stored: np.ndarray) -> None:
        """Takes a frame: as the source has it, and as it is stored."""
        self.size = source.shape[:2]
        self.frames.append(scenes.small(stored))


def _strips(events: list, kept: list, rules: Filter, spool, frames: list[dict]) -> dict[str, list]:
    """What the report shows: {"events": [[kind, first, end, strip]], "pieces": [strip]}, strips of three small frames
    as JPEGs in base64. Of an episode in which much happened the first events of each kind are enough."""

    def strip(*steps: int) -> str:
        cells = []
        for step in steps:
            offset, size = frames[min(max(step, 0), len(frames) - 1)][MAIN]
            spool.seek(offset)
            image = images.decode(spool.read(size))
            scale = _STRIP / max(image.shape[:2])
            height, width = (max(1, round(side * scale)) for side in image.shape[:2])
            cells.append(images.resize_to(image, height, width))
        return base64.b64encode(images.encode(np.concatenate(cells, axis=1), 80)).decode()

    shown, counts = [], Counter()
    for kind, first, end in events:
        counts[kind] += 1
        if counts[kind] <= _TOLD:
            middle = (first + end - 1) // 2
            steps = (first - 2, first - 1, first, first + 1) if kind == filtering.CUT else (first, middle, end - 1)
            shown.append([kind, first, end, strip(*steps)])
    pieces = [strip(first, (first + end) // 2, end - 1) for first, end in kept] if rules.duplicates else []
    return {"events": shown, "pieces": pieces}


_STRIP, _TOLD = 96, 4
"""Pixels of the longer side of a frame in the strips, and how many events of a kind in an episode have one."""


def _columns(given: Mapping[str, np.ndarray], planned: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """The columns of an episode in their stored dtypes; those of the first readable episode, no more and no fewer."""
    if unknown := sorted(set(given) - set(planned)):
        raise ValueError(f"it has '{unknown[0]}', which the first episode lacks{_APART}")
    columns = {}
    for name, shape in planned.items():
        if name not in given:
            raise ValueError(f"it has no '{name}', the first episode has it{_APART}")
        rows = np.asarray(given[name])
        if rows.ndim < 1 or list(rows.shape[1:]) != shape:
            width = list(rows.shape[1:])
            raise ValueError(f"its '{name}' has rows of shape {width}, the first episode has {shape}{_APART}")
        with np.errstate(over="ignore"):
            rows = rows.astype(COLUMNS[name])
        if not np.isfinite(rows).all():
            raise ValueError(f"its '{name}' holds numbers that are not finite")
        columns[name] = rows
    return columns


def _pictures(
    episode: Episode, plan: Mapping, options: Mapping, watch: _Watch | None
) -> Iterator[dict[str, bytes]]:
    """{member: JPEG} of each step, all cameras in step. `watch` sees the frames of the main camera."""
    planned = plan["cameras"]
    cameras = {name: frames for name, frames in episode.cameras.items() if name not in plan["not_colour"]}
    if unknown := sorted(set(cameras) - set(planned)):
        raise ValueError(f"it has a camera '{unknown[0]}', which the first episode lacks{_APART}")
    if MAIN in planned and MAIN not in cameras:
        raise ValueError(f"it has no pictures of the main camera, the first episode has{_APART}")
    names, blank = list(cameras), 0
    for step, frames in enumerate(itertools.zip_longest(*cameras.values(), fillvalue=_END)):
        if any(frame is _END for frame in frames):
            short = names[[frame is _END for frame in frames].index(True)]
            raise ValueError(f"its camera '{short}' ends at frame {step}, before the others")
        try:
            stored = {}
            for name, frame in zip(names, frames):
                watching = watch if name == MAIN else None
                stored[name] = _jpeg(frame, plan, options, name, episode.remarks, watching)
        except ValueError as error:
            raise ValueError(f"frame {step}: {error}") from None
        stored = {name: jpeg for name, jpeg in stored.items() if jpeg is not None}
        blank += MAIN not in stored
        yield stored
    if names and blank:
        raise ValueError(f"{blank} pictures of its main camera are blank; choose another with --cameras")


_END = object()


def _jpeg(
    frame: np.ndarray | bytes | None,
    plan: Mapping,
    options: Mapping,
    camera: str,
    remarks: Counter,
    watch: _Watch | None,
) -> bytes | None:
    """A frame as it is stored. A JPEG that already fits is stored as it is: no second loss."""
    if frame is None:
        return None
    try:
        picture = image_files.open_frame(frame, remarks, options["white"])
    except ValueError as error:
        raise ValueError((isinstance(frame, bytes) and placeholder(frame)) or str(error)) from None
    if options["size"] is not None:
        resized = images.resize(picture, options["size"], options["resize"])
    else:
        resized = picture
        if plan["cameras"][camera] is not None and list(picture.shape[:2]) != plan["cameras"][camera]:
            shapes = f"{list(picture.shape[:2])}, the first episode has {plan['cameras'][camera]}"
            raise ValueError(f"a picture of '{camera}' is {shapes}: give a --size for all")
    if watch is not None:
        watch.see(picture, resized)
    if resized is picture and isinstance(frame, bytes) and image_files.is_plain_jpeg(frame):
        return frame
    return images.encode(resized, plan["options"]["quality"])


def _texts(text: str | list[str], steps: int) -> list[str]:
    texts = [text] * steps if isinstance(text, str) else list(text)
    if len(texts) != steps:
        raise ValueError(f"it has {steps} steps and {len(texts)} instructions")
    return texts


def _check_lengths(columns: Mapping[str, np.ndarray], frames: int | None) -> int:
    """The number of steps: of frames, or where there are none, of the longest column."""
    steps = max((len(rows) for rows in columns.values()), default=0) if frames is None else frames
    if steps == 0:
        raise ValueError("it is empty")
    if len(columns.get("action", ())) not in (0, steps, steps - 1):
        rows = len(columns["action"])
        raise ValueError(f"it has {steps} steps and {rows} actions; one action a step is possible, or one fewer")
    for name, rows in columns.items():
        if len(rows) not in (steps, steps - 1):
            raise ValueError(f"it has {steps} steps and {len(rows)} rows of '{name}'; steps or steps - 1 are possible")
    return steps


def meta_path(parts: str | os.PathLike, episode: str) -> pathlib.Path:
    """The file whose presence says that the part of an episode is whole."""
    return pathlib.Path(parts) / f"{episode}.json"


def read_part(parts: str | os.PathLike, episode: str) -> dict | None:
    """The summary of a whole part, None where it is not there.

    {"pieces": [{"id", "first": step of the source, "steps", "start": byte in the part, "bytes", "blank": {camera: steps
    without an image}, "signature", "instruction"}], "fps", "left_out", "dropped", "text", "remarks", "filtered": {what:
    how many}, "strips"}; there is one piece without `--filter`.
    """
    path = meta_path(parts, episode)
    return read_json(path) if path.exists() else None


def remove_part(parts: str | os.PathLike, episode: str) -> None:
    """Deletes a part, first what says that it is whole."""
    meta_path(parts, episode).unlink(missing_ok=True)
    (pathlib.Path(parts) / f"{episode}.part").unlink(missing_ok=True)
