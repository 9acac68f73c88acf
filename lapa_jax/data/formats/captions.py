"""Captions and tables of episodes: json, jsonl and csv, the form of Something-Something-V2 included."""

import codecs
import csv
import io
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import parse_json, placeholder
from lapa_jax.data.formats.instructions import as_instruction

VIDEO_COLUMNS = ("video", "path", "file", "filename", "name", "id", "video_id")
TEXT_COLUMNS = ("instruction", "caption", "text", "sentence", "label")
_NULLS = ("", "none", "null", "nan", "n/a", "<na>")
"""What tables write where there is no value, in any case of letters."""
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
"""{what the column `split` holds: the split of the shards}."""


class Caption(NamedTuple):
    """What a table says about one video: its name there, the instruction, a file of arrays ("" where none), and its
    split, "train" or "val" ("" where the table does not say)."""

    video: str
    text: str
    arrays: str
    split: str


def read_captions(path: str) -> list[Caption]:
    """Reads a captions file.

    Forms: a list of objects (json) or an object a line (jsonl) with one of the columns `VIDEO_COLUMNS` and one of
    `TEXT_COLUMNS`, `arrays`, or both, and perhaps `split`; an object {video: text} or {video: {"label": ...}} (json); a
    csv with a header, separated by comma, semicolon or tab. A list of {"id", "label", ...} is that of
    Something-Something-V2.

    A clip whose text is empty or null, also as the word, has no instruction. Columns that hold nothing but numbers are
    classes, and no instructions: of the others the first in the order of `TEXT_COLUMNS` counts.
    """
    file = pathlib.Path(path)
    try:
        text = _decode(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read captions file {path}: {error}") from None
    if why := placeholder(file):
        raise UserError(f"captions file {why}")
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv}
    if file.suffix.lower() not in readers:
        raise UserError(f"captions file {path} is not one of {', '.join(readers)}")
    rows = list(readers[file.suffix.lower()](path, text))
    if not rows:
        raise UserError(f"captions file {path} is empty")
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"captions file {path}, {place}: an object was expected, got {row!r}")
    columns = _text_columns(path, [row for _, row in rows])
    return [_caption(path, place, row, columns) for place, row in rows]


def _decode(data: bytes) -> str:
    """UTF-8 with or without its byte order mark, or UTF-16 with one, as spreadsheets write it."""
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")


def _json(path: str, text: str) -> Iterable[tuple[str, Mapping]]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"captions file {path} is not valid JSON ({error})") from None
    if isinstance(value, Mapping):
        value = [{**(v if isinstance(v, Mapping) else {"label": v}), "video": k} for k, v in value.items()]
    if not isinstance(value, list):
        raise UserError(f"captions file {path} must hold a list of objects or an object of captions")
    return ((f"entry {i}", row) for i, row in enumerate(value))


def _jsonl(path: str, text: str) -> Iterable[tuple[str, Mapping]]:
    for number, line in enumerate(text.split("\n"), 1):  # not at U+2028 or U+0085, which JSON may hold
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except ValueError as error:
                raise UserError(f"captions file {path}, line {number}, is not valid JSON ({error})") from None


def _csv(path: str, text: str) -> Iterable[tuple[str, Mapping]]:
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    # given as a file, so that a quoted field may go on over lines
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        yield from ((f"line {reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise UserError(f"captions file {path}, line {reader.line_num}: {error}") from None


def _text_columns(path: str, rows: Sequence[Mapping]) -> list[str]:
    """The columns of instructions that a table has; one of classes only, or without any, is a `UserError`."""
    columns = [column for column in TEXT_COLUMNS if any(column in row for row in rows)]
    texts = {column: [row[column] for row in rows if not _is_empty(row.get(column))] for column in columns}
    sentences = [column for column in columns if not texts[column] or not all(map(_is_number, texts[column]))]
    if columns and not any(texts[column] for column in sentences) and any(texts.values()):
        raise UserError(
            f"captions file {path}: '{columns[0]}' holds nothing but numbers, such as {texts[columns[0]][0]!r}: an "
            f"instruction is a sentence, in one of {TEXT_COLUMNS}"
        )
    return sentences


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NULLS
    return value is None or (isinstance(value, float) and value != value)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
    return isinstance(value, str | int | float)


def _caption(path: str, place: str, row: Mapping, columns: Sequence[str]) -> Caption:
    video = next((row[c] for c in VIDEO_COLUMNS if row.get(c) not in (None, "")), None)
    if video is None or not ({*columns, "arrays"} & set(row)):
        need = f"one of {VIDEO_COLUMNS} and one of {TEXT_COLUMNS}"
        raise UserError(f"captions file {path}, {place}: needs {need}, has {tuple(row)}")
    text = next((row[column] for column in columns if not _is_empty(row.get(column))), "")
    text = as_instruction(text) if isinstance(text, list | tuple) else str(text).strip()
    split = "" if _is_empty(row.get("split")) else str(row["split"]).strip().lower()
    if split not in ("", *_SPLITS):
        raise UserError(f"captions file {path}, {place}: split is {row['split']!r}; give train or val, or leave it out")
    return Caption(str(video), text, str(row.get("arrays") or ""), _SPLITS.get(split, ""))


def match(captions: Sequence[Caption], videos: Sequence[str], path: str) -> tuple[dict[str, Caption], int]:
    """Finds the caption of each video: by relative path, with or without its ending, or by bare name. Accents may be
    written as one character or as two: macOS stores names of files decomposed.

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
    composed: dict[str, list[str]] = {}
    for video in videos:
        bare = pathlib.PurePosixPath(video)
        for name in {video, str(bare.with_suffix("")), bare.name, bare.stem}:
            names.setdefault(name, []).append(video)
            composed.setdefault(unicodedata.normalize("NFC", name), []).append(video)
    of_video: dict[str, Caption] = {}
    for caption in captions:
        name = caption.video.replace("\\", "/").removeprefix("./")
        fits = names.get(name) or composed.get(unicodedata.normalize("NFC", name), [])
        if name in fits:
            fits = [name]
        if len(fits) > 1:
            both = f"{fits[0]} and {fits[1]}"
            raise UserError(f"{path}: '{caption.video}' fits {both}; name videos by their relative path")
        for video in fits:
            if video in of_video and of_video[video] != caption:
                raise UserError(f"{path}: {video} has two captions, '{of_video[video].text}' and '{caption.text}'")
            of_video[video] = caption
    if not of_video:
        firsts = f"first caption: '{captions[0].video}', first video: '{videos[0]}'"
        raise UserError(f"{path}: no caption fits a video ({firsts}); name videos by their relative path")
    used = set(of_video.values())
    unused = sum(caption not in used for caption in captions)
    return of_video, unused
