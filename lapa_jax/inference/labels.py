"""Labels step shards with latent action codes: one output shard for each input shard, whole or absent.

Step t of an episode is labelled with the codes of the pair (t, t + gap) at the gap the tokenizer was trained with. The
last `gap` steps have no such pair: they are labelled with the clipped pair (t, last frame), as the official code does,
and their `.json` says "clipped": true. Every shard is a function of its source shard and the tokenizer alone, so the
same command finishes a run that was killed anywhere, hosts share the work, and whoever writes the last shard concludes.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data import images, pipeline
from lapa_jax.data.labels import FORMATS
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    read_dataset,
    write_dataset,
)
from lapa_jax.inference import usage

SETTINGS_FILE = "labelling.json"
SUMMARY_FILE = "summary.json"
THREADS = 8


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One input shard: `steps` are the numbers of its steps within `split`."""

    split: str
    name: str
    steps: range


class Labeller:
    """Labels one data folder with one tokenizer. See the module's text for what it promises."""

    def __init__(self, tokenizer, data, out, *, format: str = "sidecar", splits: Sequence[str] | None = None):
        """Opens the data and checks that `out` is empty or holds this same labelling.

        Args:
          tokenizer: a `LatentActionTokenizer`.
          data: the folder of step shards to label.
          out: the folder to write.
          format: "sidecar" writes codes under the same keys; "full" copies every member of the step and adds the codes.
          splits: which splits; all that have steps if None.

        Raises:
          UserError: bad arguments, unusable data, or another labelling in `out`.
        """
        self.tokenizer, self.data, self.out, self.format = tokenizer, pathlib.Path(data), pathlib.Path(out), format
        if format not in FORMATS:
            raise UserError(f"label format '{format}' is unknown{did_you_mean(format, FORMATS)}")
        if self.out.resolve() == self.data.resolve():
            raise UserError(f"--out {out} is the data folder itself; name another folder")
        dataset = read_dataset(data)
        self.splits = {name: StepShards(data, name) for name in self._choose(dataset, splits)}
        asked = pipeline.gap_of(tokenizer.config.data, tokenizer.datasets, dataset["fingerprint"])
        gap = Gap.from_config(*asked)
        self._gaps = {name: _gap_per_episode(shards, gap) for name, shards in self.splits.items()}
        self.shards = [s for name in self.splits for s in _shards(name, dataset["splits"][name]["shards"])]
        self.settings = self._settings(dataset, asked)
        self._check_out()

    def run(self, *, batch_size: int = 64, host: tuple[int, int] = (0, 1), progress: bool = True) -> dict | None:
        """Writes what is missing of this host's share.

        Args:
          batch_size: pairs per batch, all devices together.
          host: this host's index and the number of hosts.
          progress: whether to show a progress bar.

        Returns:
          The summary when every shard of every host is there, else None (another host is still at work).
        """
        if (self.out / SUMMARY_FILE).is_file() and self._all_there():
            return read_json(self.out / SUMMARY_FILE)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / SETTINGS_FILE, self.settings)
        mine = [shard for i, shard in enumerate(self.shards) if i % host[1] == host[0]]
        self._clear_leftovers(mine, everything_else=host[0] == 0)
        done = sum(len(shard.steps) for shard in mine if self._path(shard).is_file())
        total = sum(len(shard.steps) for shard in mine)
        with bar(total=total, initial=done, desc="label", unit="step") if progress else _Silent() as shown:
            for shard in mine:
                if not self._path(shard).is_file():
                    self._label(shard, batch_size, shown.update)
        return self._conclude() if self._all_there() else None

    def _choose(self, dataset: dict, splits: Sequence[str] | None) -> list[str]:
        known = [name for name, split in sorted(dataset["splits"].items()) if split["steps"]]
        for name in splits or ():
            if name not in known:
                raise UserError(f"{self.data} has no steps in split '{name}'{did_you_mean(name, known)}")
        return sorted(set(splits)) if splits else known

    def _settings(self, dataset: dict, gap: tuple[float | None, int | None]) -> dict:
        frames = sorted({int(g) for gaps in self._gaps.values() for g in gaps})
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "source": dataset["fingerprint"],
            "gap": {"seconds": gap[0], "frames": gap[1]},
            "gap_frames": frames[0] if len(frames) == 1 else None,
            "codebook_size": self.tokenizer.codebook_size,
            "code_length": self.tokenizer.code_length,
            "format": self.format,
            "splits": sorted(self.splits),
        }

    def _check_out(self) -> None:
        """Refuses a folder with another labelling, or with anything that is no labelling."""
        path = self.out / SETTINGS_FILE
        if path.is_file():
            found = read_json(path)
            keys = [k for k in sorted({*found, *self.settings}) if found.get(k) != self.settings.get(k)]
            if keys:
                words = "; ".join(f"{k} {found.get(k)!r}, asked {self.settings.get(k)!r}" for k in keys)
                raise UserError(f"{self.out} holds another labelling ({words}); remove it or name another --out")
        elif self.out.is_dir() and any(not p.name.startswith(".") for p in self.out.iterdir()):
            raise UserError(f"{self.out} is not empty and holds no labelling; name a new folder as --out")

    def _clear_leftovers(self, mine: Sequence[_Shard], *, everything_else: bool) -> None:
        """Removes temporary files that a killed run left, but none that another host may be writing now."""
        own, known = ({f".{shard.name}." for shard in shards} for shards in (mine, self.shards))
        for path in self.out.glob(".*.tmp"):
            of_mine = any(path.name.startswith(prefix) for prefix in own)
            of_a_shard = any(path.name.startswith(prefix) for prefix in known)
            if of_mine or (everything_else and not of_a_shard):
                path.unlink(missing_ok=True)

    def _all_there(self) -> bool:
        return all(self._path(shard).is_file() for shard in self.shards)

    def _path(self, shard: _Shard) -> pathlib.Path:
        return self.out / shard.name

    def _label(self, shard: _Shard, batch_size: int, advance) -> None:
        """Labels one shard; the batches start afresh with each shard, whatever was done before."""
        source = self.splits[shard.split]
        with ShardWriter(self._path(shard)) as writer:
            for steps, seconds, codes in self._codes(shard, batch_size):
                for i, second, code in zip(steps, seconds, codes, strict=True):
                    clipped = bool(second - i < self._gaps[shard.split][source.episode_of(i)])
                    writer.add(source.key(i), self._members(source, i, code, clipped))
                advance(len(steps))

    def _members(self, source: StepShards, i: int, code: np.ndarray, clipped: bool) -> dict[str, bytes]:
        latent = {"latent.npy": array_bytes(code)}
        if self.format == "full":
            return {**source.read(i), **latent, "json": json_bytes({**source.meta(i), "clipped": clipped})}
        number = source.episode_of(i)
        episode = source.episodes[number]
        return {**latent, "json": json_bytes({"episode": episode.id, "step": i - episode.start, "clipped": clipped})}

    def _codes(self, shard: _Shard, batch_size: int) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
        """Yields (steps, second frames, codes) in order. Each frame is decoded once, a batch ahead of the model."""
        source = self.splits[shard.split]
        batches = [shard.steps[k : k + batch_size] for k in range(0, len(shard.steps), batch_size)]
        window: dict[int, Future] = {}
        with ThreadPoolExecutor(THREADS) as pool:

            def prepare(steps: range) -> tuple[range, np.ndarray, list[Future]]:
                nonlocal window
                second = _second(source, self._gaps[shard.split], np.array(steps))
                needed = sorted({*steps, *second.tolist()})
                window = {i: window.get(i) or pool.submit(_frame, source, i, self.tokenizer.side) for i in needed}
                return steps, second, [window[i] for pair in zip(steps, second.tolist()) for i in pair]

            ready = prepare(batches[0])
            for upcoming in [*batches[1:], None]:
                steps, second, frames = ready
                ready = prepare(upcoming) if upcoming is not None else None
                pairs = np.stack([frame.result() for frame in frames])
                yield steps, second, self.tokenizer.encode(pairs.reshape(len(steps), 2, *pairs.shape[1:]))

    def _conclude(self) -> dict:
        """Writes `dataset.json` and the summary from the finished shards; every host would write the same bytes."""
        splits = {}
        for name, source in self.splits.items():
            shards = [_summary(self._path(s), len(s.steps)) for s in self.shards if s.split == name]
            splits[name] = {"episodes": len(source.episodes), "steps": len(source), "shards": shards}
        any_split = next(iter(self.splits.values()))
        latent = {"latent": {"shape": [self.tokenizer.code_length], "dtype": "int32"}}
        full = self.format == "full"
        write_dataset(
            self.out,
            features={**any_split.features, **latent} if full else latent,
            fps=any_split.fps,
            source={"labels": self.settings},
            splits=splits,
            statistics=any_split.statistics if full else {},
        )
        summary = {"labels": self.settings, "splits": {name: self._usage(name) for name in self.splits}}
        write_json(self.out / SUMMARY_FILE, summary)
        return summary

    def _usage(self, split: str) -> dict:
        labels, source, gaps = StepShards(self.out, split), self.splits[split], self._gaps[split]
        codes = np.concatenate(list(labels.column("latent")))
        clipped = sum(min(episode.length, int(gap)) for episode, gap in zip(source.episodes, gaps))
        return {"clipped": clipped, **usage.summarize(codes, self.tokenizer.codebook_size)}


