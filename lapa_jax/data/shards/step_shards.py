"""Step shards: WebDataset tars with one sample per time step, and random access to them.

A folder holds `dataset.json`, `statistics.json` and `<split>-00000.tar`, ... A sample's key is `{episode}_{step:06d}`,
its members are `.image.jpg` (more cameras: `.image_<name>.jpg`), `.state.npy`, `.action.npy`, `.latent.npy`, `.txt` and
`.json` as known. Steps are in time order and an episode lies in one shard. The last step of an episode has no action,
so an episode has one frame more than actions. `dataset.json` is written last: a folder without it is unfinished.
"""

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax import sample
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_path, placeholder, read_json, write_json
from lapa_jax.data import images
from lapa_jax.data.shards import tar
from lapa_jax.data.shards.files import DamagedSample, Files
from lapa_jax.data.shards.index import open_index

FORMAT, VERSION = "lapa_jax.step_shards", 1
DATASET, STATISTICS = "dataset.json", "statistics.json"
WORK = ".convert"
"""Where an unfinished conversion keeps its state."""
_NO_LOCATION = (-1, -1, -1)


class Episode(NamedTuple):
    """A run of steps: global numbers `start` to `start + length - 1` of the split."""

    id: str
    start: int
    length: int


def step_key(episode: str, step: int) -> str:
    """The sample key of a step; episode ids hold no dot, slash or underscore."""
    return f"{episode}_{step:06d}"


