"""Images of a data set: what its episodes look like, and how its numbers are distributed."""

import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.core.escape import one_line
from lapa_jax.data.action_bins import ActionBins
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.shards.table import Episode
from lapa_jax.data.statistics import PER_DIMENSION, kinds
from lapa_jax.plots import frames as plots

FRAMES, EPISODES, ROWS = 8, 6, 12
THUMBNAIL, INCHES = 160, 1.35
PAIRS = (6, 4)
LINES, DIMENSIONS, SAMPLE = 4, 32, 100_000
TITLE_WIDTH = 42
"""Characters of a title that fit over one panel."""
MANY = 12
"""With more dimensions than this a column is drawn as a map over time, not as lines."""


def contact_sheet(path, shards: StepShards) -> pathlib.Path:
    """A row of evenly spaced frames for each of some evenly spaced episodes and each camera, under the instruction.

    Data without images: the columns of the episodes over time.
    """
    cameras = [name for name, feature in shards.features.items() if feature.get("codec") == "jpeg"]
    cameras.sort(key=lambda name: (name != "image", name))
    if not cameras:
        return column_lines(path, shards)
    episodes = spread(shards.episodes, max(2, min(EPISODES, ROWS // len(cameras))))
    images = [_frames(shards, episode, cameras) for episode in episodes]
    height, width = _cell([frame for episode in images for row in episode for frame in row])
    heights = [len(cameras) * INCHES * height / width + 0.55] * len(episodes)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(FRAMES * INCHES + 1.2, sum(heights)), layout="constrained")
        panels = figure.subplots(len(episodes), 1, squeeze=False)[:, 0]
        for axes, episode, rows in zip(panels, episodes, images):
            cells = np.stack([[thumbnail(frame, height, width) for frame in row] for row in rows])
            steps = [str(step) for step in _steps(episode)]
            names = [name.removeprefix("image_") for name in cameras] if len(cameras) > 1 else ()
            plots.draw_grid(axes, cells, steps + [""] * (FRAMES - len(steps)), names, caption(shards, episode))
        return plots.save(figure, path)


def pair_sheet(path, pairs: PairShards) -> pathlib.Path:
    """Evenly spaced ready-made pairs, the two frames of each side by side."""
    rows, columns = PAIRS
    chosen = spread(range(len(pairs)), rows * columns)
    frames = [frame for i in chosen for frame in pairs[i]["frames"]]
    height, width = _cell(frames)
    rows = -(-len(chosen) // columns)
    frames += [None] * (2 * rows * columns - len(frames))
    cells = np.stack([thumbnail(frame, height, width) for frame in frames])
    cells = cells.reshape(rows, 2 * columns, height, width, 3)
    names = [f"pair {i}" for i in chosen[::columns]]
    title = f"{len(pairs)} pairs of {pairs.split}"
    return plots.frame_grid(path, cells, ["frame", "next"] * columns, names, title, inches=INCHES)


def column_lines(path, shards: StepShards) -> pathlib.Path:
    """The numeric columns of some evenly spaced episodes over time; wide columns as maps."""
    columns = [name for name, feature in sorted(shards.features.items()) if "dtype" in feature]
    episodes = spread(shards.episodes, LINES)
    with matplotlib.rc_context(plots.STYLE):
        size = (4.6 * len(columns) + 0.6, 2.0 * len(episodes) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(episodes), len(columns), squeeze=False)
        for row, episode in zip(panels, episodes):
            for axes, name in zip(row, columns):
                _draw_column(axes, shards, episode, name)
            row[0].set_title(caption(shards, episode), loc="left", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        for axes, name in zip(panels[0], columns):
            names = dimension_names(shards.features[name], math.prod(shards.features[name]["shape"]))
            if 1 < len(names) <= MANY:
                axes.legend(names, fontsize=6, ncols=2, loc="best", framealpha=0.7)
        return plots.save(figure, path)


def _draw_column(axes, shards: StepShards, episode: Episode, name: str) -> None:
    steps = [i for i in range(episode.start, episode.start + episode.length) if shards.has(i, f"{name}.npy")]
    axes.set_ylabel(name)
    axes.locator_params(axis="x", integer=True)
    if not steps:
        return
    rows = np.stack([shards.array(i, name).ravel() for i in steps])
    if rows.shape[1] <= MANY:
        drawing = "steps-mid" if rows.dtype.kind in "iu" else "default"
        axes.plot(np.subtract(steps, episode.start), rows, lw=0.9, drawstyle=drawing)
        return
    # Each dimension by its own mean and spread: raw values of one unit would hide those of another.
    standard = (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-9)
    axes.imshow(standard.T, aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5, interpolation="nearest")
    axes.set_ylabel(f"{name}: {rows.shape[1]} dimensions")


def histograms(path, shards: StepShards, name: str) -> pathlib.Path:
    """One panel a dimension: how often which value, the 1 % and 99 % quantiles, and where bins would lie.

    Args:
      path: the PNG to write.
      shards: the split whose rows are counted, at most `SAMPLE` of them, evenly spaced.
      name: of a numeric column. Quantiles and bins come from the statistics, where it has any.
    """
    rows = _sample(shards, name)
    names = dimension_names(shards.features[name], rows.shape[1])
    shown = min(len(names), DIMENSIONS)
    columns = min(shown, 4)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(3.1 * columns, 2.1 * -(-shown // columns) + 0.5), layout="constrained")
        panels = figure.subplots(-(-shown // columns), columns, squeeze=False).ravel()
        for axes in panels[shown:]:
            axes.set_visible(False)
        for i, axes in enumerate(panels[:shown]):
            _draw_histogram(axes, rows[:, i])
            axes.set_title(f"{name} {names[i]}", loc="left")
        note = _mark(panels[:shown], shards.statistics.get(name))
        more = f", the first {shown} of {len(names)} dimensions" if shown < len(names) else ""
        words = textwrap.fill(f"{len(rows)} rows of {shards.split}{more}{note}", TITLE_WIDTH * columns)
        figure.suptitle(words, fontsize=9, x=0.01, ha="left")
        return plots.save(figure, path)


def _draw_histogram(axes, values: np.ndarray) -> None:
    if values.dtype.kind in "iu":
        levels, counts = np.unique(values, return_counts=True)
        axes.bar(levels, counts / len(values), color=plots.BAR, width=0.8)
    else:
        low, high = float(values.min()), float(values.max())
        margin = 0.02 * (high - low) or max(1e-3, abs(low) * 1e-3)
        counts, edges = np.histogram(values, bins=80, range=(low - margin, high + margin))
        axes.stairs(counts / len(values), edges, color=plots.BAR, fill=True)
    # Room for the marks of bins at the top.
    axes.set_ylim(0, 1.15 * axes.dataLim.ymax)
    axes.set_xlim(axes.get_xlim())  # bins may reach farther than what there is to see
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", nbins=4, integer=values.dtype.kind in "iu")


def _mark(panels: Sequence, summary: Mapping | None) -> str:
    """Draws quantiles and every 16th bin edge: uniform below, of equal frequency above; returns the legend."""
    if summary is None or not set(PER_DIMENSION) <= set(summary):
        return ""
    dimension_kinds, uniform = kinds(summary), ActionBins(summary)
    equal = ActionBins(summary, "equal_frequency") if "quantiles" in summary else None
    for i, axes in enumerate(panels):
        for quantile in ("q01", "q99"):
            axes.axvline(summary[quantile][i], color=plots.ACCENT, lw=0.9, ls="--")
        for bins, (bottom, top) in ((uniform, (0.0, 0.05)), (equal, (0.95, 1.0))):
            if bins is None:
                continue
            edges = bins.edges[i][:: 16 if bins.counts[i] > 32 else 1]
            axes.vlines(edges, bottom, top, transform=axes.get_xaxis_transform(), color=plots.INK, lw=0.6)
        axes.set_title(f"{axes.get_title(loc='left')}: {dimension_kinds[i]}", loc="left")
    above = ", above: of equal frequency" if equal else ""
    return f"; dashed: 1 % and 99 %; ticks below: every 16th edge of uniform bins{above}"


def _sample(shards: StepShards, name: str) -> np.ndarray:
    """At most `SAMPLE` rows of a column, evenly spaced over the split."""
    steps = spread(range(len(shards)), SAMPLE)
    return np.stack([shards.array(i, name).ravel() for i in steps if shards.has(i, f"{name}.npy")])


def spread(things: Sequence, count: int) -> list:
    """At most `count` of `things`, evenly spaced, the first and the last among them."""
    return [things[int(i)] for i in np.unique(np.linspace(0, len(things) - 1, min(count, len(things))).astype(int))]


def _steps(episode: Episode) -> list[int]:
    return spread(range(episode.length), FRAMES)


def _frames(shards: StepShards, episode: Episode, cameras: Sequence[str]) -> list[list[np.ndarray | None]]:
    """[cameras][FRAMES] images; None for what is not there."""
    rows = []
    for name in cameras:
        steps = [episode.start + step for step in _steps(episode)]
        row = [shards.image(i, name) if shards.has(i, f"{name}.jpg") else None for i in steps]
        rows.append(row + [None] * (FRAMES - len(row)))
    return rows


def caption(shards: StepShards, episode: Episode, limit: int = 100) -> str:
    """The episode in a line: its instruction, name and length."""
    text = one_line(shards.text(episode.start))
    text = f"“{text if len(text) <= limit else text[: limit - 1] + '…'}”  " if text else ""
    return f"{text}{one_line(episode.id)}, {episode.length} steps"


def _cell(frames: Sequence[np.ndarray | None]) -> tuple[int, int]:
    """Height and width in pixels of the cells that all of these fit into, at most `THUMBNAIL` high."""
    shapes = [frame.shape[:2] for frame in frames if frame is not None] or [(THUMBNAIL, THUMBNAIL)]
    height = min(THUMBNAIL, max(h for h, _ in shapes))
    return height, max(1, round(height * max(w / h for h, w in shapes)))


def thumbnail(frame: np.ndarray | None, height: int, width: int) -> np.ndarray:
    """An image uint8[H, W, 3] as uint8[height, width, 3], its proportions kept, on white; None is all white."""
    from PIL import Image

    cell = np.full((height, width, 3), 255, np.uint8)
    if frame is None:
        return cell
    scale = min(height / frame.shape[0], width / frame.shape[1])
    h, w = max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale))
    small = np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR))
    cell[(height - h) // 2 : (height - h) // 2 + h, (width - w) // 2 : (width - w) // 2 + w] = small
    return cell
