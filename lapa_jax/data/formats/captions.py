"""Captions and tables of episodes: json, jsonl and csv, the form of Something-Something-V2 included."""

import csv
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lapa_jax.core.errors import UserError

VIDEO_COLUMNS = ("video", "path", "file", "filename", "name", "id", "video_id")
TEXT_COLUMNS = ("instruction", "caption", "label", "text", "sentence")


class Caption(NamedTuple):
    """What a table says about one video: its name there, the instruction, and a file of arrays ("" where none)."""

    video: str
    text: str
    arrays: str


def read_captions(path: str) -> list[Caption]:
    """Reads a captions file.

    Forms: a list of objects (json) or an object a line (jsonl) with one of the columns `VIDEO_COLUMNS`, one of
    `TEXT_COLUMNS`, and optionally `arrays`; an object {video: text} or {video: {"label": ...}} (json); a csv with a
    header, separated by comma, semicolon or tab. A list of {"id", "label", ...} is that of Something-Something-V2.
    """
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read captions file {path}: {error}") from None
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv}
    if file.suffix.lower() not in readers:
        raise UserError(f"captions file {path} is not one of {', '.join(readers)}")
    rows = list(readers[file.suffix.lower()](path, text))
    if not rows:
        raise UserError(f"captions file {path} is empty")
    return [_caption(path, place, row) for place, row in rows]


def _json(path: str, text: str) -> Iterable[tuple[str, Mapping]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"captions file {path} is not valid JSON ({error})") from None
    if isinstance(value, Mapping):
        value = [{**(v if isinstance(v, Mapping) else {"label": v}), "video": k} for k, v in value.items()]
    if not isinstance(value, list):
        raise UserError(f"captions file {path} must hold a list of objects or an object of captions")
    return ((f"entry {i}", row) for i, row in enumerate(value))


def _jsonl(path: str, text: str) -> Iterable[tuple[str, Mapping]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"captions file {path}, line {number}, is not valid JSON ({error})") from None


def _csv(path: str, text: str) -> Iterable[tuple[str, Mapping]]:
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(lines, delimiter=delimiter)
    return ((f"line {reader.line_num}", row) for row in reader)


def _caption(path: str, place: str, row) -> Caption:
    if not isinstance(row, Mapping):
        raise UserError(f"captions file {path}, {place}: an object was expected, got {row!r}")
    video = next((row[c] for c in VIDEO_COLUMNS if row.get(c) not in (None, "")), None)
    text = next((row[c] for c in TEXT_COLUMNS if row.get(c) is not None), None)
    if video is None or text is None:
        need = f"one of {VIDEO_COLUMNS} and one of {TEXT_COLUMNS}"
        raise UserError(f"captions file {path}, {place}: needs {need}, has {tuple(row)}")
    return Caption(str(video), str(text).strip(), str(row.get("arrays") or ""))


def match(captions: Sequence[Caption], videos: Sequence[str], path: str) -> tuple[dict[str, Caption], int]:
    """Finds the caption of each video: by relative path, with or without its ending, or by bare name.

    Args:
      captions: the table.
      videos: paths relative to the input folder, with "/".
      path: of the table, for messages.

    Returns:
      {video: caption} for the videos that have one, and the number of captions without a video.

    Raises:
      UserError: no caption fits any video, two captions name one video, or a bare name fits several.
    """
    names: dict[str, list[str]] = {}
    for video in videos:
        bare = pathlib.PurePosixPath(video)
        for name in {video, str(bare.with_suffix("")), bare.name, bare.stem}:
            names.setdefault(name, []).append(video)
    found: dict[str, Caption] = {}
    for caption in captions:
        name = caption.video.replace("\\", "/").removeprefix("./")
        fits = names.get(name, [])
        if name in fits:
            fits = [name]
        if len(fits) > 1:
            both = f"{fits[0]} and {fits[1]}"
            raise UserError(f"{path}: '{caption.video}' fits {both}; name videos by their relative path")
        for video in fits:
            if video in found and found[video] != caption:
                raise UserError(f"{path}: {video} has two captions, '{found[video].text}' and '{caption.text}'")
            found[video] = caption
    if not found:
        firsts = f"first caption: '{captions[0].video}', first video: '{videos[0]}'"
        raise UserError(f"{path}: no caption fits a video ({firsts}); name videos by their relative path")
    used = set(found.values())
    unused = sum(caption not in used for caption in captions)
    return found, unused
