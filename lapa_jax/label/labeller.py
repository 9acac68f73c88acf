"""Labels step shards with the codes of a tokenizer: one output shard for each input shard, whole or absent.

What the codes of a step are, and what its `.json` remarks on them, is in `label.codes`. Every shard is a function of
its source shard and the tokenizer alone, so the same command finishes a run that was killed anywhere, hosts share the
work, and whoever writes the last shard concludes.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.lock import held
from lapa_jax.core.progress import bar
from lapa_jax.core.share import at_work, locks_of_shares, name_of
from lapa_jax.data.shards.labels import FORMATS, SETTINGS_FILE, TABLES, check_out
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    read_dataset,
    write_dataset,
)
from lapa_jax.data.statistics import column_statistics
from lapa_jax.label.codes import source_of

SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file to write: `steps` are the numbers of its steps within `split`."""

    split: str
    name: str
    steps: range


class Labeller:
    """Labels one data folder with one tokenizer. See the module's text for what it promises."""

    FORMATS = FORMATS

    def __init__(
        self, tokenizer, data, out, *, format: str = "sidecar", splits: Sequence[str] | None = None,
        dataset: str | None = None, continuous: bool = False,
    ):  # fmt: skip
        """Opens the data and checks that `out` is empty or holds this same labelling.

        Args:
          tokenizer: as `lapa_jax.load` gives it.
          data: the folder of step shards to label.
          out: the folder to write.
          format: "sidecar" writes codes under the same keys; "full" copies every member of the step and adds the codes.
          splits: which splits; all that have steps if None.
          dataset: of a tokenizer of several datasets: the one whose scaling applies; the one that `data` are if None.
          continuous: of frame pairs, whether the deltas are written besides the codes; see `source_of`.

        Raises:
          UserError: bad arguments, unusable data, or another labelling in `out`.
        """
        self.tokenizer, self.data, self.out, self.format = tokenizer, pathlib.Path(data), pathlib.Path(out), format
        if format not in self.FORMATS:
            raise UserError(f"label format '{format}' is unknown{did_you_mean(format, (*FORMATS, *TABLES))}")
        check_out(data, out)
        described = read_dataset(data)
        self.splits = {name: StepShards(data, name) for name in self._choose(described, splits)}
        self.source = source_of(tokenizer, self.splits, described["fingerprint"], dataset, continuous)
        self.shards = self._files(described)
        self.settings = self._settings(described["fingerprint"])
        self._check_out()

    def run(self, *, batch_size: int = 64, host: tuple[int, int] = (0, 1), progress: bool = True) -> dict | None:
        """Writes what is missing of this host's share.

        Args:
          batch_size: pairs of images per batch, all devices together.
          host: this host's index and the number of hosts.
          progress: whether to show a progress bar.

        Returns:
          The summary when every shard of every host is there, else None (another host is still at work).
        """
        if (self.out / SUMMARY_FILE).is_file() and self._all_there():
            return read_json(self.out / SUMMARY_FILE)
        self.out.mkdir(parents=True, exist_ok=True)
        # Hosts label beside each other; the same shard twice would be two writers of one file.
        with at_work(self.out, host, f"labelling to {self.out}"):
            return self._write(batch_size, host, progress)

    def _write(self, batch_size: int, host: tuple[int, int], progress: bool) -> dict | None:
        # Before the first shard, so that another labelling is never mixed into a half-finished folder.
        write_json(self.out / SETTINGS_FILE, self.settings)
        # Hosts share the work without talking to each other: by the shards' numbers.
        mine = [shard for i, shard in enumerate(self.shards) if i % host[1] == host[0]]
        self._clear_leftovers(mine, host)
        done = sum(len(shard.steps) for shard in mine if self._path(shard).is_file())
        total = sum(len(shard.steps) for shard in mine)
        with bar(total=total, initial=done, desc="label", unit="step") if progress else _Silent() as shown:
            for shard in mine:
                if not self._path(shard).is_file():
                    self._label(shard, batch_size, shown.update)
        return self._conclude() if self._all_there() else None

    def _choose(self, dataset: dict, splits: Sequence[str] | None) -> list[str]:
        labelled_splits = [name for name, split in sorted(dataset["splits"].items()) if split["steps"]]
        for name in splits or ():
            if name not in labelled_splits:
                raise UserError(f"{self.data} has no steps in split '{name}'{did_you_mean(name, labelled_splits)}")
        return sorted(set(splits)) if splits else labelled_splits

    def _files(self, described: dict) -> list[Shard]:
        return [shard for name in self.splits for shard in _shards(name, described["splits"][name]["shards"])]

    def _settings(self, fingerprint: str) -> dict:
        size = self.tokenizer.codebook_size
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "source": fingerprint,
            **self.source.about,
            "codebook_size": size if size is None or isinstance(size, int) else list(size),
            "code_length": self.tokenizer.code_length,
            "format": self.format,
            "splits": sorted(self.splits),
        }

    def _check_out(self) -> None:
        """Refuses a folder with another labelling."""
        path = self.out / SETTINGS_FILE
        if path.is_file():
            existing = read_json(path)
            keys = [k for k in sorted({*existing, *self.settings}) if existing.get(k) != self.settings.get(k)]
            if keys:
                words = "; ".join(f"{k} {existing.get(k)!r}, asked {self.settings.get(k)!r}" for k in keys)
                raise UserError(f"{self.out} holds another labelling ({words}); remove it or name another --out")

    def _clear_leftovers(self, mine: Sequence[Shard], host: tuple[int, int]) -> None:
        """Removes temporary files that a killed run left, but none that another host may be writing now."""
        # Found before the others are looked for: who begins in between writes files that are not among these.
        found, my_names = list(self.out.glob(".*.tmp")), {f".{shard.name}" for shard in mine}
        of_all = [path for path in found if path.name.rsplit(".", 2)[0] not in my_names]
        other_locks = (path for path in locks_of_shares(self.out) if path.name != f".{name_of(host)}.lock")
        if of_all and held(other_locks):  # every host writes the settings, the indexes and what concludes
            found = [path for path in found if path not in of_all]
        for path in found:
            path.unlink(missing_ok=True)

    def _all_there(self) -> bool:
        return all(self._path(shard).is_file() for shard in self.shards)

    def _path(self, shard: Shard) -> pathlib.Path:
        return self.out / shard.name

    def _label(self, shard: Shard, batch_size: int, advance) -> None:
        """Labels one shard; the batches start afresh with each shard, whatever was done before."""
        split = self.splits[shard.split]
        with ShardWriter(self._path(shard)) as writer:
            for steps, columns, flags in self.source.codes(shard.split, shard.steps, batch_size):
                for row, (i, flag) in enumerate(zip(steps, flags.tolist(), strict=True)):
                    labels = {name: values[row] for name, values in columns.items()}
                    writer.add(split.key(i), self._members(split, i, labels, flag))
                advance(len(steps))

    def _members(self, split: StepShards, i: int, labels: dict[str, np.ndarray], flag: bool) -> dict[str, bytes]:
        latent = {f"{name}.npy": array_bytes(value) for name, value in labels.items()}
        remark = {self.source.flag: flag} if self.source.flag else {}
        if self.format == "full":
            return {**split.read(i), **latent, "json": json_bytes({**split.meta(i), **remark})}
        episode = split.episodes[split.episode_of(i)]
        return {**latent, "json": json_bytes({"episode": episode.id, "step": i - episode.start, **remark})}

    def _conclude(self) -> dict:
        """Writes `dataset.json` and the summary from the finished shards; every host would write the same bytes."""
        splits = {}
        for name, source in self.splits.items():
            shards = [_summary(self._path(s), len(s.steps)) for s in self.shards if s.split == name]
            splits[name] = {"episodes": len(source.episodes), "steps": len(source), "shards": shards}
        # Features, rate and statistics are of the folder and not of a split.
        any_split = next(iter(self.splits.values()))
        # The shards can be read once dataset.json is there, and what is read then decides on what is written again.
        described = {"fps": any_split.fps, "source": {"labels": self.settings}, "splits": splits}
        described["features"] = {**(any_split.features if self.format == "full" else {}), **self.source.features}
        statistics = any_split.statistics if self.format == "full" else {}
        write_dataset(self.out, **described, statistics=statistics)
        if "delta" in self.source.features:
            write_dataset(self.out, **described, statistics={**statistics, "delta": self._statistics()})
        summary = {"labels": self.settings, "splits": {name: self._usage(name) for name in self.splits}}
        write_json(self.out / SUMMARY_FILE, summary)
        return summary

    def _statistics(self) -> dict:
        """Those of the deltas of the split that is trained on, each a row of N * Q numbers, as of actions."""
        split = "train" if "train" in self.splits else next(iter(self.splits))
        return column_statistics(rows.reshape(len(rows), -1) for rows in StepShards(self.out, split).column("delta"))

    def _usage(self, split: str) -> dict:
        shards = StepShards(self.out, split)
        return self.source.summarize(split, {name: np.concatenate(list(shards.column(name)))
                                             for name in self.source.features})  # fmt: skip


class _Silent:
    """Stands in for a progress bar."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self, count: int) -> None:
        """Shows nothing."""


def _shards(split: str, entries: Sequence[dict]) -> list[Shard]:
    shards, start = [], 0
    for entry in entries:
        shards.append(Shard(split, entry["name"], range(start, start + entry["samples"])))
        start += entry["samples"]
    return shards


def _summary(path: pathlib.Path, samples: int) -> dict:
    """The entry of a finished shard in `dataset.json`."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "samples": samples, "bytes": path.stat().st_size, "sha256": digest}