def array_bytes(array: np.ndarray) -> bytes:
    """The .npy bytes of an array; the same array gives the same bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def json_bytes(value) -> bytes:
    """Compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sample_bytes(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as it stands in a shard: its members {"image.jpg": bytes, ...}, in alphabetical order."""
    return b"".join(tar.member(f"{key}.{field}", members[field]) for field in sorted(members))


class ShardWriter:
    """Writes one tar under a temporary name and renames it when the `with` block ends without an error.

    After that `summary` is {"name", "samples", "bytes", "sha256"}, the entry of the shard in `dataset.json`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.summary: dict = {}
        self._samples = self._bytes = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> "ShardWriter":
        self._atomic = atomic_path(self.path)
        # Entered by hand, as the block is this writer's own and not that of one function.
        self._file = open(self._atomic.__enter__(), "wb")
        return self

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Appends one sample; fields are named as in the tar: {"image.jpg": jpeg, "action.npy": array_bytes(a)}."""
        if "." in key.rpartition("/")[2] or not key:
            raise UserError(f"sample key '{key}' must not hold a dot: what follows the first dot is the field")
        self._write(sample_bytes(key, members))
        self._samples += 1

    def append(self, part: str | os.PathLike, samples: int, start: int = 0, size: int | None = None) -> None:
        """Appends a file that holds whole tar members (`sample_bytes`) of `samples` samples, or `size` bytes of it."""
        with open(part, "rb") as file:
            file.seek(start)
            left = os.fstat(file.fileno()).st_size - start if size is None else size
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                self._write(block)
                left -= len(block)
        self._samples += samples

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)
        self._bytes += len(data)

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self._write(tar.END)
            entry = {"name": self.path.name, "samples": self._samples, "bytes": self._bytes}
            self.summary = entry | {"sha256": self._hash.hexdigest()}
        self._file.close()
        self._atomic.__exit__(kind, error, traceback)


def write_dataset(
    folder, *, features: Mapping, fps: float | None, source: Mapping, splits: Mapping, statistics: Mapping
) -> None:
    """Writes `statistics.json`, then `dataset.json`: the step that makes a folder of shards readable.

    Args:
      folder: where the shards lie.
      features: {"image": {"shape": [H, W, 3], "codec": "jpeg"}, "action": {"shape": [A], "dtype": "float32"}, ...}.
      fps: frames per second when all episodes share it, else None (each step's `.json` then tells its own).
      source: where the data came from, as JSON.
      splits: {"train": {"episodes": n, "steps": n, "shards": [ShardWriter.summary, ...]}, ...}.
      statistics: {"action": summary, ...}, see `lapa_jax.data.statistics`.
    """
    folder = pathlib.Path(folder)
    # The fingerprint leaves out "source" and statistics: the same steps converted elsewhere are the same data.
    shards = [[s["name"], s["sha256"]] for name in sorted(splits) for s in splits[name]["shards"]]
    fingerprint = hashlib.sha256(json_bytes([FORMAT, VERSION, dict(features), shards])).hexdigest()
    values = {"format": FORMAT, "version": VERSION, "features": dict(features), "fps": fps, "source": dict(source)}
    write_json(folder / STATISTICS, dict(statistics))
    write_json(folder / DATASET, values | {"splits": dict(splits), "fingerprint": fingerprint})


def dataset_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder that a data path names: an embedded sample for its word, such as "sample", else the path itself."""
    return pathlib.Path(sample.path(str(path)) if str(path) in sample.FOLDERS else path)


def read_dataset(folder: str | os.PathLike) -> dict:
    """`dataset.json` of a folder of step shards; a `UserError` with the remedy for any other folder."""
    folder = dataset_folder(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a folder of step shards; make one with tools/convert.py {folder} OUT")
    if not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist")
    if not (folder / DATASET).exists():
        if (folder / WORK).exists():
            raise UserError(f"{folder} is an unfinished conversion; run the same tools/convert.py command to finish it")
        raise UserError(f"{folder} holds no step shards ({DATASET} is missing); make them with tools/convert.py")
    dataset = read_json(folder / DATASET)
    if not isinstance(dataset, dict) or dataset.get("format") != FORMAT:
        raise UserError(f"{folder / DATASET} is not of format {FORMAT}; convert the data with tools/convert.py")
    if dataset.get("version") != VERSION:
        raise UserError(f"{folder} has format version {dataset.get('version')}, this is {VERSION}; convert it again")
    return dataset


class StepShards:
    """Random access to the steps of one split. Thread-safe; pickles without its open files.

    Attributes:
      folder: the path. split: its name. features: as in `dataset.json`. fps: frames per second, or None when episodes
      differ or have no clock (see `episode_fps`). fingerprint: SHA-256 over the contents of the whole folder.
      statistics: `statistics.json`. episodes: list of `Episode`, whose `start` counts over the split.
    """

    def __init__(self, folder: str | os.PathLike, split: str = "train"):
        self.folder, self.split = dataset_folder(folder), split
        dataset = read_dataset(folder)
        if split not in dataset["splits"] or not dataset["splits"][split]["steps"]:
            splits = {name: s["steps"] for name, s in dataset["splits"].items()}
            raise UserError(f"{folder} has no steps in split '{split}'; steps by split: {splits}")
        self.features: dict = dataset["features"]
        self.fps: float | None = dataset["fps"]
        self.fingerprint: str = dataset["fingerprint"]
        self.statistics: dict = read_json(self.folder / STATISTICS)
        self._files = Files()
        self._open(dataset["splits"][split])

    def _open(self, split: Mapping) -> None:
        indexes, self.episodes, start = [], [], 0
        for shard in split["shards"]:
            path = self.folder / shard["name"]
            # Cheaper than the SHA-256, and enough for a copy that was cut short; a member's checksum is compared when
            # it is read.
            if path.exists() and path.stat().st_size != shard["bytes"]:
                wrong = f"has {path.stat().st_size} bytes, {DATASET} says {shard['bytes']}"
                raise UserError(placeholder(path) or f"{path} {wrong}: it is damaged; copy or convert the folder again")
            index = open_index(path)
            self.episodes += _episodes(path, index.keys, start)
            indexes.append(index)
            start += len(index)
        if start != split["steps"] or len({e.id for e in self.episodes}) != len(self.episodes):
            raise UserError(f"{self.folder}: the shards do not hold what {DATASET} says; convert the data again")
        self._paths = [self.folder / shard["name"] for shard in split["shards"]]
        lengths = [len(index) for index in indexes]
        # Arrays over all steps in place of an object each, which would take many times the memory.
        self._shard_of = np.repeat(np.arange(len(indexes), dtype=np.int32), lengths)
        self._fields = tuple(sorted({field for index in indexes for field in index.fields}))
        self._locations = np.full((start, len(self._fields), 3), -1, np.int64)
        self._columns = {field: number for number, field in enumerate(self._fields)}
        for first, index in zip(np.cumsum([0, *lengths]), indexes):
            columns = [self._columns[field] for field in index.fields]
            self._locations[first : first + len(index), columns, 0] = index.offsets
            self._locations[first : first + len(index), columns, 1] = index.sizes
            self._locations[first : first + len(index), columns, 2] = index.checksums
        self._starts = np.array([e.start for e in self.episodes], np.int64)

    def __len__(self) -> int:
        """Steps of the split."""
        return len(self._locations)

    def __repr__(self) -> str:
        return f"StepShards({self.split}, {len(self)} steps, {self.fingerprint[:16]})"

    def episode_of(self, i: int) -> int:
        """The number (into `episodes`) of the episode that step i belongs to."""
        return int(np.searchsorted(self._starts, i, side="right")) - 1

    def key(self, i: int) -> str:
        """The sample key of step i."""
        episode = self.episodes[self.episode_of(i)]
        return step_key(episode.id, i - episode.start)

    def has(self, i: int, field: str) -> bool:
        """Whether step i has the member `field`, e.g. "action.npy"."""
        return field in self._columns and self._locations[i, self._columns[field], 0] >= 0

    def read(self, i: int, fields: Sequence[str] | None = None) -> dict[str, bytes]:
        """The raw members of step i as {"image.jpg": bytes, ...}; `fields` restricts them, and must then be there."""
        if not 0 <= i < len(self):
            raise IndexError(f"step {i} of {len(self)}")
        if fields is None:
            fields = [field for field in self._fields if self.has(i, field)]
        return {field: self._read(i, field) for field in fields}

    def _read(self, i: int, field: str) -> bytes:
        column = self._columns.get(field)
        location = _NO_LOCATION if column is None else self._locations[i, column].tolist()
        return self._member(i, field, location, self._path(i))

    def _member(self, i: int, field: str, location: Sequence[int], path: pathlib.Path) -> bytes:
        offset, size, checksum = location
        if offset < 0:
            raise UserError(f"{self.folder}: step {self.key(i)} has no .{field}; its dataset has {self._fields}")
        data = self._files.read(path, offset, size)
        if checksum >= 0 and tar.checksum(data) != checksum:
            raise self._bad(i, field, "its checksum is wrong")
        return data

    def _path(self, i: int) -> pathlib.Path:
        return self._paths[self._shard_of[i]]

    def image(self, i: int, name: str = "image") -> np.ndarray:
        """The image of step i, uint8[H, W, 3]."""
        try:
            return images.decode(self._read(i, f"{name}.jpg"))
        except ValueError as error:
            raise self._bad(i, f"{name}.jpg", error) from None

    def images_into(self, steps: Sequence[int], outs: Sequence[np.ndarray], name: str = "image") -> None:
        """Decodes the image of each step into one of `outs` uint8[H, W, 3], which must have its size."""
        field = f"{name}.jpg"
        # all locations at once: one by one, the lookup would cost a tenth of decoding a small image
        stored = field in self._columns
        locations = self._locations[steps, self._columns[field]].tolist() if stored else [_NO_LOCATION] * len(steps)
        for i, location, shard, out in zip(steps, locations, self._shard_of[steps].tolist(), outs):
            try:
                images.decode_into(self._member(i, field, location, self._paths[shard]), out)
            except ValueError as error:
                raise self._bad(i, field, error) from None

    def array(self, i: int, name: str) -> np.ndarray:
        """A numeric member of step i, e.g. "action" f32[A]."""
        try:
            return np.load(io.BytesIO(self._read(i, f"{name}.npy")), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise self._bad(i, f"{name}.npy", error) from None

    def text(self, i: int) -> str:
        """The instruction of step i; "" where it has none."""
        return self._read(i, "txt").decode() if self.has(i, "txt") else ""

    def meta(self, i: int) -> dict:
        """{"episode", "step", "length", "fps", "source"} of step i."""
        try:
            return json.loads(self._read(i, "json"))
        except ValueError as error:
            raise self._bad(i, "json", error) from None

    def _bad(self, i: int, field: str, error: Exception | str) -> DamagedSample:
        return DamagedSample(f"{self._path(i)}: {self.key(i)}.{field} is damaged ({error}); convert the data again")

    def column(self, name: str) -> Iterator[np.ndarray]:
        """A numeric column in step order, as chunks f[n, A]; steps without it are left out."""
        return column(self._paths, name)

    def episode_fps(self) -> np.ndarray:
        """f64[episodes], frames per second of each episode; NaN where it has no clock."""
        if self.fps is not None:
            return np.full(len(self.episodes), self.fps)
        rates = [self.meta(e.start).get("fps") for e in self.episodes]
        return np.array([np.nan if rate is None else rate for rate in rates], np.float64)

    def instructions(self) -> list[str]:
        """The distinct instructions of the split, sorted."""
        return sorted({self.text(e.start) for e in self.episodes} - {""})


def column(paths: Sequence[pathlib.Path], name: str, numbers: int = 1 << 20) -> Iterator[np.ndarray]:
    """The values of `.<name>.npy` in a list of shards, in step order, as chunks f[n, A] of about `numbers` numbers.

    Steps without a value are left out: the last step of an episode has no action.
    """
    files, chunk = Files(), []
    for path in paths:
        index = open_index(path)
        at = index.fields.index(f"{name}.npy") if f"{name}.npy" in index.fields else None
        locations = [] if at is None else np.stack([index.offsets, index.sizes, index.checksums], -1)[:, at].tolist()
        for offset, size, checksum in locations:
            if offset >= 0:
                data = files.read(path, offset, size)
                if checksum >= 0 and tar.checksum(data) != checksum:
                    raise DamagedSample(f"{path} at byte {offset}: the checksum of .{name}.npy is wrong; convert again")
                chunk.append(np.load(io.BytesIO(data), allow_pickle=False))
            if chunk and len(chunk) * max(1, chunk[0].size) >= numbers:
                yield np.stack(chunk)
                chunk = []
    if chunk:
        yield np.stack(chunk)


def _episodes(path: pathlib.Path, keys: np.ndarray, start: int) -> list[Episode]:
    """The episodes of a shard from its keys, which must count 0, 1, 2, ... within each episode."""
    episodes: list[Episode] = []
    for i, key in enumerate(keys):
        text = key.decode()
        name, _, number = text.rpartition("_")
        last = episodes[-1] if episodes else None
        if name and number == "000000":
            episodes.append(Episode(name, start + i, 1))
        elif last and last.id == name and number == f"{last.length:06d}":
            episodes[-1] = last._replace(length=last.length + 1)
        else:
            raise UserError(f"{path}: sample '{text}' is out of order; steps count {{episode}}_000000, _000001, ...")
    return episodes
