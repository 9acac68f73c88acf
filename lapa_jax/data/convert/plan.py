"""What a conversion will do, decided before it starts and pinned on disk: episodes, their ids, splits and columns."""

import hashlib
import os
import pathlib
import re
from collections import Counter

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.data import formats, image_files
from lapa_jax.data.convert.options import Options
from lapa_jax.data.formats.base import MAIN, Episode, Item, Listing
from lapa_jax.data.formats.reading import missing_downloads
from lapa_jax.data.shards import step_shards

PLAN = "plan.json"
_ID_LENGTH = 64


def make_plan(source: pathlib.Path, out: pathlib.Path, options: Options) -> dict:
    """Lists the source and decides everything that must not change between a killed run and its rerun.

    Returns:
      {"options", "format", "episodes": [{"id", "name", "path", "at", "size", "split", "text"}], "missing": [[path,
      why]], "left_out", "notes", "cameras": {member: [H, W]}, "not_colour": {member: why it is left out}, "columns":
      {name: [A]}, "names": {name: [...]}, "held_out_by": what decided the splits, in words} as JSON; episodes in the
      order of the source's listing.
    """
    try:
        name, listing = _list(source, out, options)
    except UserError as error:
        if why := missing_downloads(source):
            raise UserError(why if why in str(error) else f"{why} ({error})") from None
        raise
    if not listing.items:
        missing = f"; the first of {len(listing.missing)} missing: {listing.missing[0]}" if listing.missing else ""
        raise UserError(f"{source} holds no episodes of format {name}{missing}; see docs/reference/data_formats.md")
    plan = {"options": options.pinned() | {"format": name}, "format": name}
    entries, held_out_by = _entries(listing.items, options)
    plan |= {"episodes": entries, "held_out_by": held_out_by}
    plan |= {"missing": [list(entry) for entry in listing.missing], "left_out": listing.left_out}
    shapes = _shapes(name, source, listing, options)
    if options.filter and not shapes["cameras"]:
        raise UserError(f"--filter looks at images, and {source} has none: leave it out")
    return plan | {"notes": listing.notes} | shapes


def _list(source: pathlib.Path, out: pathlib.Path, options: Options) -> tuple[str, Listing]:
    """The name of the format, and its listing of the source."""
    name = formats.detect(source) if options.format == "auto" else options.format
    if options.action not in ("all", "none") and name in _ONE_ACTION:
        raise UserError(f"--action {options.action}: {name} data have one action, which is all or none")
    if options.fps is not None and name not in ("video", "webdataset"):
        raise UserError(f"--fps resamples videos; {name} data keep their own rate: leave it at native")
    return name, formats.open_format(name).find(source, options.for_readers(), out.resolve())


_ONE_ACTION = ("lapa", "webdataset", "video")
_OPTION_OF = {"images": "--cameras", "actions": "--action", "instructions": "--captions"}


def check_essentials(
    source: pathlib.Path, listing: Listing, item: Item, episode: Episode, options: Options
) -> None:
    """Refuses a source that clearly has images, actions or instructions where the shards would have none of them.

    A line at the end of a long conversion is easily missed, and what is lacking would show when training begins. "none"
    for the option says that it is meant so.
    """
    texts = [episode.text] if isinstance(episode.text, str) else episode.text
    has = {"images": bool(episode.cameras), "actions": "action" in episode.columns, "instructions": any(texts)}
    wanted = {"images": options.cameras, "actions": options.action, "instructions": options.captions}
    unread = {kind: f"there is {what}" for kind, what in listing.unread.items()}
    unread |= {kind: f"'{item.name}' has {what}" for kind, what in episode.unread.items()}
    for kind, option in _OPTION_OF.items():
        if kind in unread and not has[kind] and wanted[kind] != "none":
            raise UserError(
                f"{source} has {kind}, and the shards would hold none of them: {unread[kind]}; or convert without "
                f"them, {option} none"
            )


def _entries(items: list[Item], options: Options) -> tuple[list[dict], str]:
    """The entries of the plan, and what decided their splits, in words."""
    ids = episode_ids([item.name for item in items])
    given = [item.split for item in items]
    if options.split == "auto" and "val" in given:
        splits, held_out_by = [split or "train" for split in given], "the source's own splits"
    else:
        splits = assign_splits(ids, options.split, options.val_fraction)
        by_hash = f"a hash of the episode's name, --val_fraction {options.val_fraction:g}"
        held_out_by = by_hash if options.split == "auto" else f"--split {options.split}"
    return [{"id": i, **item._asdict(), "split": split} for i, item, split in zip(ids, items, splits)], held_out_by


