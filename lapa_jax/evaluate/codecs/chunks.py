"""Action chunks of step shards for comparing codecs: of the train split to fit on, of the val split to measure on."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.reading import Column
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.statistics import ColumnStatistics, kinds

LEVEL = 0.05
"""The share of the training rows that makes a value a level of a gripper."""


@dataclasses.dataclass(frozen=True)
class ActionChunks:
    """Whole chunks of T actions of one data set, in the data's units.

    Attributes:
      name: what the data set is called here. fingerprint: of its shards.
      train: f32[n, T, A], from every step of the training episodes at which one begins.
      train_apart, val: f32[n, T, A], one after the other from the first step of each episode; they share no step.
      summary: statistics of the training actions, those alone.
      dimensions: A names.
      grippers: {dimension: its levels, f64[levels] in the data's units}; see `gripper_levels`.
      seconds: that a step lasts, the mean over `val`; None where the data have no clock.
      counts: of val: "episodes", "repeated_episodes" (left out, since they are training episodes too), "steps",
        "steps_left_over" (at the end of episodes, too few for a chunk), "chunks"; and "train_episodes".
    """

    name: str
    fingerprint: str
    train: np.ndarray
    train_apart: np.ndarray
    val: np.ndarray
    summary: Mapping
    dimensions: tuple[str, ...]
    grippers: Mapping[int, np.ndarray]
    seconds: float | None
    counts: Mapping[str, int]

    @property
    def length(self) -> int:
        """T."""
        return self.val.shape[1]


def read_chunks(
    name: str, folder, *, length: int | None = None, seconds: float | None = None, grippers: Sequence[int] = ()
) -> ActionChunks:
    """The chunks of a folder of step shards.

    Args:
      name: what to call it.
      folder: of step shards with actions and the splits train and val.
      length: T in steps. seconds: T in seconds, in its place.
      grippers: dimensions that are grippers (-1 is the last) besides those that are binary or called so.

    Raises:
      UserError: no actions, no clock for `seconds`, no whole chunk in a split, or nothing in val that is held out.
    """
    train, val = StepShards(folder, "train"), StepShards(folder, "val")
    if "action" not in train.features:
        raise UserError(f"{folder} has no actions (features: {sorted(train.features)})")
    length = _length(name, train, seconds) if length is None else length
    learned, held = _episodes(train), _episodes(val)
    # By their bytes: some releases have the same episodes in both splits, under other names.
    trained_on = {values.tobytes() for values in learned}
    fresh = [values.tobytes() not in trained_on for values in held]
    if not any(fresh):
        raise UserError(
            f"{folder}: all {len(held)} episodes of val are in train too, so nothing is held out; convert the training "
            "part of the source alone, with --val_fraction"
        )
    kept = [values for values, new in zip(held, fresh) if new]
    chunks, apart = _windows(learned, length, 1), _windows(kept, length, length)
    for split, windows in (("train", chunks), ("val", apart)):
        if len(windows) == 0:
            raise UserError(f"{folder}: no episode of {split} has {length} actions; give {name} shorter chunks")
    summary = _summary(learned)
    names = train.features["action"].get("names") or [str(i) for i in range(chunks.shape[2])]
    steps = sum(len(values) for values in kept)
    counts = {"train_episodes": len(learned), "episodes": len(kept), "repeated_episodes": len(held) - len(kept)}
    counts |= {"steps": steps, "steps_left_over": steps - len(apart) * length, "chunks": len(apart)}
    return ActionChunks(
        name, train.fingerprint, chunks, _windows(learned, length, length), apart, summary, tuple(map(str, names)),
        gripper_levels(np.concatenate(learned), summary, names, grippers), _step_seconds(val, fresh), counts,
    )  # fmt: skip


def gripper_levels(
    rows: np.ndarray, summary: Mapping, names: Sequence[str], also: Sequence[int] = ()
) -> dict[int, np.ndarray]:
    """Which dimensions are grippers, and between which values one tells them apart.

    A dimension is a gripper that is binary (`statistics.kinds`), or has "gripper" in its name, or is among `also`. Its
    levels are the values that at least 5 % of the rows f32[n, A] have; where those are fewer than two, minimum and
    maximum. A decoded gripper is right if the level next to it is the level next to the true one.
    """
    width = rows.shape[1]
    if wrong := [i for i in also if not -width <= i < width]:
        raise UserError(f"gripper dimension {wrong[0]} does not exist; actions have {width} dimensions")
    chosen = {i % width for i in also}
    chosen |= {i for i, (kind, name) in enumerate(zip(kinds(summary), names, strict=True))
               if kind == "binary" or "gripper" in str(name).lower()}  # fmt: skip
    levels_of = {}
    for i in sorted(chosen):
        values, counts = np.unique(rows[:, i], return_counts=True)
        levels = values[counts >= LEVEL * len(rows)]
        levels_of[i] = (levels if len(levels) > 1 else values[[0, -1]]).astype(np.float64)
    return levels_of


def _length(name: str, shards: StepShards, seconds: float) -> int:
    rates, remedy = shards.episode_fps(), f"give --chunk_length {name}=STEPS"
    if not np.isfinite(rates).all():
        raise UserError(f"{name} has no clock, so chunks of {seconds:g} s are unknown; {remedy}")
    if len(set(rates)) > 1:
        raise UserError(f"{name} has {rates.min():g} to {rates.max():g} steps a second; {remedy}")
    return max(1, round(seconds * rates[0]))


def _episodes(shards: StepShards) -> list[np.ndarray]:
    """The actions f32[n, A] of each episode; one that lacks an action between two others is refused."""
    column, actions = Column(shards, "action"), []
    for episode in shards.episodes:
        steps = np.arange(episode.start, episode.start + episode.length)
        steps = steps[column.present[steps]]
        # Chunks are windows of what is left, and would join steps that were apart.
        if len(steps) and steps[-1] - steps[0] >= len(steps):
            raise UserError(f"{shards.folder}: episode {episode.id} lacks actions in its middle; convert it in parts")
        actions.append(column.take(steps))
    return actions


def _windows(episodes: Sequence[np.ndarray], length: int, stride: int) -> np.ndarray:
    """f32[n, length, A]: whole windows of episodes, `stride` steps apart."""
    width = episodes[0].shape[1]
    windows = [np.empty((0, length, width), np.float32)]
    for values in episodes:
        if len(values) >= length:
            seen = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)[::stride]
            windows.append(seen.transpose(0, 2, 1))
    return np.ascontiguousarray(np.concatenate(windows), np.float32)


def _summary(episodes: Sequence[np.ndarray]) -> dict:
    statistics = ColumnStatistics()
    statistics.update(np.concatenate(episodes), 0)
    return statistics.summary()


def _step_seconds(shards: StepShards, fresh: Sequence[bool]) -> float | None:
    """The mean length of a step over the episodes in use, each counted with its steps; None without clocks."""
    rates = shards.episode_fps()[np.array(fresh)]
    if not np.isfinite(rates).all():
        return None
    lengths = np.array([e.length for e in shards.episodes])[np.array(fresh)]
    return float((lengths / rates).sum() / lengths.sum())
