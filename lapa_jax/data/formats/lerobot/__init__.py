"""LeRobot datasets, v2.0, v2.1 and v3.0: rows in parquet files, pictures in videos or in the rows.

A v2 dataset has a parquet file and a video per camera for each episode; v3.0 has many episodes in each file, and its
episode table says at what times of a video an episode begins and ends.
"""

import math
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.base import Episode, Item, Listing, choose_cameras, choose_vectors, parse_key, take_part
from lapa_jax.data.formats.instructions import like_instruction
from lapa_jax.data.formats.lerobot import tables
from lapa_jax.data.formats.lerobot.video import VideoSlice
from lapa_jax.data.formats.reading import flat_names, join_names, numeric_rows, reading, whole_source

FEATURES = {
    "image": "the frame, RGB: of the first camera that info.json lists, or that --cameras names",
    "action": "f32[A] feature 'action', or those that --action names, in the recorder's units",
    "state": "f32[S] feature 'observation.state', or those that --state names, in the recorder's units",
    "instruction": "the text of the row's task",
}
_STATES = ("observation.state", "state")
_NO_TASK = -1
_PICTURES_AT_ONCE = 8
_BUFFER = 1 << 20


def detect(source: pathlib.Path) -> bool:
    """Whether a folder has `meta/info.json`."""
    return (source / tables.INFO).is_file()


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """All episodes of the tables whose files are there; the others are `missing`.

    Raises:
      UserError: another version of LeRobot, damaged tables, a camera or a state that is not there.
    """
    if not detect(source):
        raise UserError(f"{source} has no {tables.INFO}: give the folder of one LeRobot dataset")
    with whole_source(source):
        info = tables.read_info(source)
        cameras = _cameras(info, options)
        for column in ("action", "state"):
            _vectors(info, options, column)
        videos = [key for key in cameras if info.features[key]["dtype"] == "video"]
        entries = tables.read_episodes(source, info, videos)
        splits = tables.splits_of(info, [entry.episode for entry in entries])
    sizes = _files(source, exclude)
    items, used, missing = [], set(), []
    for entry in entries:
        paths = [entry.data, *(video[0] for video in entry.videos.values())]
        used.update(paths)
        absent = [path for path in paths if path not in sizes]
        if absent:
            why = f"episode {entry.episode} is listed, but there is no {' and no '.join(absent)}"
            missing.append((entry.data, why))
        else:
            items.append(_item(entry, sum(sizes[path] for path in paths), splits))
    if info.episodes is not None and len(entries) < info.episodes:
        missing.append(("meta", f"{tables.INFO} says {info.episodes} episodes, the tables list {len(entries)}"))
    notes = {"lerobot": info.version}
    outside = sum(entry.episode not in splits for entry in entries) if splits else 0
    if outside:
        notes["episodes in no split, taken for training"] = outside
    return Listing(items, missing, _left_out(set(sizes) - used, info), notes, info.unread())


def _item(entry: tables.Entry, size: int, splits: Mapping[int, str]) -> Item:
    at = {"episode": entry.episode, "length": entry.length, "videos": entry.videos, "texts": entry.texts}
    split = splits.get(entry.episode, "train") if splits else ""
    text = entry.texts[0] if len(entry.texts) == 1 else ""
    return Item(f"episode_{entry.episode:06d}", entry.data, at, size, split, text)


def _files(root: pathlib.Path, exclude: pathlib.Path | None) -> dict[str, int]:
    """{path: bytes} of what is there, beside `meta` and hidden files."""
    sizes = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        here = pathlib.Path(folder)
        top = here == root
        folders[:] = sorted(
            n for n in folders if n[0] != "." and not (top and n == "meta") and (here / n).resolve() != exclude
        )
        for name in names:
            path = here / name
            if not name.startswith(".") and path.is_file():
                sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    return sizes


def _left_out(names: set[str], info: tables.Info) -> dict[str, int]:
    """Files that no episode needs, by kind: those of cameras that are not wanted are a kind of their own."""
    counts: dict[str, int] = {}
    keys = [key for key, feature in info.features.items() if feature["dtype"] == "video"]
    for name in names:
        parts = pathlib.PurePosixPath(name).parts
        key = next((key for key in keys if key in parts), None)
        what = f"videos of {key}" if key else f"files {pathlib.PurePosixPath(name).suffix.lower() or 'without ending'}"
        counts[what] = counts.get(what, 0) + 1
    return dict(sorted(counts.items()))


def _cameras(info: tables.Info, options: Mapping) -> dict[str, str]:
    """{feature key: member} of the wanted cameras."""
    keys = info.cameras()
    return {keys[name]: member for name, member in choose_cameras(list(keys), options["cameras"]).items()}


