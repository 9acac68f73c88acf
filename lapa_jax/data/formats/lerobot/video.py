"""The frames of one episode out of a video that may hold many."""

import pathlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lapa_jax.data.formats.reading import reading
from lapa_jax.data.video import choose_film, opened, shown, whole_frames

TOLERANCE = 1e-4
"""Seconds that a frame may lie beside the time stamp of its row; what lerobot uses."""


class VideoSlice:
    """The frames that belong to the rows of an episode; iterating gives uint8[H, W, 3], one in memory at a time.

    Every row has exactly one frame and every frame of the slice has a row. In files that hold several episodes all
    frames of an episode may be shifted by the same time, up to a quarter of the interval between frames: lerobot adds
    up rounded durations where it joins videos (its issue 3177), and the frame that is meant stays beyond doubt.

    Args:
      path: the video.
      timestamps: float[T], of the rows, in seconds from the episode's start.
      fps: frames per second.
      start: where in the video the episode starts, in seconds.
      end: where it ends; None where the video holds this episode only.
      remarks: where it is counted which streams of the file were left out.

    Raises:
      ValueError: while iterating; the video is damaged, or its frames are not those of the rows.
    """

    def __init__(
        self, path: pathlib.Path, timestamps: np.ndarray, fps: float, start: float, end: float | None, remarks: Counter
    ):
        self.path, self.fps, self.start, self.end, self.remarks = path, fps, start, end, remarks
        # the writer rounds time stamps to float32
        self.tolerance = TOLERANCE + float(np.spacing(np.float32(np.max(timestamps))))
        self.times = start + timestamps.astype(np.float64)

    def __iter__(self) -> Iterator[np.ndarray]:
        with reading(f"video {self.path.name}"), opened(self.path) as container:
            stream, left_out = choose_film(container)
            self.remarks.update(f"left out of videos: {what}" for what in left_out)
            if self.end is not None:
                container.seek(int(max(0.0, self.times[0] - 0.25 / self.fps) / stream.time_base), stream=stream)
            for frame in self._match(_timed(whole_frames(container.decode(stream)))):
                yield shown(frame, stream.sample_aspect_ratio)

    def _match(self, frames: Iterator) -> Iterator:
        """The frames of the rows, in order; a frame too many, too few or beside its time is a ValueError."""
        early, shift, row = self.times[0] - 0.5 / self.fps, None, 0
        late = float("inf") if self.end is None else self.end - 0.5 / self.fps
        for frame in frames:
            if self.end is not None and frame.time < early:
                continue
            if frame.time >= late:
                break
            if row == len(self.times):
                raise ValueError(f"it has more frames than the episode's {row} rows: one at {frame.time:.4f} s")
            off = frame.time - self.times[row]
            if shift is None:
                shift = off if self.end is not None and abs(off) <= 0.25 / self.fps else 0.0
            if abs(off - shift) > self.tolerance:
                raise ValueError(
                    f"row {row} is at {self.times[row]:.4f} s and its frame at {frame.time:.4f} s: they are not in step"
                )
            row += 1
            yield frame
        if row < len(self.times):
            raise ValueError(f"the episode ends after {row} frames, it has {len(self.times)} rows")


def _timed(frames: Iterator) -> Iterator:
    """Frames, as long as they have a time."""
    for number, frame in enumerate(frames):
        if frame.time is None:
            raise ValueError(f"frame {number} has no time stamp")
        yield frame
