"""What a split of step shards holds, in memory-mapped arrays: where members lie, numbers, episodes, instructions.

`<split>.index.npz` beside the shards is made by the conversion, or when a split is first opened, and belongs to one
content (the fingerprint and the sizes of the tars). A split of ten million steps is then opened in a second, nothing
of it is sent to workers, and what they read at random (`Table.take`) is not kept in memory.

The arrays, of N steps and E episodes:
  member/<field>     int64[N, 3]: offset (-1: the step lacks it), size and CRC-32C (-1: not stated) in the step's tar
  present/<field>    bool[N]
  column/<name>      [N, D] (deltas [N, positions, D]) of the members .<name>.npy, zeros where there is none
  check/<name>       uint32[N]: of each row, see `row_checks`
  text               int32[N]: number of the instruction, -1 for none
  episode/id         bytes[E]
  episode/start, length, fps (NaN without a clock), task (number of the text, -1 for none)
  shard/start        int64[shards + 1]
  about              uint8: JSON with the stamp, the texts, the shapes of the others, and what is damaged:
                     {member: {step: why}}
"""

import contextlib
import io
import json
import math
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import arrays_on_disk, parse_json
from lapa_jax.data.formats.base import COLUMNS
from lapa_jax.data.shards import mapped, tar
from lapa_jax.data.shards.files import DamagedSample, Files
from lapa_jax.data.shards.index import TarIndex, build_index

VERSION = 1
_BLOCK = 1 << 16
_READ = 1 << 22
_BY_ROW = ("member/", "column/", "check/")
"""Arrays that are checked where they are used: rows by their check, members by their own checksum. The others, which
take a few bytes a step, are compared with their checksums when a split is opened."""


class Episode(NamedTuple):
    """A run of steps: global numbers `start` to `start + length - 1` of the split."""

    id: str
    start: int
    length: int


class Episodes(Sequence):
    """The episodes of a split, objects only where they are asked for.

    Attributes:
      ids: bytes[E]. starts, lengths: int64[E].
    """

    def __init__(self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray):
        self.ids, self.starts, self.lengths = ids, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return Episode(self.ids[i].decode(), int(self.starts[i]), int(self.lengths[i]))

    def __eq__(self, other) -> bool:
        if not isinstance(other, Episodes):
            return NotImplemented
        return all(map(np.array_equal, (self.ids, self.starts, self.lengths), (other.ids, other.starts, other.lengths)))

    __hash__ = None


