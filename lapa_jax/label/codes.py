"""Where the codes of steps come from: pairs of images, chunks or sequences of actions, rows of features.

Each class reads one data folder for one tokenizer and gives the codes of a range of steps of a split, whatever was
asked before. `about` is what `labelling.json` tells of it, `features` what `dataset.json` says of the columns; `flag`
is a remark in the `.json` of each step.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import images, pipeline
from lapa_jax.data.formats.base import MAIN
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.samples.reading import Column, cameras_of
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.inference import kinds
from lapa_jax.nn.quantizers import usage

THREADS = 8
AT_ONCE = 4096
"""Steps of whole episodes that are encoded together."""

Columns = dict[str, np.ndarray]
"""Of labels: "latent", codes int32[n, N], or "delta", what they are rounded from, f32[n, N, Q], or both."""
Labelled = tuple[range, Columns, np.ndarray]
"""Steps, what they are labelled with, and the flag of each bool[n]."""


def source_of(
    tokenizer, splits: Mapping[str, StepShards], fingerprint: str, dataset: str | None, continuous: bool = False
):  # fmt: skip
    """The source of codes for a tokenizer.

    Args:
      tokenizer: as `lapa_jax.load` gives it. splits: the opened splits. fingerprint: of the data.
      dataset: of a tokenizer of several datasets: the one whose scaling applies; the one that the data are if None.
      continuous: whether steps get deltas too; of a tokenizer without codes they get deltas in any case.

    Raises:
      UserError: deltas of what is no tokenizer of frame pairs; a policy, which has no codes to label with; or a dataset
        that does not go with the tokenizer.
    """
    if tokenizer.kind.codes is None:
        raise UserError(f"this is a {tokenizer.kind.noun} ({tokenizer.config.model.name}), which gives no codes of the "
                        "data; label with a run of a tokenizer")  # fmt: skip
    source = kinds.resolve(tokenizer.kind.codes)
    if not issubclass(source, PairCodes):
        if continuous:
            raise UserError(f"--continuous writes deltas of frame pairs, and this is a {tokenizer.kind.noun}; leave it "
                            "out")  # fmt: skip
        return source(tokenizer, splits, fingerprint, dataset)
    return source(tokenizer, splits, fingerprint, dataset, continuous)


class PairCodes:
    """Codes of frame pairs: step t gets those of (t, t + gap), of the camera and at the gap that the tokenizer was
    trained with on these data, or on all data where these were no part of its mixture.

    The last `gap` steps of an episode have no such pair: they get those of (t, last frame), as in the official code.
    With `continuous`, or where the tokenizer has no codes, they get the deltas too.
    """

    flag = "clipped"

    def __init__(
        self, tokenizer, splits: Mapping[str, StepShards], fingerprint: str, dataset: str | None,
        continuous: bool = False,
    ):  # fmt: skip
        if dataset is not None:
            raise UserError(f"--dataset {dataset} says how numbers are scaled; this tokenizer takes images: leave it "
                            "out")  # fmt: skip
        self.tokenizer, self.splits = tokenizer, splits
        trained = pipeline.for_dataset(tokenizer.config.data, tokenizer.datasets, fingerprint)
        seconds, frames = trained.get("gap_seconds"), trained.get("gap_frames")
        self.camera = trained.get("camera") or MAIN
        for shards in splits.values():
            if self.camera not in (cameras := cameras_of(shards.features)):
                raise UserError(f"{shards.folder} has no camera '{self.camera}', whose images this tokenizer was "
                                f"trained on (data.camera); it has {', '.join(cameras) or 'none'}")  # fmt: skip
        gap = Gap.from_config(seconds, frames)
        self._gaps = {name: gap.of_episodes(shards) for name, shards in splits.items()}
        distinct_gaps = {int(g) for gaps in self._gaps.values() for g in gaps}
        self.about: dict = {"camera": self.camera, "gap": {"seconds": seconds, "frames": frames}}
        self.about["gap_frames"] = distinct_gaps.pop() if len(distinct_gaps) == 1 else None
        self.features: dict = codes_feature(tokenizer) if tokenizer.discrete else {}
        if continuous or not tokenizer.discrete:
            self.about["delta_shape"] = list(tokenizer.delta_shape)
            self.features["delta"] = {"shape": list(tokenizer.delta_shape), "dtype": "float32"}

    def codes(self, split: str, steps: range, batch_size: int) -> Iterator[Labelled]:
        """In order, in batches. Each frame is decoded once, a batch ahead of the model."""
        source, gaps = self.splits[split], self._gaps[split]
        batches = [steps[k : k + batch_size] for k in range(0, len(steps), batch_size)]
        window: dict[int, Future] = {}
        with ThreadPoolExecutor(THREADS) as pool:

            def prepare(steps: range) -> tuple[range, np.ndarray, list[Future]]:
                nonlocal window
                second = _second(source, gaps, np.array(steps))
                needed = sorted({*steps, *second.tolist()})
                # Neighbouring pairs share frames: only those of this batch and the last are kept.
                window = {i: window.get(i) or pool.submit(self._frame, source, i) for i in needed}
                return steps, second, [window[i] for pair in zip(steps, second.tolist()) for i in pair]

            ready = prepare(batches[0])
            for upcoming in [*batches[1:], None]:
                steps, second, frames = ready
                # While the model encodes one batch the threads decode the next.
                ready = prepare(upcoming) if upcoming is not None else None
                pairs = np.stack([frame.result() for frame in frames])
                encoded = self.tokenizer.encode_both(pairs.reshape(len(steps), 2, *pairs.shape[1:]))
                columns = {"latent": encoded.get("codes"), "delta": encoded["delta"]}
                gaps_of_steps = np.array([gaps[source.episode_of(i)] for i in steps])
                clipped = second - np.array(steps) < gaps_of_steps
                yield steps, {name: columns[name] for name in self.features}, clipped

    def _frame(self, shards: StepShards, i: int) -> np.ndarray:
        """The image of a step, already of the model's size so that little is kept in memory."""
        image, side = shards.image(i, self.camera), self.tokenizer.side
        stored = shards.features[self.camera].get(images.RESIZE)
        return image if side is None else images.to_side(image, side, stored, None)

    def summarize(self, split: str, columns: Columns) -> dict:
        """The usage of the split's codes, how its deltas spread, and how many of its steps have a clipped pair."""
        clipped = sum(min(e.length, int(gap)) for e, gap in zip(self.splits[split].episodes, self._gaps[split]))
        summary = {"clipped": clipped, "steps": len(self.splits[split])}
        if "latent" in columns:
            summary |= usage.summarize(columns["latent"], self.tokenizer.codebook_size)
        if "delta" in columns:
            summary["delta_std"] = columns["delta"].std(0).tolist()
        return summary