def item_of(entry: dict) -> Item:
    """The item that an entry of the plan was made from, with the split it was given."""
    return Item(**{name: entry[name] for name in Item._fields})


def place_of(entry: dict) -> str:
    """An episode's place in the source, for people: the file, and which episode of it."""
    return entry["path"] if entry["name"] == entry["path"] else f"{entry['path']}#{entry['name']}"


def episode_ids(names: list[str]) -> list[str]:
    """Ids of letters, digits and dashes from names; a hash of the name keeps clashing or long ones apart."""
    plain = [re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"(?<=[^/])\.[^./]*$", "", n)).strip("-") for n in names]
    counts = Counter(plain)
    ids = []
    for full, name in zip(names, plain):
        if counts[name] > 1 or not name or len(name) > _ID_LENGTH:
            name = f"{name[: _ID_LENGTH - 13]}-{hashlib.sha256(full.encode()).hexdigest()[:12]}".lstrip("-")
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


def _shapes(name: str, source: pathlib.Path, listing: Listing, options: Options) -> dict:
    """Cameras, columns and their shapes, of the first readable episode; all others must match it."""
    for item in listing.items:
        try:
            episode = formats.read_episode(name, source, item, options.for_readers())
            first = {member: _first_frame(frames) for member, frames in episode.cameras.items()}
            not_colour = _not_colour(first) if options.cameras == "all" else {}
            cameras = {
                member: [options.size] * 2 if options.size else _image_shape(frame)
                for member, frame in first.items()
                if member not in not_colour
            }
        except ValueError:
            continue  # it is reported as unreadable when its turn comes
        check_essentials(source, listing, item, episode, options)
        columns = {key: list(np.shape(rows)[1:]) for key, rows in episode.columns.items()}
        names = {key: list(value) for key, value in episode.names.items()}
        return {"cameras": cameras, "not_colour": not_colour, "columns": columns, "names": names}
    return {"cameras": {MAIN: None}, "not_colour": {}, "columns": {}, "names": {}}


def _first_frame(frames) -> np.ndarray | bytes | None:
    """The first frame that is not blank; None where the camera shows nothing in this episode."""
    return next((frame for frame in frames if frame is not None), None)


def _image_shape(frame: np.ndarray | bytes | None) -> list[int] | None:
    """[H, W] of a frame; None where there is none."""
    return None if frame is None else list(image_files.open_frame(frame, white=image_files.WHITE).shape[:2])


def _not_colour(first: dict) -> dict[str, str]:
    """{camera: kind of its images} of those that hold depth or masks beside colour, by their first frames."""
    kinds = {member: image_files.kind_of(frame) for member, frame in first.items() if frame is not None}
    if image_files.COLOUR not in kinds.values():
        return {}
    others = {m: kind for m, kind in kinds.items() if kind in (image_files.INDEXED, image_files.DEEP)}
    if MAIN in others:
        raise UserError(f"the main camera holds {others[MAIN]} images, which are depth or masks, beside cameras of "
                        "colour images: name the cameras with --cameras, the main one first")  # fmt: skip
    return others


def digest(plan: dict) -> str:
    """SHA-256 of a plan: names the source listing and the options."""
    return hashlib.sha256(step_shards.json_bytes(plan)).hexdigest()


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
    for what in ("format", "columns", "cameras", "not_colour"):
        if old.get(what) != new[what] and (fixed or what == "format"):
            return f"{what} were {old[what]}, now {new[what]}"
    before = {e["id"]: e for e in old["episodes"]}
    now = {e["id"]: e for e in new["episodes"]}
    for episode in fixed:
        if before.get(episode) != now.get(episode):
            place = place_of(before.get(episode) or now[episode])
            return f"{place} has changed, appeared or gone since it was converted"
    added = sorted(set(now) - set(before))
    return f"{place_of(now[added[0]])} is new in the source" if added else ""


def check_folders(source: pathlib.Path, out: pathlib.Path) -> None:
    """Refuses an input that is not there and an output that holds something else."""
    if not source.exists():
        raise UserError(f"input {source} does not exist; give a file or folder of recordings")
    if source.resolve() == out.resolve():
        raise UserError(f"input and output are the same folder, {source}; choose another output")
    if out.exists() and not out.is_dir():
        raise UserError(f"output {out} is a file; give a folder")
    if out.is_dir() and not (out / step_shards.WORK).exists() and not (out / step_shards.DATASET).exists():
        held = sorted(n for n in os.listdir(out) if not n.endswith(".tmp"))
        if held:
            raise UserError(f"output {out} is not empty (it holds {held[0]}); choose an empty or new folder")
