"""Frame pairs (t, t + gap): an index computation over step shards, so the gap is chosen when training starts."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import flow
from lapa_jax.data.loader.buffers import empty
from lapa_jax.data.samples.base import NOWHERE, Rows, StepSource
from lapa_jax.data.samples.pair_actions import PAIR_ACTION, PairActions, net_actions
from lapa_jax.data.samples.reading import CameraImages, Column
from lapa_jax.data.shards.step_shards import StepShards

MIDDLE, FLOW = "middle_frame", flow.FIELD
TRAINING_ONLY = (MIDDLE, FLOW)
"""Fields that losses need and evaluation does not read."""
FIELDS = ("frames", MIDDLE, FLOW, "net_action", PAIR_ACTION)


@dataclasses.dataclass(frozen=True)
class Gap:
    """The distance of the two frames of a pair: `seconds` or `frames`, one of them."""

    seconds: float | None = None
    frames: int | None = None

    def __post_init__(self):
        if (self.seconds is None) == (self.frames is None):
            raise UserError(f"give the frame gap in seconds or in frames, not both or none (got {self})")
        value = self.seconds if self.frames is None else self.frames
        if not value > 0 or not np.isfinite(value) or (self.frames is not None and int(self.frames) != self.frames):
            raise UserError(f"the frame gap must be positive, and whole in frames (got {self})")

    @classmethod
    def from_config(cls, seconds: float | None = None, frames: int | None = None) -> "Gap":
        """The gap of a config: `frames` where it is set, else `seconds`."""
        return cls(frames=frames) if frames is not None else cls(seconds=seconds)

    def in_frames(self, fps: float | None) -> int:
        """The gap at `fps` frames per second: the nearest whole number of frames, at least 1."""
        if self.frames is not None:
            return int(self.frames)
        if fps is None or not np.isfinite(fps):
            raise UserError(
                f"a gap of {self.seconds} s needs a frame rate, and this data has none: set the gap in frames "
                "(data.gap_seconds=None, data.gap_frames=N), or convert with --fps"
            )
        return max(1, round(self.seconds * fps))

    def of_episodes(self, shards: StepShards) -> np.ndarray:
        """int64[episodes]: the gap in frames at each episode's own rate."""
        rates = shards.episode_fps()
        return np.array([self.in_frames(None if np.isnan(rate) else float(rate)) for rate in rates], np.int64)


@dataclasses.dataclass(frozen=True)
class Options:
    """The fields of `config.data` for frame pairs; a gap in frames wins over one in seconds. See `FramePairSource`.

    Attributes:
      action_share: of "pair_action": share of the episodes with actions whose actions are used, from 0 to 1.
      action_draws: least share of the drawn pairs that have one of these actions; 0 draws all pairs equally often.
      scaled_decoding: see `StepOptions`.
    """

    gap_seconds: float | None = None
    gap_frames: int | None = None
    fields: tuple[str, ...] = ("frames",)
    camera: str = "image"
    image_size: int | None = None
    action_share: float = 1.0
    action_draws: float = 0.25
    scaled_decoding: bool = False

    def __post_init__(self):
        if not 0 <= self.action_share <= 1 or not 0 <= self.action_draws < 1:
            raise UserError(f"data.action_share is a share of the episodes in [0, 1], data.action_draws one of the "
                            f"drawn pairs in [0, 1) (got {self.action_share} and {self.action_draws})")

    def open(self, shards: StepShards, statistics: Mapping | None = None) -> "FramePairSource":
        """The pairs of a split; `statistics` as for `StepSource`."""
        gap = Gap.from_config(self.gap_seconds, self.gap_frames)
        return FramePairSource(shards, gap, self.fields, self.image_size, self.camera, statistics, self.action_share,
                               self.action_draws, self.scaled_decoding)  # fmt: skip