def codes_feature(tokenizer) -> dict:
    """What `dataset.json` says of a tokenizer's codes."""
    return {"latent": {"shape": [tokenizer.code_length], "dtype": "int32"}}


class ColumnCodes:
    """What labelling with tokenizers of numeric columns has in common."""

    def __init__(self, tokenizer, splits: Mapping[str, StepShards], fingerprint: str, dataset: str | None):
        self.tokenizer, self.splits = tokenizer, splits
        self.dataset = tokenizer.dataset_of(fingerprint, dataset)
        self.about: dict = {"column": tokenizer.column, "dataset": self.dataset, "gap_frames": None}
        self.features = codes_feature(tokenizer)
        self._columns = {split: self._column(shards, tokenizer.column) for split, shards in splits.items()}

    def _column(self, shards: StepShards, name: str) -> Column:
        if name not in shards.features:
            features = sorted(shards.features)
            raise UserError(f"{shards.folder} has no {name}, which this tokenizer encodes (features: {features})")
        width, expected = shards.features[name]["shape"][0], self.tokenizer.width_of(self.dataset, name)
        if width != expected:
            raise UserError(f"{shards.folder} has {name}s of {width} numbers; the tokenizer was trained on {expected}")
        return Column(shards, name)

    def _summary(self, split: str, codes: np.ndarray) -> dict:
        tokenizer, names = self.tokenizer, tuple(self.tokenizer.model.code_names)
        return {"steps": len(self.splits[split]), "positions": usage.positions(codes, tokenizer.codebook_sizes, names)}