def _vectors(info: tables.Info, options: Mapping, column: str) -> list[str]:
    """The keys of the vectors that make up the action or the state."""
    vectors = info.vectors()
    standard = info.actions() if column == "action" else [key for key in _STATES if key in vectors][:1]
    return choose_vectors(vectors, options[column], f"--{column}", standard)


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One episode: its rows at once, its pictures a frame at a time."""
    info = tables.read_info(source)
    path, episode, length = source / item.path, item.at["episode"], item.at["length"]
    cameras, actions, states = _cameras(info, options), *(_vectors(info, options, c) for c in ("action", "state"))
    with reading("rows"):
        vectors = list(dict.fromkeys(parse_key(name)[0] for name in (*actions, *states)))
        rows, text, extra = _read_rows(path, episode, vectors, info)
        _check_rows(rows, length, info.fps)
        columns, names = {}, {}
        for column, keys in (("action", actions), ("state", states)):
            if keys:
                columns[column], names[column] = _column(rows, keys, info)
    frames, remarks = {}, Counter()
    if item.at["videos"] and "timestamp" not in rows:
        raise ValueError("the table has no column 'timestamp', which its videos need")
    for key, member in cameras.items():
        if key in item.at["videos"]:
            file, start, end = item.at["videos"][key]
            frames[member] = VideoSlice(source / file, rows["timestamp"], info.fps, start, end, remarks)
        else:
            frames[member] = _Pictures(path, episode, key, length)
    used = {*cameras, *vectors, *tables.BOOKKEEPING}
    return Episode(
        cameras=frames,
        columns=columns,
        text=_text(source, rows, item.at["texts"]) or text,
        fps=info.fps,
        names={column: listed for column, listed in names.items() if listed},
        left_out=[key for key in (*info.features, *extra) if key not in used],
        remarks=remarks,
    )


def _open(path: pathlib.Path, episode: int):
    """The parquet file, and the row groups that may hold an episode."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, page_checksum_verification=True, buffer_size=_BUFFER)
    leaves = [file.schema.column(i).path for i in range(file.metadata.num_columns)]
    if "episode_index" not in leaves:
        raise ValueError("the table has no column 'episode_index'")
    column = leaves.index("episode_index")
    groups = []
    for number in range(file.num_row_groups):
        bounds = file.metadata.row_group(number).column(column).statistics
        if bounds is None or not bounds.has_min_max or bounds.min <= episode <= bounds.max:
            groups.append(number)
    return file, groups


def _read_rows(
    path: pathlib.Path, episode: int, vectors: list[str], info: tables.Info
) -> tuple[dict[str, np.ndarray], str | list[str], list[str]]:
    """An episode's rows.

    Returns:
      {key: [T, dimensions]}, bookkeeping as [T]; the instruction that the rows themselves hold as text, one or one a
      row, "" where they hold none; and the columns that info.json does not know.
    """
    import pyarrow.compute as pc

    file, groups = _open(path, episode)
    columns = file.schema_arrow.names
    listed = [key for key, feature in info.features.items() if feature["dtype"] != "video"]
    absent = [key for key in listed if key not in columns]
    if absent:
        raise ValueError(f"the table has no column '{absent[0]}', which {tables.INFO} lists")
    if not groups:
        raise ValueError(f"the table has no rows of episode {episode}")
    bookkeeping = [key for key in tables.BOOKKEEPING if key in columns]
    texts = [key for key in columns if _is_text(file.schema_arrow.field(key).type) and like_instruction(key)][:1]
    table = file.read_row_groups(groups, columns=[*vectors, *bookkeeping, *texts])
    table = table.filter(pc.equal(table["episode_index"], episode))
    if "task_index" in bookkeeping:  # a row without a task has no instruction
        table = table.set_column(
            table.column_names.index("task_index"), "task_index", pc.fill_null(table["task_index"], _NO_TASK)
        )
    rows = {key: _array(table[key], key) for key in vectors}
    rows |= {key: _array(table[key], key)[:, 0] for key in bookkeeping}
    of_rows = [text or "" for text in table[texts[0]].to_pylist()] if texts else []
    text = of_rows[0] if len(set(of_rows)) == 1 else of_rows or ""
    return rows, text, [key for key in columns if key not in info.features]


