"""Images of segmented episodes: bars of clusters, with the actions above them."""

import colorsys
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.label.segments import Episode, Segment
from lapa_jax.plots.frames import BAR, INK, MUTED, STYLE, save


def colour(cluster: int) -> tuple[float, float, float]:
    """The colour of a cluster, the same in every image; neighbours in number are far apart on the colour circle."""
    # The golden ratio: successive multiples are spread over the circle, however many there are.
    hue = cluster * 0.618034 % 1
    return colorsys.hsv_to_rgb(hue, 0.45 + 0.3 * (cluster % 2), 0.85 - 0.2 * (cluster // 2 % 2))


def draw_bars(axes, segments: Sequence[Segment], row: float = 0.0) -> None:
    """Segments as bars at height `row`, with the cluster's number where there is room; the surer, the more opaque."""
    span = max((segment.end for segment in segments), default=1) - min((s.start for s in segments), default=0)
    for cluster, start, end, confidence in segments:
        axes.barh(row, end - start, left=start, height=0.8, color=colour(cluster), alpha=0.35 + 0.65 * confidence,
                  edgecolor="white", linewidth=0.8)  # fmt: skip
        if end - start >= 0.02 * span:
            axes.text((start + end) / 2, row, str(cluster), ha="center", va="center", fontsize=7, color=INK)


def draw_episode(path, episode: Episode, segments: Sequence[Segment], names: Sequence[str]) -> pathlib.Path:
    """One episode: a panel per action dimension that moves, in the data's units, and the segments below.

    Args:
      path: the PNG to write.
      episode, segments: what to draw.
      names: of the A action dimensions.
    """
    steps = episode.first + np.arange(len(episode.mask))
    actions = np.where(episode.mask[:, None] > 0, episode.actions, np.nan)
    moving = [i for i in range(actions.shape[1]) if np.nanmax(actions[:, i]) > np.nanmin(actions[:, i])]
    heights = [1.0] * len(moving) + [0.9]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.75 * len(moving) + 1.5), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, dimension in zip(panels, moving):
            axes.step(steps, actions[:, dimension], where="mid", color=BAR, lw=1)
            axes.set_ylabel(names[dimension], rotation=0, ha="right", va="center", color=MUTED)
            for segment in segments[1:]:
                axes.axvline(segment.start - 0.5, color="#e4e6ec", lw=0.8, zorder=0)
        # a step is drawn around its number
        draw_bars(panels[-1], [s._replace(start=s.start - 0.5, end=s.end - 0.5) for s in segments])
        panels[-1].set(yticks=[], xlabel="step", ylabel="")
        panels[0].set_title(f"episode {episode.id}: {len(segments)} segments", loc="left")
        return save(figure, path)


def overview(path, episodes: Sequence[Episode], all_segments: Sequence[Sequence[Segment]], title: str) -> pathlib.Path:
    """The segments of several episodes, one bar each, below one another.

    Args:
      path: the PNG to write.
      episodes, all_segments: what to draw.
      title: of the image.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.32 * len(episodes) + 1.1), layout="constrained")
        axes = figure.subplots()
        for row, segments in enumerate(all_segments):
            draw_bars(axes, segments, row)
        axes.set_yticks(range(len(episodes)), [episode.id for episode in episodes], fontsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="step")
        axes.set_title(title, loc="left")
        return save(figure, path)
