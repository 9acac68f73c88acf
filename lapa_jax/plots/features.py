"""Images of a feature tokenizer: its categories, what each level uses, what comes back."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.models.tokenizers.feature_vq.layout import LEVELS, Layout
from lapa_jax.plots import frames

NAMED = 60
"""Up to how many features the heat map names."""


def category_heat_map(path, feature: np.ndarray, layout: Layout, names: Sequence[str]) -> None:
    """Draws the absolute correlation of all features that vary, category after category.

    Args:
      path: the PNG to write. feature: f32[M, F], standardised, 0 for constants. names: of the F features.
    """
    order = [i for group in layout.groups for i in group]
    std = feature.std(0)
    standard = (feature - feature.mean(0)) / np.where(std > 0, std, 1)
    table = np.abs(standard.T @ standard / len(standard))[np.ix_(order, order)]
    ends = np.cumsum([len(group) for group in layout.groups])
    side = min(12.0, 3.2 + 0.12 * len(order))
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(table, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        for start, end in zip([0, *ends[:-1]], ends):
            box = {"fill": False, "edgecolor": "white", "linewidth": 1.4}
            axes.add_patch(matplotlib.patches.Rectangle((start - 0.5, start - 0.5), end - start, end - start, **box))
        middles = [(start + end - 1) / 2 for start, end in zip([0, *ends[:-1]], ends)]
        axes.set_xticks(middles, [f"{c}" for c in range(len(ends))])
        axes.set_xlabel("category")
        shown = [names[i] for i in order] if len(order) <= NAMED else []
        axes.set_yticks(range(len(shown)), shown, fontsize=5)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="|correlation|", shrink=0.8)
        frames.save(figure, path)


def level_utilization(path, codes: np.ndarray, layout: Layout) -> None:
    """Draws for each category and level how many of its codes occur, and how evenly.

    Args:
      path: the PNG to write. codes: int[M, categories x levels].
    """
    used, even = np.zeros((2, len(layout.groups), LEVELS))
    words = np.empty(used.shape, object)
    for i, size in enumerate(layout.flat_sizes):
        category_level = divmod(i, LEVELS)
        share = np.bincount(codes[:, i], minlength=size) / len(codes)
        real = share[share > 0]
        used[category_level] = len(real) / size
        even[category_level] = np.exp(-np.sum(real * np.log(real))) / size
        words[category_level] = f"{len(real)}/{size}"
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(7.4, 1.3 + 0.3 * len(used)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, table, title in zip(panels, (used, even), ("share of codes that occur", "perplexity / codes")):
            image = axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_title(title, loc="left")
            axes.set_xticks(range(LEVELS), [f"level {i}" for i in range(LEVELS)])
            axes.set_yticks(range(len(used)), [f"category {c}" for c in range(len(used))])
            axes.tick_params(length=0)
            for c, level in np.ndindex(*table.shape):
                text = words[c, level] if table is used else f"{table[c, level]:.2f}"
                colour = "white" if table[c, level] > 0.6 else frames.INK
                axes.text(level, c, text, ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=list(panels), shrink=0.9)
        frames.save(figure, path)


def category_quality(path, feature: np.ndarray, reconstruction: np.ndarray, layout: Layout) -> None:
    """Draws the share of the variance that comes back, for each feature (dots) and category (bars).

    Args:
      path: the PNG to write. feature, reconstruction: f32[M, F], standardised.
    """
    error = np.square(feature - reconstruction).mean(0)
    variance = np.maximum(feature.var(0), 1e-12)
    kept = 1 - error / variance
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(1.6 + 0.55 * max(6, len(layout.groups)), 3.0), layout="constrained")
        axes = figure.subplots()
        for c, group in enumerate(layout.groups):
            varies = [i for i in group if variance[i] > 1e-9]
            if varies:
                axes.bar(c, 1 - error[varies].sum() / variance[varies].sum(), color=frames.BAR, width=0.7)
                spread = np.linspace(-0.25, 0.25, len(varies) + 2)[1:-1]
                axes.scatter(c + spread, np.maximum(kept[varies], 0), s=9, color=frames.ACCENT, zorder=3)
        axes.axhline(0.9, color=frames.MUTED, lw=0.8, ls=":")
        axes.set(ylim=(0, 1.02), xlabel="category", ylabel="variance that comes back")
        axes.set_xticks(range(len(layout.groups)))
        frames.save(figure, path)
