"""Images of a latent action model: numpy arrays in, one PNG out.

Frames are `[..., H, W, 3]`, uint8 or float in [0, 1] (clipped for display). Every function writes its file atomically
and returns the path. Figures are made without pyplot: no window, no display, no global state.
"""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.core.files import atomic_path
from lapa_jax.plots.mosaic import mosaic, to_float

DPI = 110
INK, MUTED, BAR, ACCENT = "#1f2430", "#7a8194", "#3b6fb6", "#d1603d"
STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # matplotlib reads text between dollar signs as mathematics, instructions too
    "font.family": "sans-serif",
    "axes.edgecolor": "#c5cad6",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "white",
}


def frame_grid(
    path, frames: np.ndarray, columns: Sequence[str], rows: Sequence[str] = (), title: str = "", inches: float = 1.15
) -> pathlib.Path:
    """Draws `[R, C, H, W, 3]` frames as a grid with named columns and rows; `inches` is the width of one frame."""
    count_r, count_c, height, width, _ = frames.shape
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(count_c * inches + 1.0, count_r * inches * height / width + 0.8), layout="constrained")
        draw_grid(figure.subplots(), frames, columns, rows, title)
        return save(figure, path)


def draw_grid(axes, frames: np.ndarray, columns: Sequence[str], rows: Sequence[str] = (), title: str = "") -> None:
    """`frame_grid` into existing axes."""
    count_r, count_c, height, width, _ = frames.shape
    gap = max(1, width // 24)
    axes.imshow(mosaic(frames, gap), interpolation="nearest", aspect="equal")
    axes.set_xticks([c * (width + gap) + width / 2 for c in range(count_c)], columns)
    axes.set_yticks([r * (height + gap) + height / 2 for r in range(count_r)], rows or [""] * count_r)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, loc="left")


def reconstructions(
    path, first: np.ndarray, second: np.ndarray, reconstruction: np.ndarray, error_scale: float = 4.0
) -> pathlib.Path:
    """One example a row: frame, next frame, what is to be explained, reconstruction, what is left unexplained.

    Args:
      path: the PNG to write.
      first, second, reconstruction: frames `[B, H, W, 3]`.
      error_scale: how much the two absolute differences are amplified.
    """
    first, second, guess = to_float(first), to_float(second), to_float(reconstruction)
    change = np.clip(np.abs(second - first) * error_scale, 0, 1)
    error = np.clip(np.abs(second - guess) * error_scale, 0, 1)
    columns = ["frame", "next frame", f"change ×{error_scale:g}", "reconstruction", f"error ×{error_scale:g}"]
    return frame_grid(path, np.stack([first, second, change, guess, error], axis=1), columns, inches=1.5)


def code_gallery(
    path, starts: np.ndarray, decoded: np.ndarray, names: Sequence[str], rows: Sequence[str] = (), title: str = ""
) -> pathlib.Path:
    """The code gallery: a row per start frame, a column per code.

    Args:
      path: the PNG to write.
      starts: `[R, H, W, 3]`, drawn as the first column.
      decoded: `[R, C, H, W, 3]`, what becomes of `starts` under each code (or `mosaic.what_changes` of that).
      names: the C column titles.
      rows: R row titles; none if empty.
      title: of the image.
    """
    frames = np.concatenate([to_float(starts)[:, None], to_float(decoded)], axis=1)
    return frame_grid(path, frames, ["start", *names], rows, title)


