"""The tables of a LeRobot dataset: what is recorded, the episodes and where they lie, and the tasks."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import parse_json
from lapa_jax.data import modalities
from lapa_jax.data.formats.reading import check_downloaded, reading

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that say where a row belongs, and are no data."""

_ACTIONS = ("action", "actions")
HELD_OUT = ("val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Info:
    """`meta/info.json`, checked.

    Attributes:
      version: of the format, one of `VERSIONS`.
      fps: steps per second.
      features: {key: {"dtype", "shape", "names", ...}} in the order of the file.
      data_path, video_path: templates of file names; the second is "" where there are no videos.
      chunk_size: episodes in a folder (v2).
      splits: {"train": "0:100", ...}, ranges of episode numbers.
      episodes: how many there are said to be, None where it does not say.
    """

    version: str
    fps: float
    features: Mapping[str, Mapping]
    data_path: str
    video_path: str
    chunk_size: int
    splits: Mapping[str, str]
    episodes: int | None

    def cameras(self) -> dict[str, str]:
        """{name: feature key} of what can be seen; depth maps are no pictures. Names are keys without their prefix."""
        keys = [k for k, f in self.features.items() if f["dtype"] in ("video", "image") and not _is_depth(f)]
        short = [key.removeprefix("observation.").removeprefix("images.") for key in keys]
        return dict(zip(short if len(set(short)) == len(short) else keys, keys))

    def vectors(self) -> list[str]:
        """The keys of the features that are a vector of numbers a step: shape [A], [1, A], or [] for a number."""
        numbers = ("float", "int", "uint", "bool")
        keys = [k for k, f in self.features.items() if f["dtype"].startswith(numbers) and set(f["shape"][:-1]) <= {1}]
        return [key for key in keys if key not in BOOKKEEPING]

    def actions(self) -> list[str]:
        """The key of the action: `action`, or the only vector `action.*` where there is none."""
        vectors = self.vectors()
        whole = [key for key in _ACTIONS if key in vectors][:1]
        parts = [key for key in vectors if key.startswith(tuple(f"{name}." for name in _ACTIONS))]
        return whole or (parts if len(parts) == 1 else [])

    def unread(self) -> dict[str, str]:
        """What looks like images and actions and is not read as such; see `base.Episode.unread`."""
        unread = {}
        images = [key for key, f in self.features.items() if f["dtype"] not in ("video", "image") and _is_image(key, f)]
        if images:
            what = ", ".join(f"'{key}' {self.features[key]['dtype']}{self.features[key]['shape']}" for key in images)
            unread["images"] = f"{what}; cameras are features of dtype video or image"
        parts = {key: f for key, f in self.features.items() if _is_action(key) and key not in self.actions()}
        if parts and not self.actions():
            what = ", ".join(f"'{key}' {f['dtype']}{f['shape']}" for key, f in parts.items())
            takes = [key for key in parts if key in self.vectors()]
            unread["actions"] = f"{what}; " + (
                f"--action {','.join(takes)} joins them, or name those that a policy is to give" if takes else
                "an action is a vector a step"
            )  # fmt: skip
        return unread


class Entry(NamedTuple):
    """One episode as the tables list it; `videos` is {feature key: [file, from, to]} with times in seconds."""

    episode: int
    length: int
    texts: list[str]
    data: str
    videos: dict[str, list]


def _is_action(key: str) -> bool:
    """Whether a feature's key says that it holds actions, such as "action.arm" or "robot_action"."""
    parts = modalities.words(key)
    return ("action" in parts or "actions" in parts) and parts[-1] not in ("pad", "mask", "valid")


def _is_image(key: str, feature: Mapping) -> bool:
    shape = feature["shape"]
    return len(shape) == 3 and 3 in (shape[0], shape[2]) and sorted(shape)[1] >= 8 and not _is_depth(feature)


def _is_depth(feature: Mapping) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return isinstance(info, dict) and bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def read_info(root: pathlib.Path) -> Info:
    """Reads and checks `meta/info.json`.

    Raises:
      UserError: another version of the format.
      ValueError: the file is damaged.
    """
    with reading(INFO):
        info = parse_json((root / INFO).read_text("utf-8-sig"))
        version = str(info["codebase_version"])
        version = version if version.startswith("v") else f"v{version}"
        if version not in VERSIONS:
            raise UserError(
                f"{root} is LeRobot {version}; {', '.join(VERSIONS)} are read: convert it with the scripts that come "
                "with the lerobot package (convert_dataset_v1_to_v2, then convert_dataset_v21_to_v30), or take the "
                "revision of the dataset that is one of these"
            )
        fps = float(info["fps"])
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps is {fps}")
        return Info(
            version=version,
            fps=fps,
            features={key: _feature(key, feature) for key, feature in info["features"].items()},
            data_path=str(info["data_path"]),
            video_path=str(info.get("video_path") or ""),
            chunk_size=max(1, int(info.get("chunks_size", 1000))),
            splits={str(name): str(span) for name, span in (info.get("splits") or {}).items()},
            episodes=int(info["total_episodes"]) if "total_episodes" in info else None,
        )


def _feature(key: str, feature: dict) -> dict:
    if not isinstance(feature.get("dtype"), str) or not isinstance(feature.get("shape"), list):
        raise ValueError(f"feature '{key}' has no dtype and shape")
    return feature


def read_tasks(root: pathlib.Path) -> dict[int, str]:
    """{task_index: instruction}, "" where the table has none; {} where there is no table of tasks."""
    if (root / "meta/tasks.parquet").is_file():
        import pyarrow.parquet as pq

        with reading("meta/tasks.parquet"):
            check_downloaded(root, "meta/tasks.parquet")
            table = pq.ParquetFile(root / "meta/tasks.parquet", page_checksum_verification=True).read()
            # pandas stores its index as a column, nameless in the first writers, "task" in later ones
            names = [name for name in table.column_names if name != "task_index"]
            column = next((name for name in ("task", "__index_level_0__") if name in names), None) or names[0]
            return {int(i): text or "" for i, text in zip(table["task_index"].to_pylist(), table[column].to_pylist())}
    if not (root / "meta/tasks.jsonl").is_file():
        return {}
    rows = _json_lines(root, "meta/tasks.jsonl")
    with reading("meta/tasks.jsonl"):
        return {int(row["task_index"]): str(row["task"] or "") for row in rows}


def read_episodes(root: pathlib.Path, info: Info, videos: list[str]) -> list[Entry]:
    """All episodes that the tables list, by number.

    Args:
      videos: keys of the video features that are wanted.

    Raises:
      ValueError: a table is damaged, lists an episode twice, or names a file outside the dataset.
    """
    rows = _episodes_v3(root, info, videos) if info.version == "v3.0" else _episodes_v2(root, info, videos)
    entries = sorted(rows, key=lambda entry: entry.episode)
    for one, other in zip(entries, entries[1:]):
        if one.episode == other.episode:
            raise ValueError(f"the tables list episode {one.episode} twice")
    return entries


def _episodes_v2(root: pathlib.Path, info: Info, videos: list[str]) -> Iterator[Entry]:
    for number, row in enumerate(_json_lines(root, "meta/episodes.jsonl"), 1):
        with reading(f"meta/episodes.jsonl line {number}"):
            episode = int(row["episode_index"])
            place = {"episode_chunk": episode // info.chunk_size, "episode_index": episode}
            files = {key: [_path(info.video_path, **place, video_key=key), 0.0, None] for key in videos}
            texts = _listed(row.get("tasks"))
            yield Entry(episode, int(row["length"]), texts, _path(info.data_path, **place), files)


def _episodes_v3(root: pathlib.Path, info: Info, videos: list[str]) -> Iterator[Entry]:
    import pyarrow.parquet as pq

    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    columns += [f"videos/{key}/{part}" for key in videos for part in parts]
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError("meta/episodes holds no tables")
    for file in files:
        with reading(file.relative_to(root).as_posix()):
            table = pq.ParquetFile(file, page_checksum_verification=True)
            absent = set(columns) - set(table.schema_arrow.names)
            if absent:
                raise ValueError(f"it has no column {sorted(absent)[0]}")
            listed = ["tasks"] if "tasks" in table.schema_arrow.names else []
            for row in table.read(columns=columns + listed).to_pylist():
                yield _entry_v3(info, row, videos)


def _entry_v3(info: Info, row: Mapping, videos: list[str]) -> Entry:
    files = {}
    for key in videos:
        chunk, file, start, end = (
            row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        )
        path = _path(info.video_path, video_key=key, chunk_index=int(chunk), file_index=int(file))
        files[key] = [path, float(start), float(end)]
    data = _path(info.data_path, chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"]))
    return Entry(int(row["episode_index"]), int(row["length"]), _listed(row.get("tasks")), data, files)


def _listed(tasks: object) -> list[str]:
    """What the table of episodes lists as tasks of an episode: texts, one text, indices, or nothing."""
    tasks = tasks if isinstance(tasks, list | tuple) else [tasks]
    return [str(task) for task in tasks if task not in (None, "")]


def _json_lines(root: pathlib.Path, name: str) -> Iterator[dict]:
    with reading(name):
        check_downloaded(root, name)
        lines = (root / name).read_text("utf-8-sig").split("\n")  # not at U+2028, which JSON may hold
    for number, line in enumerate(lines, 1):
        if line.strip():
            with reading(f"{name} line {number}"):
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise ValueError("it is no JSON object")
            yield row


def _path(template: str, **values) -> str:
    """A file name from its template; one that leads out of the dataset is refused."""
    try:
        path = pathlib.PurePosixPath(template.format(**values))
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"the template of file names '{template}' cannot be filled ({error})") from None
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"file name '{path}' leads out of the dataset")
    return path.as_posix()


def splits_of(info: Info, episodes: list[int]) -> dict[int, str]:
    """{episode: "train" or "val"} of those that a split names; {} where none of them is held out.

    Raises:
      ValueError: a range that cannot be read, or an episode that is both trained on and held out.
    """
    spans = []
    for name, span in info.splits.items():
        try:
            start, end = map(int, span.split(":"))
        except ValueError:
            raise ValueError(f"{INFO}: split '{name}' is '{span}', not a range of episodes such as 0:100") from None
        spans.append((start, end, "val" if name in HELD_OUT else "train"))
    splits = {}
    for episode in episodes:
        named = {split for start, end, split in spans if start <= episode < end}
        if len(named) > 1:
            raise ValueError(f"{INFO}: episode {episode} is both held out and trained on: {dict(info.splits)}")
        if named:
            splits[episode] = named.pop()
    return splits if "val" in splits.values() else {}
