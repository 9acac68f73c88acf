"""Frame pairs (t, t + gap): an index computation over step shards, so the gap is chosen when training starts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.shards import StepShards

FIELDS = ("frames", "net_action")


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


class FramePairs:
    """All pairs (t, t + gap) within episodes, as a random-access source.

    A pair never crosses an episode's end: the last `gap` frames of an episode start no pair (they are second frames
    only), and an episode of `gap` frames or fewer gives none. `summary()` counts both.

    Args:
      shards: the steps.
      gap: the distance; seconds are turned into frames with each episode's own frame rate.
      fields: "frames", and "net_action" for the sum of the actions t .. t + gap - 1.
      image_size: side in pixels; stored pictures of another size are squashed to it. None keeps the stored size.
    """

    def __init__(
        self, shards: StepShards, gap: Gap, fields: Sequence[str] = ("frames",), image_size: int | None = None
    ):
        self.shards, self.gap, self.fields, self.image_size = shards, gap, tuple(fields), image_size
        unknown = set(fields) - set(FIELDS)
        if unknown or "frames" not in fields:
            raise UserError(f"pair fields {tuple(fields)} must hold 'frames' and nothing outside {FIELDS}")
        if "image" not in shards.features:
            raise UserError(f"{shards.folder} has no pictures (features: {sorted(shards.features)}); pairs need them")
        if "net_action" in fields and "action" not in shards.features:
            raise UserError(f"{shards.folder} has no actions (features: {sorted(shards.features)}): no net_action")
        self.gaps = np.array([gap.in_frames(fps) for fps in shards.episode_fps()], np.int64)
        self._first = np.array([e.start for e in shards.episodes], np.int64)
        lengths = np.array([e.length for e in shards.episodes], np.int64)
        counts = np.maximum(lengths - self.gaps, 0)
        self._pairs_before = np.concatenate([[0], np.cumsum(counts)])
        self._lengths = lengths
        if len(self) == 0:
            raise UserError(
                f"no pair fits into {shards.folder} ({shards.split}): the longest of its {len(lengths)} episodes has "
                f"{lengths.max()} frames and the gap is {self.gaps.min()}; choose a smaller gap"
            )

    def __len__(self) -> int:
        return int(self._pairs_before[-1])

    def __repr__(self) -> str:
        return f"FramePairs({self.shards!r}, {self.gap}, {self.fields}, {self.image_size})"

    def locate(self, i: int) -> tuple[int, int, int]:
        """(number of the episode, step t within it, gap in frames) of pair i."""
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        episode = int(np.searchsorted(self._pairs_before, i, side="right")) - 1
        return episode, int(i - self._pairs_before[episode]), int(self.gaps[episode])

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """{"frames": uint8[2, H, W, 3], "episode_id": int32, "step": int32} and "net_action" f32[A] where asked for.

        `episode_id` is the number of the episode in `shards.episodes`, `step` the time of the first frame in it.
        """
        return {name: values[0] for name, values in self.batch([i]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several pairs, stacked. Pictures are decoded to where they belong in the result, without a copy."""
        height, width, _ = self.shards.features["image"]["shape"]
        size = self.image_size
        direct = size is None or height == width == size
        frames = np.empty((len(indices), 2, size or height, size or width, 3), np.uint8)
        places = [self.locate(int(i)) for i in indices]
        actions = []
        for pair, (episode, step, gap) in zip(frames, places):
            first = int(self._first[episode]) + step
            for out, j in zip(pair, (first, first + gap)):
                if direct:
                    self.shards.image_into(j, out)
                else:
                    out[:] = images.resize(self.shards.image(j), size)
            if "net_action" in self.fields:
                rows = [self.shards.array(j, "action") for j in range(first, first + gap)]
                actions.append(np.sum(rows, axis=0, dtype=np.float32))
        batch = {"frames": frames, "episode_id": np.array([p[0] for p in places], np.int32)}
        batch["step"] = np.array([p[1] for p in places], np.int32)
        return {**batch, "net_action": np.stack(actions)} if actions else batch

    def meta(self) -> dict:
        """What a checkpoint keeps of its data: statistics, features, fingerprint, frame rate, largest gap."""
        shards = self.shards
        described = {"statistics": shards.statistics, "features": shards.features, "fps": shards.fps}
        return {**described, "data_fingerprint": shards.fingerprint, "gap_frames": int(self.gaps.max())}

    def summary(self) -> dict[str, int]:
        """How many episodes, steps and pairs; steps that start no pair; episodes too short for any; gaps in frames."""
        return {
            "episodes": len(self._lengths),
            "steps": len(self.shards),
            "pairs": len(self),
            "steps_without_pair": len(self.shards) - len(self),
            "episodes_without_pair": int((self._lengths <= self.gaps).sum()),
            "gap_frames_min": int(self.gaps.min()),
            "gap_frames_max": int(self.gaps.max()),
        }
