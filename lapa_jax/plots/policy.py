"""Images of what a stage-3 policy does. Files are written as in `plots`."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames

COLUMNS, DIMENSIONS, BINS = 4, 8, 40


def spread(path, recorded: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> pathlib.Path:
    """Histograms of recorded and predicted actions f32[N, A], a panel for each of the first 8 dimensions.

    Args:
      path: the PNG to write. names: of the dimensions.
    """
    shown = names[:DIMENSIONS]
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(2.6 * len(shown) + 0.4, 2.2), layout="constrained")
        for i, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
            both = np.concatenate([recorded[:, i], predicted[:, i]]).astype(np.float64)
            # A dimension that never moves has no range, and a histogram needs one.
            margin = 1e-3 * max(1e-3, np.ptp(both), abs(both).max())
            edges = np.linspace(both.min() - margin, both.max() + margin, BINS)
            axes.hist(recorded[:, i], edges, color=frames.MUTED, alpha=0.5, label="recorded")
            axes.hist(predicted[:, i], edges, color=frames.ACCENT, histtype="step", lw=1.2, label="predicted")
            axes.set_title(shown[i], loc="left")
            if i == 0:
                axes.legend(fontsize=7, frameon=False)
        return frames.save(figure, path)


def worst(path, rows: Sequence[Mapping]) -> pathlib.Path:
    """Images with their instruction and both actions.

    Args:
      path: the PNG to write.
      rows: "image" uint8 [(V,) H, W, 3], "instruction", "step", "recorded" and "predicted" f32 [A], and "names" of the
        dimensions, of which the first 8 are told.
    """
    with matplotlib.rc_context(frames.STYLE):
        lines = -(-len(rows) // COLUMNS)
        figure = Figure(figsize=(2.9 * COLUMNS, 4.0 * lines), layout="constrained")
        panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, row in zip(panels, rows):
            axes.imshow(row["image"] if row["image"].ndim == 3 else row["image"][0])
            words = "\n".join(textwrap.wrap(row["instruction"], 36)[:2])
            axes.set_title(f"{words}\nstep {row['step']}", fontsize=8, loc="left")
            pairs = zip(row["names"][:DIMENSIONS], row["recorded"], row["predicted"])
            caption = [f"{name}: {true:+.3g} / {guess:+.3g}" for name, true, guess in pairs]
            caption = "\n".join(["recorded / predicted", *caption])
            axes.text(0, -0.04, caption, fontsize=7, va="top", transform=axes.transAxes)
        return frames.save(figure, path)
