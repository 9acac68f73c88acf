"""The records in LAPA's json files: where each one stands, and what it says."""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.reading import reading
from lapa_jax.data.formats.webdataset.members import load_json
from lapa_jax.data.text import PLACE, TEMPLATES

PROMPT = TEMPLATES["lapa"].text.replace(PLACE, "{}")
QUESTION = "<image>\nWhat action should the robot take to `{}`"
"""What LAPA puts around an instruction: in stage 2 and in preprocessed data, and in conversations."""

_TEMPLATES = [re.compile("(.*)".join(map(re.escape, t.split("{}"))), re.DOTALL) for t in (PROMPT, QUESTION)]
_SPACE = re.compile(r"[ \t\r\n]*")
_BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """A record and where it stands: its number in the file, the bytes `start` to `end`."""

    number: int
    start: int
    end: int
    value: dict


def is_lapa(path: pathlib.Path) -> bool:
    """Whether the first record of a file, in its first megabyte, has a picture and codes or actions."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 20)
        record = json.JSONDecoder().raw_decode(head.removeprefix(_BOM).decode("latin-1").lstrip(" \t\r\n["))[0]
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "image" in record and ("delta" in record or answer_of(record) is not None)


def is_list(path: pathlib.Path) -> bool:
    """Whether a file is one list of records; if not, it has an object a line."""
    with open(path, "rb") as file:
        return file.read(256).removeprefix(_BOM).lstrip()[:1] == b"["


def records(path: pathlib.Path) -> Iterator[Record]:
    """All records of a file. Damage is a `UserError` that names the place."""
    for number, (start, end, data) in enumerate(_in_list(path) if is_list(path) else _in_lines(path)):
        try:
            value = load_json(data)
            if not _is_record(value):
                raise ValueError("it is no object with the path of an image")
        except ValueError as error:
            raise UserError(f"{path}, record {number} at byte {start}: {error}; mend the file") from None
        yield Record(number, start, end, value)


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("image"), str)


def _in_lines(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
    start = 0
    with open(path, "rb") as file:
        for line in file:
            data = line.removeprefix(_BOM).strip() if start == 0 else line.strip()
            if data:
                first = start + line.index(data)
                yield first, first + len(data), data
            start += len(line)


def _in_list(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
    """Each element's bytes. Read as Latin-1, in which a character is a byte: JSON's own signs are the same there."""
    data = path.read_bytes()
    text, decoder = data.decode("latin-1"), json.JSONDecoder()
    at = _SPACE.match(text, text.index("[") + 1).end()
    more = text[at : at + 1] != "]"
    while more:
        try:
            end = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} at byte {at}: no valid JSON ({error}); mend the file") from None
        yield at, end, data[at:end]
        at = _SPACE.match(text, end).end()
        more = text[at : at + 1] == ","
        if more:
            at = _SPACE.match(text, at + 1).end()
        elif text[at : at + 1] != "]":
            raise UserError(f"{path} at byte {at}: a comma or the list's end was expected; mend the file")
    if text[at + 1 :].strip():
        raise UserError(f"{path} at byte {at + 1}: something follows the end of the list; mend the file")


def read_spans(path: pathlib.Path, spans: Sequence[Sequence[int]], listed: bool) -> list[dict]:
    """The records in some stretches of a file.

    Args:
      path: the file. spans: (first byte, end, how many records) of each stretch. listed: see `is_list`.
    """
    records: list[dict] = []
    with reading(f"the records in {path.name}"), open(path, "rb") as file:
        for start, end, count in spans:
            data = os.pread(file.fileno(), end - start, start)
            lines = [b"[" + data + b"]"] if listed else [b"[" + d + b"]" for d in data.split(b"\n") if d.strip()]
            parsed = [value for line in lines for value in load_json(line)]
            if len(parsed) != count or not all(map(_is_record, parsed)):
                raise ValueError(f"at byte {start} there are no longer the {count} records that were listed")
            records += parsed
    return records


def place_of(record: Mapping, default: str) -> tuple[str, int] | None:
    """(episode, step) by the id `<episode>_<step>`, else by the path of the picture; None where neither tells.

    `default` is the episode of pictures without a folder.
    """
    if match := re.fullmatch(r"(.+)_([0-9]{1,18})", str(record.get("id", "")), re.DOTALL):
        return match[1], int(match[2])
    path = pathlib.PurePosixPath(record["image"])
    if match := re.fullmatch(r"(.*?)([0-9]{1,18})", path.stem, re.DOTALL):
        episode = str(path.parent / match[1].rstrip("_-"))
        return (default if episode in (".", "/") else episode), int(match[2])
    return None


def turns_of(record: Mapping) -> list[dict]:
    """The turns of a record's conversation."""
    turns = record.get("conversations")
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def answer_of(record: Mapping) -> Mapping | None:
    """What holds `raw_actions` and `states`: the record itself (preprocessed), or a turn of its conversation."""
    return next((part for part in (record, *turns_of(record)) if "raw_actions" in part), None)


def text_of(record: Mapping) -> str:
    """The text of a record as it stands: its instruction, or the question of its conversation."""
    texts = [record.get("instruction"), *(turn.get("value") for turn in turns_of(record))]
    return next((text for text in texts if isinstance(text, str)), "")


def instruction_of(text: str) -> tuple[str, bool]:
    """The instruction in LAPA's prompt or question, and True; of any other text the text itself, and False."""
    for template in _TEMPLATES:
        if match := template.fullmatch(text):
            return match[1], True
    return text.strip(), False
