"""The samples of a WebDataset tar: what kind each of them is, and what its members say."""

import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.base import COLUMNS, MAIN
from lapa_jax.data.formats.instructions import as_instruction, like_instruction
from lapa_jax.data.formats.webdataset import members
from lapa_jax.data.image_files import ENDINGS as IMAGES
from lapa_jax.data.shards import tar
from lapa_jax.data.shards.files import Files
from lapa_jax.data.shards.index import TarIndex
from lapa_jax.data.video import ENDINGS as VIDEOS

NONE, STEP, ARRAY, PAIR, VIDEO = range(5)
KINDS = ("nothing known", "single frames or steps", "arrays without pictures", "frame pairs", "videos")
"""What a sample is, and what it is called in messages."""

ALIASES = {name: name for name in COLUMNS} | {f"{name}s": name for name in COLUMNS}
"""Names of numeric members, arrays in an npz and fields of a json, and the columns that they become."""

TEXT_FIELDS = ("instruction", "language_instruction", "text", "caption", "task")
EPISODE_FIELDS = ("episode", "episode_id", "episode_index", "video_id")
STEP_FIELDS = ("step", "step_index", "frame_index", "frame_idx")

_IMAGES = (".heic", ".avif", ".jp2", ".jxl", ".exr", ".image.npy", ".rgb.npy", ".jpg.npy")
_REMEDIES = {
    "images": f"images are {', '.join(IMAGES)}, and videos {', '.join(VIDEOS)}",
    "actions": "they are read from .action.npy, or `action` in .npz or .json",
    "instructions": "they are read from .txt, or in .json from " + ", ".join(TEXT_FIELDS),
}
_T = TypeVar("_T")


class Place(NamedTuple):
    """Where a step belongs: in which episode, as which number."""

    episode: str
    step: int


class Values(NamedTuple):
    """What a sample holds beside its pictures.

    Attributes:
      columns: {"action": rows, ...}. text: the instruction, "" where there is none. task: its name, or "".
      fps: as its json says it, or None. place: as its json says it, or None. left_out: what is not carried on.
    """

    columns: dict[str, np.ndarray]
    text: str
    task: str
    fps: float | None
    place: Place | None
    left_out: set[str]


def camera_of(field: str, endings: Sequence[str]) -> str | None:
    """The camera that a field with one of the endings shows: "wrist.mp4" the wrist, "mp4" or "MP4" the main one."""
    stem, _, ending = (field.lower() if field.isupper() else field).rpartition(".")
    return (stem or MAIN) if f".{ending.lower()}" in endings else None


class Tar:
    """One tar: its index, and reads from it. Errors are ValueErrors that name sample and member.

    `joined` members of it are named `key_field.ending`, see `names.join_classic`.
    """

    def __init__(self, path: pathlib.Path, index: TarIndex, joined: int = 0):
        self.path, self.index, self.joined = path, index, joined
        self._files = Files()
        self._column = {field: i for i, field in enumerate(index.fields)}

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        self._files = Files()

    def key(self, row: int) -> str:
        """The key of a sample."""
        return self.index.keys[row].decode()

    def fields(self, row: int) -> list[str]:
        """The members of a sample, sorted."""
        return [field for field, i in self._column.items() if self.index.offsets[row, i] >= 0]

    def bytes_of(self, rows) -> int:
        """How many bytes the members of some samples have."""
        return int(np.maximum(self.index.sizes[rows], 0).sum())

    def place(self, row: int, field: str) -> tuple[int, int]:
        """(offset, size) of a member."""
        i = self._column[field]
        return int(self.index.offsets[row, i]), int(self.index.sizes[row, i])

    def read(self, row: int, field: str) -> bytes:
        """The bytes of a member; where the tar states their checksum it is checked."""
        try:
            data = self._files.read(self.path, *self.place(row, field))
        except UserError as error:
            raise ValueError(str(error).replace(str(self.path), self.path.name)) from None
        checksum = int(self.index.checksums[row, self._column[field]])
        if checksum >= 0 and tar.checksum(data) != checksum:
            raise ValueError(f"{self.key(row)}.{field}: its checksum is wrong")
        return data

    def parse(self, row: int, field: str, load: Callable[[bytes], _T]) -> _T:
        """A member, read by one of the functions of `members`."""
        data = self.read(row, field)
        try:
            return load(data)
        except ValueError as error:
            raise ValueError(f"{self.key(row)}.{field}: {error}") from None

    def having(self, wanted: Callable[[str], object]) -> np.ndarray:
        """bool[N]: which samples have a member whose field is wanted."""
        columns = [i for field, i in self._column.items() if wanted(field)]
        return (self.index.offsets[:, columns] >= 0).any(axis=1)


def kinds(source: Tar) -> np.ndarray:
    """int8[N], the kind of each sample of a tar. Half a pair is a `UserError`."""
    video = source.having(lambda field: camera_of(field, VIDEOS))
    halves = [source.having(lambda field, n=name: camera_of(field, IMAGES) == n) for name in ("t", "t1")]
    halves = [half & ~video for half in halves]
    lonely = np.flatnonzero(halves[0] != halves[1])
    if len(lonely):
        lacking = f"sample '{source.key(lonely[0])}' lacks one of its two frames, .t.jpg and .t1.jpg"
        raise UserError(f"{source.path}: {lacking}")
    picture = source.having(lambda field: camera_of(field, IMAGES))
    npz = source.having(lambda field: field.lower() == "npz")
    numbers = source.having(_is_column)
    kind = np.select([video, halves[0], picture, npz], [VIDEO, PAIR, STEP, ARRAY], NONE).astype(np.int8)
    unclear = np.flatnonzero(numbers & (kind == NONE))
    if len(unclear):
        kind[unclear] = ARRAY if _is_long(source, int(unclear[0])) else STEP
    return kind


