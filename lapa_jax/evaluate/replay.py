"""Recorded steps through a stage-3 policy: what it makes of them, and whether it sees them as its training did."""

import bisect
import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.samples.meta import dimension_names, statistics_of
from lapa_jax.data.samples.padded import as_wide_as
from lapa_jax.data.shards.step_shards import read_dataset
from lapa_jax.evaluate.base import unscaled
from lapa_jax.inference.policies import Policy
from lapa_jax.models.policies.action_measures import dimension
from lapa_jax.plots import episodes as episode_plots

LONGEST, LONGEST_IN_CONTEXT = 200, 400
"""Steps of an episode that are replayed at most, through policies of chunks and through in-context policies."""


def replay(policy, source, episode: int, dataset: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """An episode with the prompt that its first window has.

    Args:
      policy: an `InContextPolicy`.
      source: sequences with a stride of 1, in the units of the data. episode: its number there.
      dataset: whose units these are.

    Returns:
      Recorded and predicted actions f32[N, A], of the steps up to the first that lacks something, 400 at most; None
      where the source has no window at the episode's beginning.
    """
    first = _index(source, episode, 0)
    if first == len(source) or source.locate(first) != (episode, 0):
        return None
    steps, complete = _steps(source, first, _index(source, episode + 1, 0))
    # argmin of a bool array is its first False; the one appended stands for an episode without a gap.
    count = min(LONGEST_IN_CONTEXT, int(np.argmin(np.append(complete, False))))
    policy.reset(_prompt(source[first]), goal=_goal(source[first]), dataset=dataset)
    predicted = []
    for t in range(count):
        done = steps["action"][t - 1] if t else None
        predicted.append(policy.act({name: values[t] for name, values in steps.items()}, done))
    return (steps["action"][:count], np.stack(predicted)) if count else None


def _index(source, episode: int, step: int) -> int:
    """The first sample that begins at this step of the episode or later."""
    # Samples are in the order of episodes and steps, so that a search by halves finds the first.
    return bisect.bisect_left(range(len(source)), (episode, step), key=source.locate)


def _steps(source, first: int, end: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The steps of an episode, put together of its windows, samples `first` to `end` - 1: fields [N, ...], and which
    steps are whole, bool[N]."""
    length = len(source[first]["action"])
    # Windows side by side cover every step; the last one is taken too, as it ends with the episode.
    chosen = [*range(first, end - 1, length), end - 1]
    chosen = chosen[: -(-LONGEST_IN_CONTEXT // length) + 1]
    samples = [source[i] for i in chosen]
    total = int(samples[-1]["step"]) + length
    steps = {name: np.zeros((total, *samples[0][name].shape[1:]), samples[0][name].dtype)
             for name in ("action", "state", "image") if name in samples[0]}  # fmt: skip
    complete = np.zeros(total, bool)
    for sample in samples:
        span = slice(int(sample["step"]), int(sample["step"]) + length)
        for name, values in steps.items():
            values[span] = sample[name]
        complete[span] = (sample["action_mask"] > 0) & (sample["step_mask"] > 0)
    return steps, complete


def _prompt(sample: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The demonstrations of a sample, without those that are empty."""
    demonstrations = []
    for number in range(len(sample.get("prompt_action", ()))):
        rows = (sample["prompt_action_mask"][number] > 0) & (sample["prompt_step_mask"][number] > 0)
        if rows.any():
            demonstrations.append({name: sample[f"prompt_{name}"][number][rows] for name in ("action", "state", "image")
                          if f"prompt_{name}" in sample})  # fmt: skip
    return demonstrations


def _goal(sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The observation that a sample's episode leads to; None of samples without goals."""
    return {name: sample[f"goal_{name}"][0] for name in ("state", "image") if f"goal_{name}" in sample} or None


EPISODES, CHECKED = 3, 64
ROUNDING = 1e-4
"""In standard deviations: differences up to this are float32's rounding."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """An input or output on its way through training and through the policy.

    Attributes: name: of the field. largest: difference, in `unit`. allowed: the largest that is rounding. where: of it.
    """

    name: str
    largest: float
    allowed: float
    unit: str
    where: str

    @property
    def wrong(self) -> bool:
        """Whether it is more than rounding, or no number."""
        return not self.largest <= self.allowed


class Replay:
    """A folder of step shards through a policy.

    Attributes:
      trained: the samples as training reads them. Their scaling is that of the data where the policy was trained on
        these data, else the policy's own.
      raw: the same as a robot would give them: images as stored, texts, the units of the data.
      dataset: whose units these are. in_training: whether the policy was trained on these data.
    """

    def __init__(self, policy: Policy, folder, split: str):
        """Args: policy: of the run. folder, split: of step shards. Raises UserError: they lack what it sees."""
        self.policy = policy
        fingerprint = read_dataset(folder)["fingerprint"]
        self.in_training = any(entry.get("fingerprint") == fingerprint for entry in policy.datasets.values())
        self.dataset = policy.dataset_of(fingerprint)
        mode = pipeline.normalization_of(policy.config.data, self.dataset)
        data = {**policy.config.data, "path": str(folder), "val_path": None, "mixture": None, "split_train": split,
                "normalize": mode}  # fmt: skip
        statistics = {self.dataset: statistics_of({"datasets": policy.datasets})[self.dataset]}
        # Of data that the policy was trained on, the folder's own statistics: if they have changed since, the
        # comparison shows it.
        self.trained = pipeline.build(data, "train", statistics=None if self.in_training else statistics)
        self.raw = pipeline.build(observed(data), "train")

    def differences(self, count: int = CHECKED) -> list[Difference]:
        """What differs between what training and what the policy make of some evenly spaced samples."""
        chosen = np.unique(np.linspace(0, len(self.raw) - 1, count).astype(int)).tolist()
        shapes = {name: values.shape[1:] for name, values in self.policy.model.example(1).items()}
        theirs, raw = as_wide_as(self.trained, shapes).batch(chosen), self.raw.batch(chosen)
        ours, _ = self.policy.prepare(raw["image"], raw["text"].tolist(), raw.get("state"), dataset=self.dataset)
        kinds = {"image": (0, "of 255"), "text": (0, "in token ids"), "state": (ROUNDING, "normalised")}
        differences = [
            _difference(name, ours[name], theirs[name], *kind) for name, kind in kinds.items() if name in ours
        ]
        action_mask = theirs["action_mask"] > 0
        back, recorded = self.policy.to_units(theirs["action"][action_mask], self.dataset), raw["action"][action_mask]
        scale = np.maximum(recorded.std(0), 1e-6)
        # Large numbers with a small spread lose more: an offset of 1e6 standard deviations leaves one of them to
        # float32.
        allowed = ROUNDING + float((np.abs(recorded).max(0) * 1e-6 / scale).max())
        return [*differences, _difference("action", back / scale, recorded / scale, allowed, "standard deviations")]

    def check(self, differences: Sequence[Difference]) -> None:
        """Raises a `UserError` that names what of `differences` is more than rounding."""
        if wrong := [difference for difference in differences if difference.wrong]:
            mismatches = "; ".join(f"'{d.name}' by up to {d.largest:.3g} {d.unit} ({d.where})" for d in wrong)
            raise UserError(
                f"the policy does not see these data as its training did: {mismatches}. Their statistics or the "
                "tokenizer of texts have changed since, or the run folder has: train on these data again, "
                "or take those that it was trained on"
            )

    def describe(self, differences: Sequence[Difference], run, path) -> str:
        """Draws some episodes into `path`; returns Markdown with `differences` and the errors of every dimension."""
        replays = episodes(self.policy, self.raw, EPISODES, self.dataset)
        true, guess = (np.concatenate([replay[kind] for replay in replays]) for kind in ("recorded", "predicted"))
        names = dimension_names(self.raw.shards.features["action"], true.shape[1])
        episode_plots.episodes(path, replays, names)
        training = "trained on these data" if self.in_training else f"trained on other data, scaled as '{self.dataset}'"
        lines = [f"## Replay through {run}", "", f"Step {self.policy.step}, {training}. What training and the policy "
                 f"make of the same {min(CHECKED, len(self.raw))} samples:", "", "| field | largest difference | |",
                 "|---|---|---|"]  # fmt: skip
        lines += [f"| {d.name} | {d.largest:.3g} {d.unit} | {f'MISMATCH at {d.where}' if d.wrong else 'same'} |"
                  for d in differences]  # fmt: skip
        lines += ["", f"Predicted against recorded actions of {len(replays)} episodes, {len(true)} steps ({path}):", "",
                  "| dimension | MAE | 99 % are below | largest error | R² |", "|---|---|---|---|---|"]  # fmt: skip
        for i, name in enumerate(names):
            metrics = dimension(guess[:, i], true[:, i])
            sizes = " | ".join(f"{metrics[f'action_{key}']:.3g}" for key in ("mae", "p99_error", "max_error"))
            lines.append(f"| {name} | {sizes} | {metrics.get('action_r2', float('nan')):.3g} |")
        return "\n".join(lines) + "\n"


def observed(data: Mapping) -> dict:
    """A `config.data` that gives the same samples as a robot would: stored images, texts, the units of the data."""
    return {**unscaled(data), "text_tokenizer": None, "image_size": None, "resize": None}


def episodes(policy: Policy, source, count: int, dataset: str | None) -> list[dict]:
    """Recorded episodes through the policy, which is shown at each step what was really observed there.

    Args:
      source: chunks in the units of the data with texts. count: how many episodes, evenly spread over the samples; at
        most the first 200 steps of each. dataset: whose units these are.

    Returns:
      Of each "title", and "recorded" and "predicted" f32 [N, A], the first actions of the chunks.
    """
    replayed = []
    for episode in dict.fromkeys(source.locate(int(i))[0] for i in np.linspace(0, len(source) - 1, count)):
        first, end = (bisect.bisect_left(range(len(source)), (number, 0), key=source.locate)
                      for number in (episode, episode + 1))  # fmt: skip
        batch = source.batch(range(first, min(end, first + LONGEST)))
        texts = batch["text"].tolist()
        predicted = policy.chunk(batch["image"], texts, batch.get("state"), dataset=dataset)[:, 0]
        title = "\n".join([*textwrap.wrap(texts[0], 24)[:3], f"episode {episode}"])
        replayed.append({"title": title, "recorded": batch["action"][:, 0, : predicted.shape[1]],
                      "predicted": predicted})  # fmt: skip
    return replayed


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray, allowed: float, unit: str) -> Difference:
    away = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    largest_at = np.unravel_index(int(away.argmax()), away.shape)
    where = f"dimension {largest_at[-1]}" if name in ("state", "action") else f"sample {largest_at[0]}"
    return Difference(name, float(away.max()), allowed, unit, where)