class _Silent:
    """Stands in for a progress bar."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self, count: int) -> None:
        """Shows nothing."""


def _shards(split: str, entries: Sequence[dict]) -> list[_Shard]:
    found, start = [], 0
    for entry in entries:
        found.append(_Shard(split, entry["name"], range(start, start + entry["samples"])))
        start += entry["samples"]
    return found


def _gap_per_episode(shards: StepShards, gap: Gap) -> np.ndarray:
    """int64[episodes]: the gap in frames at each episode's own rate."""
    rates = shards.episode_fps()
    return np.array([gap.in_frames(None if np.isnan(rate) else float(rate)) for rate in rates], np.int64)


def _second(shards: StepShards, gaps: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The steps of the second frames: the gap later, or the last of the episode."""
    number = np.array([shards.episode_of(int(i)) for i in steps])
    last = np.array([shards.episodes[e].start + shards.episodes[e].length - 1 for e in number])
    return np.minimum(steps + gaps[number], last)


def _frame(shards: StepShards, i: int, side: int | None) -> np.ndarray:
    """The picture of a step, already of the model's size so that little is kept in memory."""
    image = shards.image(i)
    return image if side is None else images.resize(image, side)


def _summary(path: pathlib.Path, samples: int) -> dict:
    """The entry of a finished shard in `dataset.json`."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "samples": samples, "bytes": path.stat().st_size, "sha256": digest}
