"""Packs parts into shards in the order of the plan, so that the shards do not depend on who finished first."""

import os
import pathlib
from collections import Counter
from collections.abc import Mapping

from lapa_jax.core.files import read_json, write_json
from lapa_jax.data.convert.duplicates import Duplicates, likenesses
from lapa_jax.data.convert.filter import DUPLICATE
from lapa_jax.data.convert.parts import read_part, remove_part
from lapa_jax.data.convert.totals import Totals
from lapa_jax.data.shards.step_shards import ShardWriter

SHARD_BYTES = 512 << 20


class Packer:
    """The shards of one split.

    A shard closes before the episode that would take it over its limit. For each a journal entry is written before the
    shard gets its name, so a rerun knows what a shard holds; an entry without its shard is packed again from its parts.

    Args:
      out: the output folder. work: the state folder in it. split: its name.
      episodes: the ids of the split in plan order.
      options: pinned options, for the limit.

    Attributes:
      journal: [{"shard": its summary, "episodes": ids, "errors": {id: reason}, "totals", "pieces": {id: [`Likeness`,
        ...]} that the shard holds, where a filter is on, "strips"}] of the shards so far.
    """

    def __init__(self, out: pathlib.Path, work: pathlib.Path, split: str, episodes: list[str], options: Mapping):
        self.out, self.work, self.split, self.episodes = out, work, split, episodes
        self.samples, self.bytes = options["samples_per_shard"], options["shard_bytes"]
        if self.samples is None and self.bytes is None:
            self.bytes = SHARD_BYTES
        self.journal: list[dict] = []
        self._group: list[tuple[str, dict, dict[str, str]]] = []
        self._held = Counter()
        self._errors: dict[str, str] = {}
        self._recover()
        self._next = sum(len(entry["episodes"]) + len(entry["errors"]) for entry in self.journal)

    def _recover(self) -> None:
        while True:
            name = self._name(len(self.journal))
            journal = self.work / f"{name}.json"
            if not journal.exists():
                return
            entry = read_json(journal)
            if entry["shard"]["samples"] and not (self.out / name).exists():
                journal.unlink()
                return
            self.journal.append(entry)
            for episode in self.journal[-1]["episodes"]:
                remove_part(self.work / "parts", episode)

    def _name(self, number: int) -> str:
        return f"{self.split}-{number:05d}.tar"

    @property
    def done(self) -> bool:
        """Whether every episode of the split is in a shard or has failed for good."""
        return self._next == len(self.episodes) and not self._group and not self._errors

    def settled(self) -> set[str]:
        """The ids whose outcome, steps or error, is in the journal."""
        return {e for entry in self.journal for e in entry["episodes"]} | set(self.errors())

    def errors(self) -> dict[str, str]:
        """{id: reason} of the failed episodes in the journal."""
        return {k: v for entry in self.journal for k, v in entry["errors"].items()}

    def advance(self, failed: Mapping[str, str], skip_failed: bool, duplicates: Duplicates) -> None:
        """Packs what is ready.

        Args:
          failed: {id: reason} of this run.
          duplicates: tells which pieces are left out.
          skip_failed: whether failed episodes may be left out; else packing waits at the first of them, so that a rerun
            with the file mended gives the same shards as if it had never been broken.
        """
        while self._next < len(self.episodes):
            episode = self.episodes[self._next]
            if episode in failed:
                if not skip_failed:
                    return
                self._errors[episode] = failed[episode]
            else:
                part = read_part(self.work / "parts", episode)
                twice = None if part is None else duplicates.of(episode, failed if skip_failed else {})
                if twice is None:
                    return
                size = {unit: sum(piece[unit] for piece in _kept(part, twice)) for unit in ("steps", "bytes")}
                if self._group and self._over(size):
                    self._write_shard()
                self._group.append((episode, part, twice))
                self._held.update(size)
            self._next += 1
        if self._group or self._errors:
            self._write_shard()

    def _over(self, size: Mapping[str, int]) -> bool:
        limit, unit = (self.samples, "steps") if self.samples is not None else (self.bytes, "bytes")
        return self._held[unit] + size[unit] > limit

    def _write_shard(self) -> None:
        name = self._name(len(self.journal))
        parts = self.work / "parts"
        totals, pieces, strips = Totals(), {}, {}
        with ShardWriter(self.work / name) as writer:
            for episode, part, twice in self._group:
                for piece in _kept(part, twice):
                    writer.append(parts / f"{episode}.part", piece["steps"], piece["start"], piece["bytes"])
                totals.add(Totals.of_part(part, twice))
                if part["strips"]:
                    pieces[episode] = [list(piece) for piece in likenesses(part) if piece.id not in twice]
                    strips[episode] = _told(part, twice)
        entry = {"shard": writer.summary, "errors": self._errors, "totals": totals.to_json(), "pieces": pieces}
        entry |= {"episodes": [episode for episode, _, _ in self._group], "strips": strips}
        write_json(self.work / f"{name}.json", entry)
        if writer.summary["samples"]:
            os.replace(self.work / name, self.out / name)
            flush_folder(self.out)
        else:
            (self.work / name).unlink()  # its episodes have failed, or the filter has left nothing of them
        for episode, _, _ in self._group:
            remove_part(parts, episode)
        self.journal.append(entry)
        self._group, self._errors, self._held = [], {}, Counter()


def _kept(part: Mapping, twice: Mapping[str, str]) -> list[dict]:
    """The pieces of a part that are no duplicates."""
    return [piece for piece in part["pieces"] if piece["id"] not in twice]


def _told(part: Mapping, twice: Mapping[str, str]) -> list[list]:
    """[kind, first, end, JPEG in base64, words] of what the filter did to an episode."""
    events = [[*event, ""] for event in part["strips"]["events"]]
    for piece, strip in zip(part["pieces"], part["strips"]["pieces"]):
        if piece["id"] in twice:
            first, end = piece["first"], piece["first"] + piece["steps"]
            events.append([DUPLICATE, first, end, strip, f"like {twice[piece['id']]}"])
    return events


def flush_folder(folder: pathlib.Path) -> None:
    """Makes renames in a folder durable before what they replace is deleted."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