def code_histograms(path, counts: np.ndarray, perplexity: Sequence[float]) -> pathlib.Path:
    """Bar charts of code shares, one panel per position.

    Args:
      path: the PNG to write.
      counts: `[N, K]`, how often each of K codes was used at each of N positions.
      perplexity: the N effective numbers of codes, for the titles.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * len(counts) + 0.4, 2.3), layout="constrained")
        draw_histograms(figure, counts, perplexity)
        return save(figure, path)


def draw_histograms(figure, counts: np.ndarray, perplexity: Sequence[float]) -> None:
    """`code_histograms` into an existing figure or part of one."""
    positions, codes = counts.shape
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panels = figure.subplots(1, positions, sharey=True, squeeze=False)[0]
    for i, axes in enumerate(panels):
        axes.bar(np.arange(codes), shares[i], color=BAR, width=0.8)
        axes.axhline(1 / codes, color=MUTED, lw=0.8, ls=":")
        axes.set_title(f"position {i}: {perplexity[i]:.1f} of {codes}", loc="left")
        axes.set_xlabel("code")
        if codes <= 16:
            axes.set_xticks(np.arange(codes))
    panels[0].set_ylabel("share")


def probe_scatter(path, predicted: np.ndarray, true: np.ndarray, r2: Sequence[float], names: Sequence[str] = ()):
    """Predicted against true net action on episodes the probe has not seen, one panel per action dimension.

    Args:
      path: the PNG to write.
      predicted, true: f32 `[M, A]`, in the units of the data's actions.
      r2: the A scores, for the titles.
      names: A names of the dimensions; numbered if empty.
    """
    dims = true.shape[1]
    columns = min(dims, 4)
    rows = -(-dims // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * columns, 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[dims:]:
            axes.set_visible(False)
        for i, axes in enumerate(panels[:dims]):
            low, high = _limits(np.concatenate([predicted[:, i], true[:, i]]))
            axes.plot([low, high], [low, high], color=MUTED, lw=0.8, ls=":")
            axes.scatter(true[:, i], predicted[:, i], s=6, alpha=0.35, color=BAR, linewidths=0, rasterized=True)
            axes.set(xlim=(low, high), ylim=(low, high), xlabel="true", aspect="equal")
            axes.set_title(f"{names[i] if len(names) else f'action {i}'}: R² {r2[i]:.2f}", loc="left")
        panels[0].set_ylabel("predicted from the codes")
        return save(figure, path)


def code_action_heatmap(path, means: np.ndarray, names: Sequence[str] = ()) -> pathlib.Path:
    """Mean net action of the pairs that carry a code, in standard deviations from the overall mean.

    Args:
      path: the PNG to write.
      means: f32 `[N, K, A]`, NaN where a code never occurs at a position (drawn grey).
      names: A names of the action dimensions; numbered if empty.
    """
    positions, codes, dims = means.shape
    limit = max(1e-6, float(np.nanmax(np.abs(means), initial=0.0)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.5 * dims * positions + 2.6, 0.34 * codes + 1.1), layout="constrained")
        panels = figure.subplots(1, positions, sharey=True, squeeze=False)[0]
        for i, axes in enumerate(panels):
            axes.set_facecolor("#e4e6ec")
            # A range that is symmetric about 0: white is the average pair.
            image = axes.imshow(means[i], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            axes.set_title(f"position {i}", loc="left")
            axes.set_xticks(np.arange(dims), names or [str(d) for d in range(dims)])
            axes.set_yticks(np.arange(codes), [f"{k}" for k in range(codes)])
            axes.set_xlabel("action dimension")
            axes.tick_params(length=0)
        panels[0].set_ylabel("code")
        figure.colorbar(image, ax=list(panels), label="mean net action (std)", shrink=0.9)
        return save(figure, path)


def code_action_arrows(path, means: np.ndarray, counts: np.ndarray, labels: Sequence[str], names=("0", "1")):
    """Mean net action of each code sequence as an arrow in the plane of two action dimensions; width is frequency.

    Args:
      path: the PNG to write.
      means: f32 `[C, 2]`, in the units of the data's actions.
      counts: `[C]`.
      labels: the C code sequences.
      names: the two dimensions.
    """
    reach = max(1e-9, float(np.abs(means).max(initial=0.0))) * 1.25
    share = counts / max(1, counts.max(initial=1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 5.0), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color="#e4e6ec", lw=0.8, zorder=0)
        axes.axvline(0, color="#e4e6ec", lw=0.8, zorder=0)
        for (x, y), s, label in zip(means, share, labels, strict=True):
            arrow = {"arrowstyle": "-|>", "color": BAR, "lw": 0.6 + 2.4 * s, "alpha": 0.35 + 0.6 * s, "shrinkB": 0}
            axes.annotate("", xy=(x, y), xytext=(0, 0), arrowprops=arrow)
            axes.annotate(label, xy=(x, y), fontsize=7, color=INK, ha="left" if x >= 0 else "right")
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.set(xlabel=f"mean net action {names[0]}", ylabel=f"mean net action {names[1]}")
        return save(figure, path)


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1e-3
    return low - margin, high + margin


def save(figure: Figure, path) -> pathlib.Path:
    """Writes a figure as PNG, atomically."""
    path = pathlib.Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path