class ActionCodes(ColumnCodes):
    """Codes of actions: of the chunk that begins at each step, or of each step in the course of its episode.

    Steps without an action (an episode's last) are labelled too: their chunk is masked. A chunk that lacks some of its
    actions, or a step that lacks its own, is flagged.
    """

    flag = "padded"

    def __init__(self, tokenizer, splits: Mapping[str, StepShards], fingerprint: str, dataset: str | None):
        super().__init__(tokenizer, splits, fingerprint, dataset)
        self.about |= {"chunk_length": tokenizer.chunk_length}
        self._states = {}
        if tokenizer.takes_state:
            self._states = {split: self._column(shards, "state") for split, shards in splits.items()}

    def codes(self, split: str, steps: range, batch_size: int) -> Iterator[Labelled]:
        """In order, a few whole episodes at a time; `batch_size` is that of the tokenizer."""
        source = self.splits[split]
        group: list[range] = []
        for number in range(source.episode_of(steps[0]), source.episode_of(steps[-1]) + 1):
            episode = source.episodes[number]
            group.append(range(episode.start, episode.start + episode.length))
            if sum(map(len, group)) >= AT_ONCE:
                yield self._codes_of(split, group, steps)
                group = []
        if group:
            yield self._codes_of(split, group, steps)

    def _codes_of(self, split: str, episodes: Sequence[range], steps: range) -> Labelled:
        column, states = self._columns[split], self._states.get(split)
        sequences = []
        for episode in episodes:
            rows, action_mask = np.array(episode), column.present[np.array(episode)]
            sequences.append(
                (column.take(rows), action_mask.astype(np.float32), None if states is None else states.take(rows))
            )
        codes = np.concatenate(self.tokenizer.encode_episodes(sequences, dataset=self.dataset))
        flags = np.concatenate([self._padded(action_mask) for _, action_mask, _ in sequences])
        # Episodes are encoded whole and cut afterwards: codes must not depend on which steps were asked for.
        first, last = max(episodes[0].start, steps.start), min(episodes[-1].stop, steps.stop)
        chosen = slice(first - episodes[0].start, last - episodes[0].start)
        return range(first, last), {"latent": codes[chosen]}, flags[chosen]

    def _padded(self, action_mask: np.ndarray) -> np.ndarray:
        """bool[L] from f32[L], 1 where a step has an action: whose codes lack an action that they should stand for."""
        length = self.tokenizer.chunk_length or 1
        # Behind the end of the episode there are no actions.
        full = np.concatenate([action_mask, np.zeros(length)])
        return np.min([full[k : k + len(action_mask)] for k in range(length)], axis=0) == 0

    def summarize(self, split: str, columns: Columns) -> dict:
        """The usage of the codes of steps with an action, and how many steps have none, or a padded chunk."""
        action_mask, shards = self._columns[split].present, self.splits[split]
        padded = sum(int(self._padded(action_mask[e.start : e.start + e.length]).sum()) for e in shards.episodes)
        return {
            "padded": padded,
            "without_action": int((~action_mask).sum()),
            **self._summary(split, columns["latent"][action_mask]),
        }


class FeatureCodes(ColumnCodes):
    """Codes of rows of features."""

    flag = None

    def __init__(self, tokenizer, splits: Mapping[str, StepShards], fingerprint: str, dataset: str | None):
        super().__init__(tokenizer, splits, fingerprint, dataset)
        for split, column in self._columns.items():
            if lacking := int((~column.present).sum()):
                raise UserError(f"{lacking} of {len(column.present)} steps of {splits[split].folder} ({split}) have no "
                                f"{tokenizer.column}: convert the data again with one for each step")  # fmt: skip

    def codes(self, split: str, steps: range, batch_size: int) -> Iterator[Labelled]:
        """In order, in batches."""
        for k in range(0, len(steps), AT_ONCE):
            chunk = steps[k : k + AT_ONCE]
            codes = self.tokenizer.encode(self._columns[split].take(np.array(chunk)), dataset=self.dataset)
            yield chunk, {"latent": codes}, np.zeros(len(chunk), bool)

    def summarize(self, split: str, columns: Columns) -> dict:
        """The usage of the split's codes."""
        return self._summary(split, columns["latent"])


def _second(shards: StepShards, gaps: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The steps of the second frames: the gap later, or the last of the episode."""
    number = np.array([shards.episode_of(int(i)) for i in steps])
    last = np.array([shards.episodes[e].start + shards.episodes[e].length - 1 for e in number])
    return np.minimum(steps + gaps[number], last)
