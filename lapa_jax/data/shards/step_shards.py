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
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lapa_jax import sample
from lapa_jax.core import escape
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_path, parse_json, placeholder, read_json, write_json
from lapa_jax.data import images
from lapa_jax.data.shards import tar
from lapa_jax.data.shards.files import DamagedSample, Files
from lapa_jax.data.shards.table import open_table

FORMAT, VERSION = "lapa_jax.step_shards", 1
DATASET, STATISTICS = "dataset.json", "statistics.json"
WORK = ".convert"
"""Where an unfinished conversion keeps its state."""
_NO_LOCATION = (-1, -1, -1)
_TOGETHER = 64
"""Images that are read before they are decoded: some megabytes at most."""


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
        try:
            if kind is None:
                self._write(tar.END)
            self._file.close()
        except OSError as full:  # of the last bytes, which were still in memory: no room for the file
            if kind is None:
                self._atomic.__exit__(type(full), full, full.__traceback__)
                raise
        self._atomic.__exit__(kind, error, traceback)
        if kind is None:
            entry = {"name": self.path.name, "samples": self._samples, "bytes": self._bytes}
            self.summary = entry | {"sha256": self._hash.hexdigest()}


def dataset_fingerprint(features: Mapping, splits: Mapping) -> str:
    """SHA-256 over what a dataset holds: `features`, and the shards of `splits`."""
    shards = [[s["name"], s["sha256"]] for name in sorted(splits) for s in splits[name]["shards"]]
    return hashlib.sha256(json_bytes([FORMAT, VERSION, dict(features), shards])).hexdigest()


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
    fingerprint = dataset_fingerprint(features, splits)
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
        raise UserError(f"data folder {folder} does not exist; give one of step shards, as tools/convert.py writes")
    if not (folder / DATASET).exists():
        if (folder / WORK).exists():
            raise UserError(f"{folder} is an unfinished conversion; run the same tools/convert.py command to finish it")
        raise UserError(f"{folder} holds no step shards ({DATASET} is missing); make them with tools/convert.py")
    dataset = read_json(folder / DATASET)
    if not isinstance(dataset, dict) or dataset.get("format") != FORMAT:
        raise UserError(f"{folder / DATASET} is not of format {FORMAT}; convert the data with tools/convert.py")
    if dataset.get("version") != VERSION:
        raise UserError(f"{folder} has format version {dataset.get('version')}, this is {VERSION}; convert it again")
    _check_names(folder / DATASET, dataset)
    return dataset