class Table:
    """An opened table.

    Attributes:
      arrays: as the module's text lists them. episodes: of the split. texts: the distinct instructions and tasks.
      damaged: {member: {step: why}}.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        about = parse_json(arrays["about"].tobytes())
        self.arrays, self.texts = arrays, about["texts"]
        self.damaged = {name: {int(i): why for i, why in steps.items()} for name, steps in about["damaged"].items()}
        self.episodes = Episodes(*(np.asarray(arrays[f"episode/{name}"]) for name in ("id", "start", "length")))
        self.fields = tuple(sorted(name.removeprefix("member/") for name in arrays if name.startswith("member/")))
        self._files = Files()

    def __len__(self) -> int:
        return len(self.arrays["text"])

    def take(self, name: str, steps: Sequence[int]) -> np.ndarray:
        """The rows of an array at some steps int[n].

        They are read from the file and not through the map. What is read through the map counts as memory of each
        process that does so, and Linux brings up to two megabytes of it for one row: workers would hold all of it.
        """
        array, steps = self.arrays[name], np.asarray(steps)
        if not isinstance(array, np.memmap):
            return array[steps]
        size = array.strides[0]
        begins = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 2) != 1)  # of runs of steps, as chunks are
        counts = np.diff(begins, append=len(steps))
        places = zip((array.offset + steps[begins].astype(np.int64) * size).tolist(), (counts * size).tolist())
        data = bytearray().join(self._files.read(array.filename, *place) for place in places)
        return np.frombuffer(data, array.dtype).reshape(len(steps), *array.shape[1:])

    def column(self, name: str, numbers: int = 1 << 20) -> Iterator[np.ndarray]:
        """A numeric column in step order, as chunks f[n, A] of about `numbers` numbers; steps without it are left out.

        Raises:
          DamagedSample: one of its rows is damaged.
        """
        for why in self.damaged.get(f"{name}.npy", {}).values():
            raise DamagedSample(why)
        values = self.arrays.get(f"column/{name}")
        if values is None:
            return
        present, rows = self.present(f"{name}.npy"), max(1, numbers // max(1, values.shape[1]))
        for start in range(0, len(values), rows):
            chosen = np.asarray(present[start : start + rows])
            if chosen.any():
                yield np.asarray(values[start : start + rows])[chosen]

    def present(self, field: str) -> np.ndarray:
        """bool[N]: which steps have a member."""
        flags = self.arrays.get(f"present/{field}")
        return np.zeros(len(self), bool) if flags is None else flags

    def instructions(self) -> list[str]:
        """The distinct instructions of all steps, sorted."""
        used = np.zeros(len(self.texts) + 1, bool)
        used[self.arrays["text"]] = True  # -1, no text, is the last entry
        return sorted(text for text, here in zip(self.texts, used) if here)


def open_table(folder: pathlib.Path, split: str, described: Mapping) -> Table:
    """The table of a split, read where it belongs to what is there, else built, and saved where that is possible.

    Args:
      folder: of the shards. split: its name. described: `dataset.json`.

    Raises:
      UserError: damaged tars, or others than `dataset.json` lists.
    """
    path, stamp = table_path(folder, split), _stamp(described, split)
    arrays = _load(path, stamp)
    if arrays is None:
        arrays = write_table(folder, split, described)
    return Table(arrays)


def table_path(folder: pathlib.Path, split: str) -> pathlib.Path:
    """Where the table of a split lies."""
    return folder / f"{split}.index.npz"


def write_table(folder: pathlib.Path, split: str, described: Mapping) -> dict[str, np.ndarray]:
    """Builds the table of a split from its tars and saves it; where the folder cannot be written it is kept in memory.

    Args:
      folder: of the shards. split: its name.
      described: of `dataset.json` "fingerprint", "features" and "splits".

    Returns:
      The arrays, mapped from the file where there is one.

    Raises:
      UserError: damaged tars, or other steps than `described` lists.
    """
    shards = described["splits"][split]["shards"]
    paths = [folder / shard["name"] for shard in shards]
    steps = sum(shard["samples"] for shard in shards)
    columns = {
        name: (tuple(described["features"][name]["shape"]), np.dtype(dtype))
        for name, dtype in {**COLUMNS, "delta": np.float32}.items()  # deltas are of labels, no source brings them
        if len(described["features"].get(name, {}).get("shape", ())) == (2 if name == "delta" else 1)
    }
    with contextlib.ExitStack() as stack:
        room = _Room(folder, stack)
        builder = _Builder(steps, columns, room, folder)
        for path, shard in zip(paths, shards):
            builder.add(path, build_index(path), shard["samples"])
        arrays = seal(*builder.finish(), described, split)
        try:
            mapped.write(table_path(folder, split), arrays)
        except OSError:  # a read-only folder, or a full disk: this process keeps the arrays
            return {name: np.array(array) for name, array in arrays.items()}
    return mapped.open_mapped(table_path(folder, split))


class _Room:
    """Arrays to be filled: in an unnamed file beside the shards where that is possible, else in memory."""

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
        self._folder, self._stack = folder, stack

    def __call__(self, shape: tuple[int, ...], dtype) -> np.ndarray:
        if np.prod(shape) * np.dtype(dtype).itemsize > 1 << 24:
            with contextlib.suppress(OSError, UserError):
                arrays = self._stack.enter_context(arrays_on_disk(self._folder, {"a": shape}, dtype))
                return arrays["a"]
        return np.zeros(shape, dtype)


class _Builder:
    """Fills the arrays of a table, a tar at a time."""

    def __init__(self, steps: int, columns: Mapping[str, tuple[tuple[int, ...], np.dtype]], room: _Room, folder):
        self._steps, self._columns, self._room, self._folder = steps, columns, room, folder
        self._arrays = {"text": room((steps,), np.int32)}
        self._arrays["text"][:] = -1
        for name, (shape, dtype) in columns.items():
            self._arrays[f"column/{name}"] = room((steps, *shape), dtype)
            self._arrays[f"check/{name}"] = room((steps,), np.uint32)
        self._damaged: dict[str, dict[int, str]] = {}
        self._texts: dict[bytes, int] = {}
        self._starts = [0]
        self._episodes: list[tuple[bytes, int, int, float, int]] = []

    def add(self, path: pathlib.Path, index: TarIndex, expected: int) -> None:
        """Takes in a tar of the split, which follows those before."""
        start, count = self._starts[-1], len(index)
        if count != expected or start + count > self._steps:
            raise UserError(f"{path} holds {count} steps, not the {expected} that dataset.json lists: convert it again")
        rows = slice(start, start + count)
        for number, field in enumerate(index.fields):
            if f"member/{field}" not in self._arrays:
                self._arrays[f"member/{field}"] = self._room((self._steps, 3), np.int64)
                self._arrays[f"member/{field}"][:] = -1
                self._arrays[f"present/{field}"] = self._room((self._steps,), bool)
            members = np.stack([index.offsets[:, number], index.sizes[:, number], index.checksums[:, number]], 1)
            self._arrays[f"member/{field}"][rows] = members
            self._arrays[f"present/{field}"][rows] = members[:, 0] >= 0
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        for name in self._columns:
            self._read_column(path, data, index, name, start)
        self._read_texts(path, data, index, start)
        self._read_episodes(path, data, index, start)
        self._starts.append(start + count)

    def _bad(self, member: str, step: int, path: pathlib.Path, key: bytes, why: object) -> None:
        text = f"{path}: {key.decode()}.{member} is damaged ({why}); convert the data again"
        self._damaged.setdefault(member, {})[step] = text

    def _read_column(self, path: pathlib.Path, data: np.ndarray, index: TarIndex, name: str, start: int) -> None:
        """The rows of a column, many at a time: as the converter writes them, all are of one size and header."""
        member, (shape, dtype) = f"{name}.npy", self._columns[name]
        if member not in index.fields:
            return
        values, checks = self._arrays[f"column/{name}"], self._arrays[f"check/{name}"]
        number = index.fields.index(member)
        header = _npy_header(shape, dtype)
        size = len(header) + int(np.prod(shape)) * dtype.itemsize
        steps = np.flatnonzero(index.offsets[:, number] >= 0)
        for begin in range(0, len(steps), _BLOCK):
            chosen = steps[begin : begin + _BLOCK]
            offsets, sizes = index.offsets[chosen, number], index.sizes[chosen, number]
            alike = sizes == size
            raw = data[offsets[alike][:, None] + np.arange(size)]
            alike[alike] = (raw[:, : len(header)] == np.frombuffer(header, np.uint8)).all(axis=1)
            raw = raw[(raw[:, : len(header)] == np.frombuffer(header, np.uint8)).all(axis=1)]
            rows = np.ascontiguousarray(raw[:, len(header) :]).view(dtype).reshape(len(raw), *shape)
            values[start + chosen[alike]] = rows
            for step, row in zip(chosen[alike].tolist(), raw):
                stated = index.checksums[step, number]
                if stated >= 0 and tar.checksum(row.tobytes()) != stated:
                    self._bad(member, start + step, path, index.keys[step], "its checksum is wrong")
            for step in chosen[~alike].tolist():
                try:
                    values[start + step] = self._parse(data, index, step, number, shape)
                except (ValueError, EOFError) as error:
                    self._bad(member, start + step, path, index.keys[step], error)
            if dtype.kind == "f":
                finite = np.isfinite(values[start + chosen]).all(axis=tuple(range(1, values.ndim)))
                for step in chosen[~finite].tolist():
                    self._bad(member, start + step, path, index.keys[step], "it holds numbers that are not finite")
            checks[start + chosen] = row_checks(values[start + chosen])

    def _parse(self, data: np.ndarray, index: TarIndex, step: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
        row = np.load(io.BytesIO(self._member(data, index, step, number)), allow_pickle=False)
        if row.shape != shape:
            raise ValueError(f"its shape is {row.shape}, the data set says {shape}")
        return row

    def _member(self, data: np.ndarray, index: TarIndex, step: int, number: int) -> bytes:
        """The bytes of a member; a wrong checksum is a ValueError."""
        offset, size = int(index.offsets[step, number]), int(index.sizes[step, number])
        content, stated = data[offset : offset + size].tobytes(), int(index.checksums[step, number])
        if stated >= 0 and tar.checksum(content) != stated:
            raise ValueError("its checksum is wrong")
        return content

    def _read_texts(self, path: pathlib.Path, data: np.ndarray, index: TarIndex, start: int) -> None:
        if "txt" not in index.fields:
            return
        number = index.fields.index("txt")
        for step in np.flatnonzero(index.offsets[:, number] >= 0).tolist():
            try:
                text = self._member(data, index, step, number)
                text.decode()
            except ValueError as error:  # of the checksum or of UTF-8
                self._bad("txt", start + step, path, index.keys[step], error)
                continue
            self._arrays["text"][start + step] = self._texts.setdefault(text, len(self._texts))

    def _read_episodes(self, path: pathlib.Path, data: np.ndarray, index: TarIndex, start: int) -> None:
        """The episodes of a tar from its keys, which must count 0, 1, 2, ... within each, and their first json."""
        number = index.fields.index("json") if "json" in index.fields else None
        for name, first, length in episodes_of(path, index.keys):
            facts = {}
            if number is not None and index.offsets[first, number] >= 0:
                try:
                    facts = parse_json(self._member(data, index, first, number))
                except ValueError as error:
                    self._bad("json", start + first, path, index.keys[first], error)
            fps, task = facts.get("fps"), facts.get("task")
            said = self._texts.setdefault(str(task).encode(), len(self._texts)) if task else -1
            self._episodes.append((name, start + first, length, np.nan if fps is None else float(fps), said))

    def finish(self) -> tuple[dict[str, np.ndarray], list[str], dict[str, dict[int, str]]]:
        """All arrays but "about", the texts, and what is damaged."""
        if self._starts[-1] != self._steps:
            held = f"the shards hold {self._starts[-1]} steps, not {self._steps}"
            raise UserError(f"{self._folder}: {held}; convert the data again")
        names = [name for name, *_ in self._episodes]
        if len(set(names)) < len(names):
            raise UserError(f"{self._folder}: two episodes have one id; convert the data again")
        columns = list(zip(*self._episodes)) or [()] * 5
        arrays = dict(self._arrays)
        arrays["episode/id"] = np.array(names, np.bytes_)
        dtypes = {"start": np.int64, "length": np.int64, "fps": np.float64, "task": np.int32}
        for (name, dtype), values in zip(dtypes.items(), columns[1:]):
            arrays[f"episode/{name}"] = np.array(values, dtype)
        arrays["shard/start"] = np.array(self._starts, np.int64)
        return arrays, [text.decode() for text in self._texts], self._damaged


def seal(
    arrays: Mapping[str, np.ndarray], texts: Sequence[str], damaged: Mapping, described: Mapping, split: str
) -> dict[str, np.ndarray]:
    """The arrays of a table with "about", which says what content they belong to and what their headers must say."""
    about = {"stamp": _stamp(described, split), "texts": list(texts), "damaged": damaged, "arrays": _forms(arrays)}
    return {**arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}


def episodes_of(path: pathlib.Path, keys: np.ndarray) -> Iterator[tuple[bytes, int, int]]:
    """(id, first row, length) of the episodes of a tar, whose keys must count 0, 1, 2, ... within each episode."""
    name, first, count = b"", 0, 0
    for row, key in enumerate(keys.tolist()):
        episode, _, number = key.rpartition(b"_")
        if number == b"000000" and episode:
            if count:
                yield name, first, count
            name, first, count = episode, row, 1
        elif count and episode == name and number == b"%06d" % count:
            count += 1
        else:
            said = key.decode()
            raise UserError(f"{path}: sample '{said}' is out of order; steps count {{episode}}_000000, _000001, ...")
    if count:
        yield name, first, count


def row_checks(rows: np.ndarray) -> np.ndarray:
    """uint32[n] of rows [n, ...] of four-byte numbers: a sum in which any flipped bit shows.

    Each number's bits are multiplied by an odd one, its own for each place: a flip of one bit changes the sum, and so
    does an exchange of two numbers.
    """
    words = np.ascontiguousarray(rows).reshape(len(rows), math.prod(rows.shape[1:])).view(np.uint32)
    factors = np.arange(words.shape[1], dtype=np.uint32) * np.uint32(2654435762) + np.uint32(2654435761)
    return (words * factors).sum(axis=1, dtype=np.uint32)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, dtype), allow_pickle=False)
    return buffer.getvalue()[: -int(np.prod(shape)) * dtype.itemsize]


def _stamp(described: Mapping, split: str) -> dict:
    shards = [[shard["name"], shard["samples"], shard["bytes"]] for shard in described["splits"][split]["shards"]]
    return {"version": VERSION, "fingerprint": described["fingerprint"], "shards": shards}


def _forms(arrays: Mapping[str, np.ndarray]) -> dict:
    """What the headers of arrays must say: {name: [dtype, *shape]}."""
    return {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}


def _load(path: pathlib.Path, stamp: Mapping) -> dict[str, np.ndarray] | None:
    """The saved arrays, or None where they are absent, damaged, or of another content."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if not member.startswith(_BY_ROW):
                    with archive.open(member) as file:
                        while file.read(_READ):  # to the end, where the checksum is compared
                            pass
        arrays = mapped.open_mapped(path)
        about = parse_json(arrays["about"].tobytes())
        whole = about["arrays"] == _forms({name: array for name, array in arrays.items() if name != "about"})
        return arrays if whole and about["stamp"] == stamp else None
    except Exception:  # a damaged zip file or header raises errors of many kinds
        return None
