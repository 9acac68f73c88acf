"""Episodes cut into segments of one cluster each, by a two-level action tokenizer and FIFA."""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_path, write_json
from lapa_jax.data import pipeline
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.models import fifa

SEGMENTS_FILE, ARRAYS_FILE = "segments.json", "segments.npz"
_STEPS = 65536
"""Steps read at once."""
_GROUP = 32
"""Episodes segmented at once."""


class Segment(NamedTuple):
    """Steps `start` to `end` - 1 of an episode. `confidence`: their mean probability of the cluster, 0 to 1."""

    cluster: int
    start: int
    end: int
    confidence: float


class Episode(NamedTuple):
    """The part of an episode that has actions.

    Attributes:
      id: its name. first: the number of its first step with an action.
      actions: f32 [L, A], in the data's units, 0 where there is none. mask: f32 [L], 1 where there is one.
      states: f32 [L, S] likewise, or None where the tokenizer takes none.
    """

    id: str
    first: int
    actions: np.ndarray
    mask: np.ndarray
    states: np.ndarray | None


class Segmenter:
    """Segments the episodes of a folder of step shards.

    Args:
      tokenizer: a loaded two-level action tokenizer (its model has `cluster_distances`).
      data: the folder. split: of it.
      dataset: whose units the actions have, for a tokenizer of several datasets and data that are none of them.
      settings: of FIFA.

    Raises:
      UserError: another kind of model, or data that do not fit it.
    """

    def __init__(
        self, tokenizer, data, split: str, *, dataset: str | None = None, settings: fifa.Settings = fifa.DEFAULTS
    ):
        model = tokenizer.model
        if model.kind != "action_tokenizer" or not model.two_level:
            raise UserError(f"a {tokenizer.config.model.name} has no clusters of actions; give a run of "
                            "configs/mstcn.py")
        self.tokenizer, self.model, self.settings, self.split = tokenizer, model, settings, split
        fields = ("action", "state") if model.state_dim else ("action",)
        self.source = pipeline.build({"path": str(data), "split_train": split, "samples": "steps"}, "train",
                                     fields=fields)  # fmt: skip
        self._dataset = tokenizer.dataset_of(self.source.meta()["data_fingerprint"], dataset)
        for name, width in self.source.numeric.items():
            if width != (expected := tokenizer.width_of(self._dataset, name)):
                raise UserError(f"the {name} in {data} has {width} numbers, the tokenizer was trained on {expected}")
        self._distances = jax.jit(functools.partial(_distances, model))
        self._viterbi = jax.jit(jax.vmap(functools.partial(fifa.viterbi, switch_cost=settings.switch_cost)))
        self._optimise = jax.jit(jax.vmap(functools.partial(_optimise, settings)))

    def action_names(self) -> list[str]:
        """What the dimensions of the actions are called; their numbers where nothing is known."""
        return dimension_names(self.source.shards.features["action"], self.source.numeric["action"])

    def episodes(self) -> Iterator[Episode]:
        """All episodes that have actions, in the order of the shards."""
        parts = [self.source.batch(range(i, min(i + _STEPS, len(self.source))))
                 for i in range(0, len(self.source), _STEPS)]  # fmt: skip
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        begins = np.flatnonzero(np.diff(columns["episode_id"], prepend=-1))
        for rows in np.split(np.arange(len(columns["step"])), begins[1:]):
            number, steps = int(columns["episode_id"][rows[0]]), columns["step"][rows]
            at = steps - steps[0]
            spread = {name: _spread(columns[name][rows], at) for name in self.source.fields}
            mask = _spread(np.ones(len(at), np.float32), at)
            yield Episode(self.source.shards.episodes[number].id, int(steps[0]), spread["action"], mask,
                          spread.get("state"))  # fmt: skip

    def log_probabilities(self, episode: Episode) -> np.ndarray:
        """Of the clusters at the steps of an episode, f32 [L, |Q|].

        As for its codes, the tokenizer sees the episode in overlapping windows of the length of training.
        """
        length = len(episode.mask)
        starts, which, offset = self.tokenizer.windows(length)
        rows = starts[:, None] + np.arange(self.model.context)
        inside = np.minimum(rows, length - 1)
        mask = episode.mask[inside] * (rows < length)
        batch = {"action": self._scaled("action", episode.actions)[inside] * mask[..., None], "mask": mask}
        if episode.states is not None:
            batch["state"] = self._scaled("state", episode.states)[starts]
        distances = self.tokenizer.run(self._distances, batch)[which, offset]
        return np.asarray(fifa.log_probabilities(distances, self.settings.temperature))

    def _scaled(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self.tokenizer.to_model(rows, self._dataset, name)

    def segments(self, episodes: Sequence[Episode]) -> list[list[Segment]]:
        """The segments of each episode. Steps without an action belong to none, but may lie within one.

        Transcripts and first lengths are Viterbi's; the length that FIFA expects of a segment is the mean over all of
        its cluster, in these episodes.
        """
        steps_of = [np.flatnonzero(episode.mask) for episode in episodes]
        logs = [self.log_probabilities(episode)[steps] for episode, steps in zip(episodes, steps_of, strict=True)]
        # Negative log-probabilities: nats, as `switch_cost` is counted.
        labels = _in_groups(self._viterbi, [-log for log in logs])
        transcripts = [_runs(row[: len(log)]) for row, log in zip(labels, logs, strict=True)]
        means = _mean_lengths(transcripts)
        start = [lengths / lengths.sum() for _, lengths in transcripts]
        expected = [means[clusters] / means[clusters].sum() for clusters, _ in transcripts]
        clusters = [clusters for clusters, _ in transcripts]
        shares = _in_groups(self._optimise, [-log for log in logs], clusters, start, expected)
        all_segments = []
        for episode, steps, log, order, share in zip(episodes, steps_of, logs, clusters, shares, strict=True):
            border = np.asarray(fifa.borders(share[: len(order)], np.ones(len(log))))
            all_segments.append(list(_segments(steps + episode.first, np.exp(log), order, border)))
        return all_segments


def write(
    out, segmenter: Segmenter, episodes: Sequence[Episode], all_segments: Sequence[Sequence[Segment]], run: str
) -> None:
    """Writes `segments.json` and `segments.npz` into the folder `out`, each atomically.

    The arrays have a row per segment: "episode" (a number in "episode_ids"), "cluster", "start", "end" (exclusive),
    "confidence".
    """
    out = pathlib.Path(out)
    write_json(out / SEGMENTS_FILE, {
        "run": run, "step": segmenter.tokenizer.step, "tokenizer": segmenter.tokenizer.fingerprint,
        "data": str(segmenter.source.shards.folder), "split": segmenter.split,
        "data_fingerprint": segmenter.source.meta()["data_fingerprint"], "clusters": segmenter.model.clusters,
        "settings": segmenter.settings._asdict(),
        "episodes": [{"episode": episode.id, "segments": [segment._asdict() for segment in segments]}
                     for episode, segments in zip(episodes, all_segments, strict=True)],
    })  # fmt: skip
    rows = [(number, *segment) for number, segments in enumerate(all_segments) for segment in segments]
    names, types = ("episode", *Segment._fields), (np.int32,) * 4 + (np.float32,)
    columns = {name: np.array([row[i] for row in rows], types[i]) for i, name in enumerate(names)}
    with atomic_path(out / ARRAYS_FILE) as temporary, open(temporary, "wb") as file:
        np.savez(file, episode_ids=np.array([episode.id for episode in episodes]), **columns)


def summary(all_segments: Sequence[Sequence[Segment]]) -> dict[str, float]:
    """How many segments there are, how many clusters they have, their mean and median length and mean confidence."""
    rows = [segment for segments in all_segments for segment in segments]
    lengths = [segment.end - segment.start for segment in rows]
    return {
        "segments": len(rows),
        "segments_per_episode": len(rows) / len(all_segments),
        "clusters_used": len({segment.cluster for segment in rows}),
        "mean_length": float(np.mean(lengths)),
        "median_length": float(np.median(lengths)),
        "mean_confidence": float(np.mean([segment.confidence for segment in rows])),
    }


def _distances(model, variables, batch: Mapping) -> jax.Array:
    return model.apply(variables, batch["action"], batch["mask"], batch.get("state"), method="cluster_distances")


def _optimise(settings: fifa.Settings, cost, mask, clusters, start, expected) -> jax.Array:
    return fifa.optimise(cost[:, clusters], start, expected, mask, settings)


def _in_groups(function, costs: Sequence[np.ndarray], *more: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`function(costs, masks, *more)` of episodes, in groups of similar length padded to a power of two, so that few
    programs are compiled; the results in the order of the episodes, padded."""
    results: list[np.ndarray] = [np.empty(0)] * len(costs)
    order = np.argsort([len(cost) for cost in costs], kind="stable")
    for group in np.split(order, range(_GROUP, len(order), _GROUP)):
        # A last, smaller group repeats its episodes: the shape stays the same.
        rows = np.resize(group, _GROUP)
        mask = _stacked([np.ones(len(costs[i]), np.float32) for i in rows])
        first, *rest = (_stacked([part[i] for i in rows]) for part in (costs, *more))
        for i, result in zip(group, np.asarray(function(first, mask, *rest)), strict=False):
            results[i] = result
    return results


def _stacked(parts: Sequence[np.ndarray]) -> jax.Array:
    """Arrays [L, ...] of different lengths as one, filled up with zeros to a power of two of at least 8."""
    # Powers of two: a program is compiled for each length that occurs.
    length = max(8, 1 << (max(map(len, parts)) - 1).bit_length())
    return jnp.stack([np.pad(part, [(0, length - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in parts])


def _spread(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows put at their positions in an array of zeros."""
    result = np.zeros((at[-1] + 1, *values.shape[1:]), np.float32)
    result[at] = values
    return result


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the lengths, int[N], of the runs of equal labels."""
    # Prepended is a label other than the first, so that a run begins at 0.
    begins = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    return labels[begins], np.diff([*begins, len(labels)])


def _mean_lengths(transcripts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The mean length of the segments of each cluster, f64[largest cluster + 1]; 0 where there is none."""
    clusters, lengths = (np.concatenate(parts) for parts in zip(*transcripts, strict=True))
    return np.bincount(clusters, lengths) / np.maximum(np.bincount(clusters), 1)


def _segments(steps: np.ndarray, probability: np.ndarray, clusters: np.ndarray, border: np.ndarray):
    """The segments of at least one step; `steps` are the numbers of the episode's steps with an action."""
    for cluster, first, behind in zip(clusters.tolist(), border[:-1].tolist(), border[1:].tolist(), strict=True):
        if behind > first:
            confidence = float(probability[first:behind, cluster].mean())
            yield Segment(cluster, int(steps[first]), int(steps[behind - 1]) + 1, confidence)
