"""Folders of TensorFlow Datasets: which shards there are, which records they hold, and the bytes of one record."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.data.formats.rlds import features, tfrecord

INFO = "dataset_info.json"

_DEPTH = 2
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def folders(source: pathlib.Path, exclude: pathlib.Path | None) -> list[pathlib.Path]:
    """Dataset folders: the source itself, else the nearest below it."""
    level = [source]
    for _ in range(_DEPTH + 1):
        datasets = [f for f in level if (f / INFO).is_file() and (f / features.FILE).is_file()]
        if datasets:
            return sorted(datasets)
        below = [child for folder in level for child in sorted(folder.iterdir()) if child.is_dir()]
        level = [child for child in below if not child.name.startswith(".") and child.resolve() != exclude]
    return []


def dataset_folder(source: pathlib.Path, exclude: pathlib.Path | None) -> pathlib.Path:
    """The one dataset folder of a source; none or several are a `UserError`."""
    datasets = folders(source, exclude) if source.is_dir() else []
    if not datasets:
        raise UserError(f"{source} is no TensorFlow Datasets folder: there is no {INFO} beside a {features.FILE}")
    if len(datasets) > 1:
        names = ", ".join(f.relative_to(source).as_posix() for f in datasets)
        raise UserError(f"{source} holds {len(datasets)} datasets or versions; give one of them: {names}")
    return datasets[0]


def folder_above(path: pathlib.Path) -> pathlib.Path:
    """The dataset folder that a shard belongs to."""
    for folder in path.parents:
        if (folder / INFO).is_file():
            return folder
    raise ValueError(f"there is no {INFO} above the file any more")


def read_info(folder: pathlib.Path) -> dict:
    """name, version, fileFormat and splits of `dataset_info.json`; a table that cannot be used is a `UserError`."""
    path = folder / INFO
    info = read_json(path)
    if not isinstance(info, dict) or not isinstance(info.get("name"), str) or not isinstance(info.get("splits"), list):
        raise UserError(f"{path} lacks 'name' or 'splits'; copy it again from the dataset")
    kind = info.get("fileFormat", "tfrecord")
    if kind not in ("tfrecord", "array_record"):
        raise UserError(f"{path}: the file format '{kind}' is not read; tfrecord and array_record are")
    return {"name": info["name"], "version": info.get("version"), "fileFormat": kind, "splits": info["splits"]}


class Shard(NamedTuple):
    """A shard as the table lists it: its split, its number in the split, its file, its number of episodes."""

    split: str
    number: int
    path: pathlib.Path
    episodes: int


def shards(folder: pathlib.Path, info: Mapping) -> list[Shard]:
    """Every shard that the table lists, whether it is there or not."""
    listed = []
    for entry in info["splits"]:
        try:
            split, lengths = str(entry["name"]), [int(n) for n in entry["shardLengths"]]
            template = str(entry.get("filepathTemplate") or _TEMPLATE)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{folder / INFO}: a split lacks 'name' or 'shardLengths'; copy it again") from None
        for number, count in enumerate(lengths):
            name = pathlib.PurePath(_fill(template, info, split, number, len(lengths)))
            if name.is_absolute() or ".." in name.parts:
                raise UserError(f"{folder / INFO}: the shard {name} lies outside of the dataset's folder")
            listed.append(Shard(split, number, folder / name, count))
    return listed


def _fill(template: str, info: Mapping, split: str, number: int, total: int) -> str:
    values = {"DATASET": info["name"], "SPLIT": split, "FILEFORMAT": info["fileFormat"]}
    values |= {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{total:05d}"}
    values["SHARD_X_OF_Y"] = f"{number:05d}-of-{total:05d}"
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", value)
    return template


def records(shard: Shard, kind: str) -> list[tuple[dict, int]]:
    """(where, bytes) of every record of a shard.

    Args:
      shard: its file must be there.
      kind: "tfrecord" or "array_record".

    Raises:
      ValueError: the file is damaged, or holds another number of episodes than listed.
      OSError: it cannot be read.
    """
    if kind == "array_record":
        with _array_record(shard.path) as reader:
            total = reader.num_records()
        places = [({"record": i}, shard.path.stat().st_size // total) for i in range(total)]
    else:
        places = [({"offset": r.offset, "length": r.length}, r.length) for r in tfrecord.index(shard.path)]
    if len(places) != shard.episodes:
        listed = f"{INFO} lists {shard.episodes}: one of the two is of another version"
        raise ValueError(f"it holds {len(places)} episodes, {listed}")
    return places


def payload(path: pathlib.Path, at: Mapping) -> bytes:
    """The bytes of one record; whatever keeps it from being read is a ValueError."""
    try:
        if "offset" in at:
            return tfrecord.read(path, at["offset"], at["length"])
        with _array_record(path) as reader:
            return bytes(reader.read([at["record"]])[0])
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"record {at['record']} cannot be read ({error})") from None


@contextlib.contextmanager
def _array_record(path: pathlib.Path) -> Iterator:
    """An open reader. A file that is no whole ArrayRecord file is a ValueError."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.stat().st_size:
        raise ValueError("the file is empty")
    try:
        # the library reports a damaged file either here or through ok(), depending on where the damage is
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
        if not reader.ok():
            raise ValueError("it is no ArrayRecord file, or truncated")
    except RuntimeError as error:
        raise ValueError(f"it cannot be opened as ArrayRecord ({error})") from None
    try:
        yield reader
    finally:
        reader.close()


def others(folder: pathlib.Path, shards: Iterable[Shard]) -> dict[str, int]:
    """How many other files lie in a dataset's folder."""
    paths = {folder / INFO, folder / features.FILE, *(shard.path for shard in shards)}
    count = sum(1 for p in folder.iterdir() if p.is_file() and p not in paths and not p.name.startswith("."))
    return {f"files that {INFO} does not list": count} if count else {}