class FramePairSource(StepSource):
    """All pairs (t, t + gap) within episodes, as a random-access source.

    A pair never crosses an episode's end: the last `gap` frames of an episode start no pair (they are second frames
    only), and an episode of `gap` frames or fewer gives none. `summary()` counts both, and the pairs that fall away
    because a step in them has no image or no action.

    Args:
      shards: the steps.
      gap: the distance; seconds are turned into frames with each episode's own frame rate.
      fields: "frames", "net_action" for the sum of the actions t .. t + gap - 1, in the data's units, of pairs that
        have all of these, "pair_action" for the same scaled, of few pairs or none, see `PairActions`, "middle_frame"
        for the frame at t + gap // 2 of pairs that have one, "flow" for the optical flow of the pair, see `data.flow`.
      image_size: side in pixels; stored images of another size are resized to it. None keeps the stored size.
      camera: the member name of the camera.
      statistics: see `StepSource`.
      action_share, action_draws: of "pair_action", see `Options`.
      scaled_decoding: see `StepOptions`.

    Attributes: pair_actions: of "pair_action"; None without that field.
    """

    def __init__(
        self, shards: StepShards, gap: Gap, fields: Sequence[str] = ("frames",), image_size: int | None = None,
        camera: str = "image", statistics: Mapping | None = None, action_share: float = 1.0, action_draws: float = 0.25,
        scaled_decoding: bool = False,
    ):  # fmt: skip
        super().__init__(shards, fields, statistics)
        self.gap, self.image_size, self.camera = gap, image_size, camera
        if set(fields) - set(FIELDS) or "frames" not in fields:
            raise UserError(f"pair fields {tuple(fields)} must hold 'frames' and nothing outside {FIELDS}")
        if not isinstance(camera, str):
            words = "for several give data.mixture with a part for each"
            raise UserError(f"pairs are of one camera, data.camera names {tuple(camera)}; {words}")
        if "net_action" in fields and "action" not in shards.features:
            raise UserError(f"{shards.folder} has no actions (features: {sorted(shards.features)}): no net_action")
        self._images = CameraImages(shards, camera, image_size, scaled=scaled_decoding)
        self._actions = Column(shards, "action") if "net_action" in fields else None
        self.gaps = gap.of_episodes(shards)
        self.action_share, self.action_draws, self.pair_actions = action_share, action_draws, None
        if MIDDLE in fields and (short := int(self.gaps.min())) < 2:
            raise UserError(f"data.fields has 'middle_frame', and a gap of {short} frame has no frame in the middle: "
                            "give a gap of at least 2 frames, or leave the field out")  # fmt: skip
        if FLOW in fields:
            flow.check(self._images.shape[:2])
        self._choose()
        if PAIR_ACTION in fields:
            self._open_pair_actions()

    def _open_pair_actions(self) -> None:
        first = self._first.astype(np.int64)
        episodes = self._episode_of(first)
        self.pair_actions = PairActions(
            self.shards, first, first + self.gaps[episodes], episodes, self.action_share, self.action_draws,
            self.statistics.get(PAIR_ACTION),
        )  # fmt: skip
        self.emphasis = self.pair_actions.emphasis
        if self.pair_actions.summary is not None:
            self.statistics[PAIR_ACTION] = self.pair_actions.summary

    def _choose(self) -> None:
        steps, _, last = self.every_step()
        second = steps + np.repeat(self.gaps, self._lengths)
        possible = second <= last
        # Only so that the index below exists; `possible` excludes these.
        second = np.minimum(second, last)
        has_image = self._images.available()
        seen = possible & has_image & has_image[second]
        if MIDDLE in self.fields:
            seen &= has_image[np.minimum(steps + np.repeat(self.gaps, self._lengths) // 2, last)]
        whole = seen
        if self._actions is not None:
            # before[i]: actions before step i. A net action needs all of the steps between its two frames.
            before = np.concatenate([[0], np.cumsum(self._actions.present)])
            whole = seen & (before[second] - before[steps] == second - steps)
        self._begin_at(whole)
        self._lost = int((possible & ~seen).sum()), int((seen & ~whole).sum())
        if len(self) == 0:
            raise UserError(
                f"no pair fits into {self.shards.folder} ({self.shards.split}): the longest of its "
                f"{len(self._lengths)} episodes has {self._lengths.max()} frames and the gap is {self.gaps.min()} "
                f"(lost for want of an image: {self._lost[0]}, of an action: {self._lost[1]}); choose a smaller gap"
            )

    def __repr__(self) -> str:
        few = f", {self.action_share}, {self.action_draws}" if PAIR_ACTION in self.fields else ""
        return f"FramePairSource({self.shards!r}, {self.gap}, {self.fields}, {self.image_size}, {self.camera}{few})"

    def locate(self, i: int) -> tuple[int, int, int]:
        """(number of the episode, step t within it, gap in frames) of pair i."""
        episode, step = super().locate(i)
        return episode, step, int(self.gaps[episode])

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """Several pairs, stacked. Images are decoded to where they belong in the result, without a copy.

        Returns:
          {"frames": uint8[B, 2, H, W, 3], "episode_id": int32[B], "step": int32[B]} and, where asked for,
          "net_action" f32[B, A], "pair_action" and "pair_action_mask" f32[B, A], "middle_frame" uint8[B, H, W, 3],
          "flow" f32[B, H / 4, W / 4, 2]. `episode_id` is the number of the episode in `shards.episodes`, `step` the
          time of the first frame in it. `into`: see `StepSource.batch`.
        """
        first = self._first_of(indices)
        episodes = self._episode_of(first)
        second = first + self.gaps[episodes]
        rows = into.get("frames")
        frames = empty((len(first), 2, *self._images.shape), np.uint8) if rows is None else rows
        both = np.stack([first, second], axis=1)
        self._images.into([view for pair in frames for view in pair], both.ravel().tolist())
        batch = {**({"frames": frames} if rows is None else {}), **self._where(first)}
        if MIDDLE in self.fields:
            batch[MIDDLE] = empty((len(first), *self._images.shape), np.uint8)
            self._images.into(list(batch[MIDDLE]), (first + self.gaps[episodes] // 2).tolist())
        if FLOW in self.fields:
            batch[FLOW] = flow.of_pairs(frames)
        if self._actions is not None:
            batch["net_action"] = net_actions(self._actions, first, second)
        if self.pair_actions is not None:
            batch |= self.pair_actions.batch(first, second, episodes)
        return batch

    def summary(self) -> dict[str, int]:
        """How many episodes, steps and pairs; steps that start no pair; episodes too short for any; gaps in frames."""
        return {
            "episodes": len(self._lengths),
            "steps": len(self.shards),
            "pairs": len(self),
            "steps_without_pair": len(self.shards) - len(self),
            "episodes_without_pair": int((self._lengths <= self.gaps).sum()),
            "pairs_without_picture": self._lost[0],
            "pairs_without_action": self._lost[1],
            "gap_frames_min": int(self.gaps.min()),
            "gap_frames_max": int(self.gaps.max()),
        }