def _is_column(field: str) -> bool:
    stem, _, ending = field.lower().rpartition(".")
    return ending == "npy" and stem in ALIASES


def _is_long(source: Tar, row: int) -> bool:
    """Whether the numbers of a sample have an axis for time."""
    field = next(field for field in source.fields(row) if _is_column(field))
    try:
        return source.parse(row, field, members.load_npy).ndim >= 2
    except ValueError as error:
        raise UserError(f"{source.path}: {error}; write this shard again") from None


def values_of(source: Tar, row: int, ndim: int) -> Values:
    """Reads what a sample says beside its pictures.

    Args:
      source: the tar. row: the number of the sample.
      ndim: 2 where its numbers are those of a whole episode, 1 where they are of one step.

    Raises:
      ValueError: a member is damaged, a column is given twice, or a value has another form than expected.
    """
    values: list[tuple[str, str, object]] = []
    texts: dict[str, str] = {}
    facts: dict = {}
    left: set[str] = set()
    for field in source.fields(row):
        plain = field.lower()
        if _is_column(field):
            values.append((ALIASES[plain[:-4]], field, source.parse(row, field, members.load_npy)))
        elif plain == "npz":
            arrays, others = source.parse(row, field, lambda data: members.load_npz(data, ALIASES))
            values += [(ALIASES[name], field, array) for name, array in arrays.items()]
            left |= {f"{name} (npz)" for name in others}
        elif plain == "txt":
            texts["txt"] = source.parse(row, field, members.load_text)
        elif plain == "json" and isinstance(value := source.parse(row, field, members.load_json), dict):
            facts = value
        elif camera_of(field, VIDEOS + IMAGES) is None:
            left.add(f".{field}")
    for name, value in facts.items():
        if name in ALIASES and isinstance(value, list):
            values.append((ALIASES[name], "json", value))
        elif name in TEXT_FIELDS and (value in (None, "", []) or as_instruction(value)):
            texts[name] = as_instruction(value)
        elif name not in ("fps", *EPISODE_FIELDS, *STEP_FIELDS):
            left.add(f"{name} (json)")
    used = next((name for name in ("txt", *TEXT_FIELDS) if texts.get(name)), "")
    left |= {f"{name} (json)" for name, text in texts.items() if text and name not in (used, "txt", "task")}
    columns = _columns(source.key(row), values, ndim)
    fps = _fps(source.key(row), facts.get("fps"))
    return Values(columns, texts.get(used, ""), texts.get("task", ""), fps, place_told(facts), left)


def unread(left_out: Iterable[str]) -> dict[str, str]:
    """What of the members and fields that are left out looks like images, actions or instructions."""
    names_of: dict[str, list[str]] = {}
    for name in sorted(left_out):
        plain = name.lower().removesuffix(" (json)").removesuffix(" (npz)")
        if plain.endswith(_IMAGES) or plain.startswith("camera "):
            names_of.setdefault("images", []).append(name)
        elif "action" in plain and "pad" not in plain and "mask" not in plain:
            names_of.setdefault("actions", []).append(name)
        elif like_instruction(plain):
            names_of.setdefault("instructions", []).append(name)
    return {kind: f"{', '.join(names)}; {_REMEDIES[kind]}" for kind, names in names_of.items()}


def _columns(key: str, values: list[tuple[str, str, object]], ndim: int) -> dict[str, np.ndarray]:
    columns = {}
    for name, field, value in values:
        if name in columns:
            fields = ", ".join(f".{other}" for column, other, _ in values if column == name)
            raise ValueError(f"{key}: its '{name}' is given more than once (in {fields})")
        try:
            columns[name] = members.rows_of(name, value, ndim)
        except ValueError as error:
            raise ValueError(f"{key}.{field}: {error}") from None
    return columns


def _fps(key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e4:
        raise ValueError(f"{key}.json: fps is {value!r}, a positive number was expected")
    return float(value)


def place_told(facts: Mapping) -> Place | None:
    """The place of a step as the fields of its json tell it; None where they do not."""
    episode = next((facts[name] for name in EPISODE_FIELDS if isinstance(facts.get(name), str | int)), None)
    step = next((facts[name] for name in STEP_FIELDS if type(facts.get(name)) is int), None)
    return None if episode is None or step is None or step < 0 else Place(str(episode), step)


def place_in_json(source: Tar, row: int) -> Place | None:
    """The same, read from a sample; None where it has no json that tells it. Damage is a `UserError`."""
    field = next((field for field in source.fields(row) if field.lower() == "json"), None)
    if field is None:
        return None
    try:
        facts = source.parse(row, field, members.load_json)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}; write this shard again") from None
    return place_told(facts) if isinstance(facts, dict) else None


def place_in_key(key: str) -> Place | None:
    """The place that a key `{episode}_{number}`, `{episode}_step_{number}` or `{episode}/{number}` tells; None for any
    other key."""
    match = re.fullmatch(r"(.+?)(?:_step)?[_/]([0-9]{1,18})", key)
    return Place(match[1], int(match[2])) if match else None


def check_place(source: Tar, row: int, place: Place | None) -> Place:
    """The place of a step, or a `UserError` that says how steps are named."""
    if place is not None:
        return place
    raise UserError(
        f"{source.path}: sample '{source.key(row)}' does not say which step of which episode it is: name samples "
        '{episode}_{number}, or give their .json the fields "episode" and "step"'
    )
