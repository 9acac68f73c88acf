"""Images of tokenizers of numeric columns: decoded against true sequences, and how the codes are used."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames
from lapa_jax.plots.ranking import ranked

DIMENSIONS, POSITIONS = 8, 24
TRUE = {"color": frames.MUTED, "lw": 2.4, "alpha": 0.6, "label": "true"}
DECODED = {"color": frames.ACCENT, "lw": 1.1, "label": "decoded"}


def trajectories(path, rows, scale: np.ndarray, names: Sequence[str]) -> str:
    """Draws the best, the median and the worst sequence, a panel for each dimension.

    Args:
      path: the PNG to write. rows: `Rows`. scale: f[A], see `ranked`. names: of the dimensions.

    Returns:
      A sentence on what is left out, or the empty string.
    """
    each, chosen = ranked(rows.true, rows.decoded, rows.mask, scale)
    spread = np.divide(rows.true[rows.mask].std(0), scale, out=np.zeros(len(scale)), where=scale > 0)
    shown = np.sort(np.argsort(-spread, kind="stable")[:DIMENSIONS])
    low, high = rows.true[rows.mask].min(0), rows.true[rows.mask].max(0)
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(2.1 * len(shown) + 0.8, 1.7 * len(chosen) + 0.4), layout="constrained")
        panels = figure.subplots(len(chosen), len(shown), squeeze=False, sharex="row", sharey="col")
        words = ["best", "median", "worst"] if len(chosen) == 3 else [f"{i}" for i in range(len(chosen))]
        for line, (i, word) in enumerate(zip(chosen.tolist(), words)):
            steps = np.flatnonzero(rows.mask[i])
            for panel, dimension in zip(panels[line], shown.tolist()):
                for values, style in ((rows.true, TRUE), (rows.decoded, DECODED)):
                    panel.plot(steps, values[i, steps, dimension], marker=None if len(steps) > 1 else "o", **style)
                panel.tick_params(labelsize=6)
                if line == 0:
                    panel.set_title(names[dimension], loc="left")
            # of the whole range of a dimension, so that an error looks as large as it is
            for panel, dimension in zip(panels[line], shown.tolist()):
                panel.update_datalim([(steps[0], value) for value in (low[dimension], high[dimension])])
                panel.autoscale_view()
            where = f"episode {rows.episode[i]}, step {rows.step[i]}"
            panels[line, 0].set_ylabel(f"{word}\n{where}\nerror {each[i]:.2g}", fontsize=7)
        panels[0, 0].legend(fontsize=6, frameon=False)
        frames.save(figure, path)
    left = len(names) - len(shown)
    return f" The {left} dimensions that move least are left out." if left else ""


def usage(path, codes: np.ndarray, positions: Sequence[Mapping]) -> pathlib.Path:
    """Draws the share of each code at each code position, in order of frequency.

    Args:
      path: the PNG to write. codes: int[M, N].
      positions: of `lapa_jax.nn.quantizers.usage.positions`; the first 24 are drawn.
    """
    positions = positions[:POSITIONS]
    columns = min(6, len(positions))
    rows = -(-len(positions) // columns)
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(2.4 * columns, 1.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in panels[len(positions) :]:
            unused.set_visible(False)
        for i, (panel, position) in enumerate(zip(panels, positions)):
            share = np.sort(np.bincount(codes[:, i], minlength=position["size"]))[::-1] / len(codes)
            panel.fill_between(np.arange(len(share)), share, step="mid", color=frames.BAR, lw=0)
            panel.axhline(1 / position["size"], color=frames.MUTED, lw=0.8, ls=":")
            panel.set_title(f"{position['name']}: {position['perplexity']:.1f} of {position['size']}", loc="left")
            panel.set_ylim(bottom=0)
        return frames.save(figure, path)


def usage_table(positions: Sequence[Mapping]) -> tuple[tuple[str, ...], ...]:
    """Code usage as a table with its head."""
    rows = [(p["name"], str(p["size"]), str(p["used"]), str(p["dead"]), f"{p['utilization']:.0%}",
             f"{p['perplexity']:.1f}") for p in positions]  # fmt: skip
    return (("code position", "codes", "used", "dead", "utilisation", "perplexity"), *rows)