def _check_names(path: pathlib.Path, dataset: Mapping) -> None:
    """A `UserError` where a name of a split, feature or shard is no plain one. All of them become names of files, read
    here and written by whoever labels or looks at the data: "../other.tar" would lie in somebody else's folder."""
    try:
        splits, features = dict(dataset["splits"]), dict(dataset["features"])
        shards = [shard["name"] for split in splits.values() for shard in split["shards"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} lacks splits, their shards or features; copy or convert the folder again") from None
    for what, names in (("split", splits), ("feature", features), ("shard", shards)):
        for name in names:
            if not isinstance(name, str) or not _PLAIN.fullmatch(name):
                shown = escape.one_line(repr(name)[:80])
                raise UserError(f"{path} names a {what} {shown}, which is no plain name of a file: it may lie outside "
                                "of its folder. Do not use these data, or ask whoever made them")  # fmt: skip


_PLAIN = re.compile(r"[^./\\\s\x00-\x1f][^/\\\x00-\x1f]*")
"""One part of a path, which is not hidden and is neither . nor .. ."""


class StepShards:
    """Random access to the steps of one split. Thread-safe. Pickles as its folder and split, and is opened again.

    Attributes:
      folder: the path. split: its name. features: as in `dataset.json`. fps: frames per second, or None when episodes
      differ or have no clock (see `episode_fps`). fingerprint: SHA-256 over the contents of the whole folder.
      statistics: `statistics.json`. episodes: `Episodes`, whose `start` counts over the split.
      table: where everything lies, see `lapa_jax.data.shards.table`.
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
        self._paths = [self.folder / shard["name"] for shard in dataset["splits"][split]["shards"]]
        for path, shard in zip(self._paths, dataset["splits"][split]["shards"]):
            # Cheaper than the SHA-256, and enough for a copy that was cut short; a member's checksum is compared when
            # it is read.
            if path.exists() and path.stat().st_size != shard["bytes"]:
                wrong = f"has {path.stat().st_size} bytes, {DATASET} says {shard['bytes']}"
                raise UserError(placeholder(path) or f"{path} {wrong}: it is damaged; copy or convert the folder again")
        self.table = open_table(self.folder, split, dataset)
        self.episodes = self.table.episodes
        self._first_steps = np.asarray(self.table.arrays["shard/start"])

    def __reduce__(self):
        return StepShards, (self.folder, self.split)

    def __len__(self) -> int:
        """Steps of the split."""
        return len(self.table)

    def __repr__(self) -> str:
        return f"StepShards({self.split}, {len(self)} steps, {self.fingerprint[:16]})"

    def episode_of(self, i: int) -> int:
        """The number (into `episodes`) of the episode that step i belongs to."""
        return int(np.searchsorted(self.episodes.starts, i, side="right")) - 1

    def key(self, i: int) -> str:
        """The sample key of step i."""
        episode = self.episodes[self.episode_of(i)]
        return step_key(episode.id, i - episode.start)

    def has(self, i: int, field: str) -> bool:
        """Whether step i has the member `field`, e.g. "action.npy"."""
        return bool(self.table.present(field)[i])

    def read(self, i: int, fields: Sequence[str] | None = None) -> dict[str, bytes]:
        """The raw members of step i as {"image.jpg": bytes, ...}; `fields` restricts them, and must then be there."""
        if not 0 <= i < len(self):
            raise IndexError(f"step {i} of {len(self)}")
        if fields is None:
            fields = [field for field in self.table.fields if self.has(i, field)]
        return {field: self._read(i, field) for field in fields}

    def _read(self, i: int, field: str) -> bytes:
        return self._member(i, field, self._locations([i], field)[0], self._path(i))

    def _locations(self, steps: Sequence[int], field: str) -> list[Sequence[int]]:
        """(offset, size, checksum) of a member of some steps."""
        if field not in self.table.fields:
            return [_NO_LOCATION] * len(steps)
        return self.table.take(f"member/{field}", steps).tolist()

    def _member(self, i: int, field: str, location: Sequence[int], path: pathlib.Path) -> bytes:
        offset, size, checksum = location
        if offset < 0:
            raise UserError(f"{self.folder}: step {self.key(i)} has no .{field}; its dataset has {self.table.fields}")
        data = self._files.read(path, offset, size)
        if checksum >= 0 and tar.checksum(data) != checksum:
            raise self._bad(i, field, "its checksum is wrong")
        return data

    def _path(self, i: int) -> pathlib.Path:
        return self._paths[int(np.searchsorted(self._first_steps, i, side="right")) - 1]

    def image(self, i: int, name: str = "image", smallest: int | None = None) -> np.ndarray:
        """The image of step i, uint8[H, W, 3]; a large one may come out smaller, see `smallest` of `images.decode`."""
        try:
            return images.decode(self._read(i, f"{name}.jpg"), smallest)
        except ValueError as error:
            raise self._bad(i, f"{name}.jpg", error) from None

    def images_into(self, steps: Sequence[int], outs: Sequence[np.ndarray], name: str = "image") -> None:
        """Decodes the image of each step into one of `outs` uint8[H, W, 3], which must have its size."""
        field = f"{name}.jpg"
        # All locations at once: one by one, the lookup would cost a tenth of decoding a small image. Then the bytes of
        # many images, then decoding: in turns, each would find the CPU's caches full of what the other one needs.
        for start in range(0, len(steps), _TOGETHER):
            part = steps[start : start + _TOGETHER]
            shards = (np.searchsorted(self._first_steps, part, side="right") - 1).tolist()
            jpegs = [self._member(i, field, location, self._paths[shard])
                     for i, location, shard in zip(part, self._locations(part, field), shards)]  # fmt: skip
            for i, jpeg, out in zip(part, jpegs, outs[start : start + _TOGETHER]):
                try:
                    images.decode_into(jpeg, out)
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
        if why := self.table.damaged.get("txt", {}).get(i):
            raise DamagedSample(why)
        number = int(self.table.arrays["text"][i])
        return self.table.texts[number] if number >= 0 else ""

    def meta(self, i: int) -> dict:
        """{"episode", "step", "length", "fps", "source"} of step i."""
        try:
            return parse_json(self._read(i, "json"))
        except ValueError as error:
            raise self._bad(i, "json", error) from None

    def _bad(self, i: int, field: str, error: Exception | str) -> DamagedSample:
        return DamagedSample(f"{self._path(i)}: {self.key(i)}.{field} is damaged ({error}); convert the data again")

    def column(self, name: str, numbers: int = 1 << 20) -> Iterator[np.ndarray]:
        """See `Table.column`."""
        return self.table.column(name, numbers)

    def episode_fps(self) -> np.ndarray:
        """f64[episodes], frames per second of each episode; NaN where it has no clock."""
        if self.fps is not None:
            return np.full(len(self.episodes), self.fps)
        return np.array(self.table.arrays["episode/fps"])

    def tasks(self) -> list[str]:
        """The task of each episode, as its `.json` tells it; "" where it does not."""
        numbers = self.table.arrays["episode/task"].tolist()
        return [self.table.texts[number] if number >= 0 else "" for number in numbers]

    def instructions(self) -> list[str]:
        """The distinct instructions of all steps of the split, sorted."""
        return self.table.instructions()