def _is_text(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _array(column, key: str) -> np.ndarray:
    """An arrow column of numbers, or of lists (of lists) of equal length, as [T, dimensions]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column, length = column.combine_chunks(), len(column)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if column.null_count:
        raise ValueError(f"'{key}' has no value in {column.null_count} of {length} rows")
    while any(kind(column.type) for kind in kinds):
        widths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(widths) > 1:
            raise ValueError(f"'{key}' has rows of different lengths, {min(widths)} to {max(widths)}")
        column = column.flatten()
    if column.null_count or not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        if column.null_count or not pa.types.is_boolean(column.type):
            raise ValueError(f"'{key}' holds {column.type}, not only numbers")
    return column.to_numpy(zero_copy_only=False).reshape(length, -1)


def _check_rows(rows: Mapping[str, np.ndarray], length: int, fps: float) -> None:
    """The rows are those of the episode, whole and in order, and their clock runs as info.json says."""
    count = len(next(iter(rows.values())))
    if count != length or not count:
        raise ValueError(f"the table has {count} rows of the episode, the episode table says {length}")
    if "frame_index" in rows and not np.array_equal(rows["frame_index"], np.arange(count)):
        row = int(np.argmax(rows["frame_index"] != np.arange(count)))
        raise ValueError(f"row {row} has frame_index {rows['frame_index'][row]}: rows are missing or out of order")
    if "timestamp" in rows and count > 1:
        times = rows["timestamp"].astype(np.float64)
        rate = (count - 1) / (times[-1] - times[0]) if times[-1] > times[0] else 0.0
        if not np.isfinite(times).all() or not (np.diff(times) > 0).all() or not 0.99 < rate / fps < 1.01:
            raise ValueError(f"its timestamps run at {rate:.4g} steps per second, {tables.INFO} says {fps:g}")


def _column(rows: Mapping[str, np.ndarray], keys: list[str], info: tables.Info) -> tuple[np.ndarray, list[str]]:
    """float32[T, dimensions] of the vectors, and the names of the dimensions."""
    vectors, parts = [], {}
    for name in keys:
        key, part = parse_key(name)
        vector = numeric_rows(rows[key], key)
        width = math.prod(info.features[key]["shape"])
        if vector.shape[1] != width:
            raise ValueError(f"'{key}' has {vector.shape[1]} dimensions, {tables.INFO} says {width}")
        vectors.append(take_part(vector, name))
        names = flat_names(info.features[key].get("names"))
        names = names[part] if len(names) == width else []
        parts[name.removeprefix("observation.")] = (vectors[-1].shape[1], names)
    return np.concatenate(vectors, axis=1), join_names(parts)


def _text(root: pathlib.Path, rows: Mapping[str, np.ndarray], listed: list[str]) -> str | list[str]:
    """The instruction, one for the episode, or one a row where it changes; "" where the tables know none.

    It is written twice, in the table of tasks, by the rows' indices, and in the table of episodes. The rows decide: the
    other may list more than the episode's task (GR00T's "valid"), or nothing. Texts that it does not list contradict
    it, and then neither can be trusted.
    """
    tasks = tables.read_tasks(root)
    if "task_index" not in rows or not tasks:
        return listed[0] if len(listed) == 1 else ""
    indices = [None if not index >= 0 else int(index) for index in rows["task_index"].tolist()]
    for row, index in enumerate(indices):
        if index is not None and index not in tasks:
            raise ValueError(f"row {row} has task {index}, the table of tasks does not list it")
    texts = ["" if index is None else tasks[index] for index in indices]
    by_number = {tasks[int(text)] for text in listed if text.isdecimal() and int(text) in tasks}
    if listed and not set(texts) - {""} <= set(listed) | by_number:
        raise ValueError(
            f"its rows are of {sorted(set(texts))} by the table of tasks, of {sorted(set(listed))} by the table of "
            "episodes: correct one of the tables"
        )
    return texts[0] if len(set(texts)) == 1 else texts


class _Pictures:
    """The pictures that lie in the rows of an episode, as bytes of PNG or JPEG files, a few in memory at a time."""

    def __init__(self, path: pathlib.Path, episode: int, key: str, length: int):
        self.path, self.episode, self.key, self.length = path, episode, key, length

    def __iter__(self) -> Iterator[bytes]:
        with reading(f"pictures '{self.key}'"):
            yield from self._read()

    def _read(self) -> Iterator[bytes]:
        file, groups = _open(self.path, self.episode)
        if self.key not in file.schema_arrow.names:
            raise ValueError(f"the table has no such column, which {tables.INFO} lists")
        columns, count = [self.key, "episode_index"], 0
        for batch in file.iter_batches(_PICTURES_AT_ONCE, row_groups=groups, columns=columns, use_threads=False):
            for picture, episode in zip(batch[self.key], batch["episode_index"].to_pylist()):
                if episode == self.episode:
                    yield self._bytes(picture.as_py(), count)
                    count += 1
        if count != self.length:
            raise ValueError(f"there are {count}, the episode has {self.length} rows")

    def _bytes(self, picture: object, row: int) -> bytes:
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if not isinstance(data, bytes):
            raise ValueError(f"row {row} holds no picture; pictures outside of the table are not read")
        return data
