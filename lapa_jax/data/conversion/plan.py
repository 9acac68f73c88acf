"""What a conversion will do, decided before it starts and pinned on disk: episodes, their ids, splits and captions."""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections import Counter

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.data import shards
from lapa_jax.data.captions import match, read_captions
from lapa_jax.data.datasets import video
from lapa_jax.data.images import RESIZE_MODES

PLAN = "plan.json"
COLUMNS = ("action", "state")
"""Numeric columns that shards carry; an npz may hold others, which the report names as left out."""

_ID_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the content of the shards, see `tools/convert.py`. `fps` None keeps native frame rates."""

    format: str = "video"
    fps: float | None = None
    size: int = 256
    resize: str = "squash"
    quality: int = 95
    captions: str | None = None
    split: str = "auto"
    val_fraction: float = 0.1
    samples_per_shard: int | None = None
    shard_bytes: int | None = None

    def __post_init__(self):
        checks = (
            (self.format == "video", f"--format {self.format} is not known; known: video"),
            (self.fps is None or 0 < self.fps < 1e4, f"--fps must be positive or 'native', got {self.fps}"),
            (1 <= self.size <= 16384, f"--size is in pixels, 1 to 16384, got {self.size}"),
            (self.resize in RESIZE_MODES, f"--resize {self.resize} is not one of {', '.join(RESIZE_MODES)}"),
            (1 <= self.quality <= 100, f"--quality is 1 to 100, got {self.quality}"),
            (self.split in ("auto", "train", "val"), f"--split {self.split} is not auto, train or val"),
            (0 <= self.val_fraction < 1, f"--val_fraction lies in [0, 1), got {self.val_fraction}"),
            (
                self.samples_per_shard is None or self.shard_bytes is None,
                "--samples_per_shard and --shard_bytes exclude each other: give one",
            ),
            ((self.samples_per_shard or 1) > 0, f"--samples_per_shard must be positive, got {self.samples_per_shard}"),
            ((self.shard_bytes or 1) > 0, f"--shard_bytes must be positive, got {self.shard_bytes}"),
        )
        for fine, message in checks:
            if not fine:
                raise UserError(message)

    def pinned(self) -> dict:
        """The options as JSON; of the captions file only its name, its content is in the plan."""
        values = dataclasses.asdict(self)
        return values | {"captions": self.captions and pathlib.Path(self.captions).name}


def make_plan(root: pathlib.Path, out: pathlib.Path, options: Options) -> dict:
    """Lists the source and decides everything that must not change between a killed run and its rerun.

    Returns:
      {"options", "episodes": [{"id", "path", "kind", "size", "split", "text", "arrays"}], "columns": {name: [A]},
      "other_files", "captions"} as JSON; episodes sorted by path.
    """
    sources, others = video.find(root, exclude=out.resolve())
    if not sources:
        raise UserError(f"{root} holds no videos ({', '.join(video.VIDEOS)}) and no folders of pictures")
    captions, table = _captions(options, [s.path for s in sources])
    ids = episode_ids([s.path for s in sources])
    splits = assign_splits(ids, options.split, options.val_fraction)
    episodes = []
    for source, episode, split in zip(sources, ids, splits):
        caption = captions.get(source.path)
        entry = {"id": episode, **source._asdict(), "split": split}
        entry |= {"text": caption.text if caption else "", "arrays": caption.arrays if caption else ""}
        episodes.append(entry)
    plan = {"options": options.pinned(), "episodes": episodes, "other_files": others, "captions": table}
    return plan | {"columns": _columns(options, episodes)}


def episode_ids(paths: list[str]) -> list[str]:
    """Ids of letters, digits and dashes from relative paths; a hash of the path keeps clashing or long ones apart."""
    plain = [re.sub(r"[^A-Za-z0-9]+", "-", str(pathlib.PurePosixPath(p).with_suffix(""))).strip("-") for p in paths]
    counts = Counter(plain)
    ids = []
    for path, name in zip(paths, plain):
        if counts[name] > 1 or not name or len(name) > _ID_LENGTH:
            name = f"{name[: _ID_LENGTH - 13]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}".lstrip("-")
        ids.append(name)
    return ids


def assign_splits(ids: list[str], split: str, val_fraction: float) -> list[str]:
    """A split for each episode: `split` itself, or by a hash of the id, so that it does not change as data are added.

    Neither split stays empty where there are two episodes and `val_fraction` > 0: the episode with the smallest hash
    is then held out, or the one with the largest trained on.
    """
    if split != "auto":
        return [split] * len(ids)
    draws = [int(hashlib.sha256(i.encode()).hexdigest()[:13], 16) / 16**13 for i in ids]
    splits = ["val" if draw < val_fraction else "train" for draw in draws]
    if len(ids) > 1 and val_fraction > 0 and len(set(splits)) == 1:
        lonely = draws.index(min(draws)) if splits[0] == "train" else draws.index(max(draws))
        splits[lonely] = "val" if splits[0] == "train" else "train"
    return splits


def _captions(options: Options, paths: list[str]) -> tuple[dict, dict]:
    if options.captions is None:
        return {}, {}
    rows = read_captions(options.captions)
    if options.fps is not None and any(row.arrays for row in rows):
        raise UserError(
            f"{options.captions} names arrays with one action a frame: --fps would drop frames and leave the actions "
            "between them; convert with --fps native and choose the frame gap when training"
        )
    found, unused = match(rows, paths, options.captions)
    return found, {"captions_without_video": unused, "videos_without_caption": len(paths) - len(found)}


def _columns(options: Options, episodes: list[dict]) -> dict:
    """{"action": [A], ...}: the row shapes of the first readable arrays file, which all others must match."""
    for episode in episodes:
        if episode["arrays"]:
            try:
                arrays = read_arrays(arrays_path(options.captions, episode["arrays"]))
            except ValueError:
                continue
            return {name: list(arrays[name].shape[1:]) for name in COLUMNS if name in arrays}
    return {}


def arrays_path(captions: str, name: str) -> pathlib.Path:
    """Where an arrays file lies: paths in a table are relative to the table."""
    return pathlib.Path(captions).parent / name


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; anything else, pickles included, is a ValueError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"arrays file {path.name} does not exist") from None
    except Exception as error:  # zip, zlib and numpy each have their own errors for damaged files
        raise ValueError(f"arrays file {path.name} cannot be read ({error})") from None


def digest(plan: dict) -> str:
    """SHA-256 of a plan: names the source listing and the options."""
    return hashlib.sha256(shards.json_bytes(plan)).hexdigest()


def pin(work: pathlib.Path, plan: dict, fixed: set[str]) -> None:
    """Writes the plan, or checks it against the one that an earlier run has pinned.

    Args:
      work: the state folder.
      plan: of this run.
      fixed: ids of episodes whose outcome is already in a part or a shard. The others may have changed since: a broken
        file may have been replaced or removed.
    """
    path = work / PLAN
    if path.exists():
        difference = compare(read_json(path), plan, fixed)
        if difference:
            raise UserError(f"{work.parent} was begun otherwise: {difference}; use the same command, or another output")
    write_json(path, plan)


def compare(old: dict, new: dict, fixed: set[str]) -> str:
    """The first difference between two plans that matters, in words; "" when there is none."""
    for name, value in new["options"].items():
        if old["options"].get(name) != value:
            return f"--{name} was {old['options'].get(name)}, now {value}"
    if old["columns"] != new["columns"]:
        return f"the arrays had columns {old['columns']}, now {new['columns']}"
    before = {e["id"]: e for e in old["episodes"]}
    now = {e["id"]: e for e in new["episodes"]}
    for episode in fixed:
        if before.get(episode) != now.get(episode):
            name = (before.get(episode) or now[episode])["path"]
            return f"{name} has changed, appeared or gone since it was converted"
    added = sorted(set(now) - set(before))
    return f"{now[added[0]]['path']} is new in the source" if added else ""


def check_folders(root: pathlib.Path, out: pathlib.Path) -> None:
    """Refuses an input that is not there and an output that holds something else."""
    if not root.is_dir():
        raise UserError(f"input folder {root} does not exist")
    if root.resolve() == out.resolve():
        raise UserError(f"input and output are the same folder, {root}; choose another output")
    if out.exists() and not out.is_dir():
        raise UserError(f"output {out} is a file; give a folder")
    if out.is_dir() and not (out / shards.WORK).exists() and not (out / shards.DATASET).exists():
        held = sorted(n for n in os.listdir(out) if not n.endswith(".tmp"))
        if held:
            raise UserError(f"output {out} is not empty (it holds {held[0]}); choose an empty or new folder")
