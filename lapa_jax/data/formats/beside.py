"""What lies beside videos and images and says more about them: texts of their names, tables of captions, arrays.

Texts of the videos' own names are read. Of the rest it is told what it is and which option takes it: a table may be
meant for something else, and arrays need a table that says which video they belong to.
"""

import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder
from lapa_jax.data.formats import captions, hdf5, npz
from lapa_jax.data.formats.instructions import as_instruction, like_instruction
from lapa_jax.data.formats.reading import walk
from lapa_jax.data.modalities import words

_TABLES = (".csv", ".tsv", ".json", ".jsonl")
_ARRAYS = (".npz", ".npy", ".parquet", *hdf5.ENDINGS, *_TABLES)
_LOOKED_AT = 16
"""Files of each kind that are opened: a source whose first ones say nothing has others than meant here."""
_LARGEST = 256 << 20
"""Bytes of a table that is looked into."""


def texts(source: pathlib.Path, videos: Sequence[str]) -> dict[str, str]:
    """{video: instruction} of those that have a text file of their name, `clip.txt` beside `clip.mp4`.

    Raises:
      UserError: such a file is no UTF-8 text.
    """
    of_video = {}
    for video in videos:
        path = (source / video).with_suffix(".txt")
        if path.is_file():
            if why := placeholder(path):
                raise UserError(why)
            try:
                of_video[video] = as_instruction(path.read_text("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is no UTF-8 text ({error}); convert it, or pass --captions none") from None
    return {video: text for video, text in of_video.items() if text}


def unread(source: pathlib.Path, videos: Sequence[str], exclude: pathlib.Path | None) -> dict[str, str]:
    """What a folder of videos holds of instructions and actions that is not read; see `base.Episode.unread`."""
    files = list(_files(source, exclude))
    kinds = {}
    for path in itertools.islice((p for p in files if p.suffix.lower() in _TABLES), _LOOKED_AT):
        if path.stat().st_size <= _LARGEST and (count := _matches(path, videos)):
            name = path.relative_to(source)
            kinds["instructions"] = f"the table {name} of {count} of {len(videos)} videos; --captions {path} takes it"
            break
    named = next((p for p in files if p.suffix.lower() == ".txt" and like_instruction(p.stem)), None)
    if named and "instructions" not in kinds:
        kinds["instructions"] = f"{named.relative_to(source)}; write a table of captions, and pass it as --captions"
    for path in itertools.islice((p for p in files if p.suffix.lower() in _ARRAYS), _LOOKED_AT):
        if array := _action_in(path):
            kinds["actions"] = (
                f"{path.relative_to(source)} with {array}; a table with the columns video and arrays says which file "
                "(npz: action [frames - 1, dimensions]) belongs to which video, --captions takes it"
            )
            break
    return kinds


def _files(source: pathlib.Path, exclude: pathlib.Path | None) -> Iterator[pathlib.Path]:
    for here, names in walk(source, exclude):
        yield from (here / name for name in names)


def _matches(path: pathlib.Path, videos: Sequence[str]) -> int:
    """How many videos have a caption in a file; 0 where it is no table of captions."""
    try:
        rows = captions.read_captions(str(path))
        return sum(bool(row.text) for row in captions.match(rows, videos, str(path))[0].values())
    except UserError:
        return 0


def _action_in(path: pathlib.Path) -> str:
    """The first array or column of a file that is called an action; "" where there is none, or it cannot be read."""
    try:
        names = _names_in(path)
    except Exception:  # each library has its own errors for damage; such a file says nothing
        return ""
    return next((name for name in names if name.lower().startswith("action") or "/action" in name.lower()), "")


def _names_in(path: pathlib.Path) -> list[str]:
    """What the arrays or columns of a file are called; an npy's array is called as the file is."""
    ending = path.suffix.lower()
    if ending == ".npz":
        return list(npz.headers(path))
    if ending == ".npy":
        return ["action"] if "action" in words(path.stem) or "actions" in words(path.stem) else []
    if ending == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetFile(path).schema_arrow.names
    if ending in hdf5.ENDINGS:
        with hdf5.open_hdf5(path) as file:
            return list(hdf5.walk(file))
    with open(path, encoding="utf-8-sig") as file:
        first = file.readline()
    if ending in (".csv", ".tsv"):
        return [name.strip(' "\r\n') for name in re.split("[,;\t]", first)]
    return re.findall(r'"(\w+)"\s*:', first)
