"""One image of a run: how training went, what the model reconstructs, what its codes do, and which are used."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.evaluate.latent_actions.gallery import names, typical
from lapa_jax.evaluate.latent_actions.sections import Examples, decode_grid
from lapa_jax.nn.quantizers import usage
from lapa_jax.nn.quantizers.usage import perplexity
from lapa_jax.plots import frames
from lapa_jax.plots.mosaic import to_float, what_changes

ROWS, SEQUENCES = 4, 6
# metric, title, value of a model that has learned nothing
CURVES = (
    ("val/psnr_gain", "PSNR over copying the first frame, dB", 0.0),
    ("val/feature_gain", "gain over copying the features, dB", 0.0),
    ("val/swap_gap", "error added by other pairs' codes", 0.0),
    ("val/perplexity", "codes in use per position", 1.0),
    ("val/action_probe_r2", "R² from codes to the action", 0.0),
)
OF_DELTAS = ("val/action_probe_r2_delta", "R² from deltas to the action", 0.0)
"""The same of a model without codes."""


def draw(path, examples: Examples, arrays: Mapping[str, np.ndarray], history: Sequence[Mapping]) -> pathlib.Path:
    """Draws the image.

    Args:
      path: the PNG to write.
      examples: pairs to show; the first four are drawn.
      arrays: of held-out pairs "codes" int32 `[M, N]`, or where there are none "delta" f32 `[M, N, Q]`.
      history: the lines of `metrics.jsonl`; curves that it does not hold are left out.

    Returns:
      `path`.
    """
    shown = CURVES if "codes" in arrays else (*CURVES, OF_DELTAS)
    curves = [(title, base, _curve(history, name)) for name, title, base in shown]
    # Runs on data without actions have no probe, and models of features no PSNR.
    curves = [curve for curve in curves if len(curve[2])]
    with matplotlib.rc_context(frames.STYLE):
        heights = [2.4 if curves else 0.1, 5.8, 2.2 if "codes" in arrays else 0.1]
        figure = Figure(figsize=(12, sum(heights)), layout="constrained")
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
        _draw_curves(top, curves)
        left, right = middle.subfigures(1, 2, width_ratios=[3, SEQUENCES])
        _draw_examples(left, examples)
        _draw_gallery(right, examples, typical(arrays, SEQUENCES)[0])
        if "codes" in arrays:
            counts = usage.histogram(arrays["codes"], examples.view.codebook_size)
            frames.draw_histograms(bottom, counts, [perplexity(row) for row in counts])
        return frames.save(figure, path)


def _curve(history: Sequence[Mapping], name: str) -> np.ndarray:
    """`[S, 2]` steps and values of a metric."""
    points = [(line["step"], line[name]) for line in history if line.get(name) is not None]
    return np.array(points, np.float64).reshape(-1, 2)


def _draw_curves(figure, curves) -> None:
    if not curves:
        return
    for axes, (title, base, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves):
        axes.axhline(base, color=frames.MUTED, lw=0.8, ls=":")
        axes.plot(points[:, 0], points[:, 1], color=frames.BAR, marker="o", ms=3)
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")


def _draw_examples(figure, examples: Examples) -> None:
    shown = np.concatenate([examples.shown[:ROWS], to_float(examples.reconstructions[:ROWS])[:, None]], axis=1)
    names = ["frame", "next frame", "reconstruction"]
    frames.draw_grid(figure.subplots(), shown, names, title="pairs in which much changes")


def _draw_gallery(figure, examples: Examples, latents: np.ndarray) -> None:
    changed, scale = what_changes(decode_grid(examples.view, examples.frames[:ROWS, 0], latents))
    title = f"what each latent action does to the frame (minus the row's mean, ×{scale:.0f})"
    frames.draw_grid(figure.subplots(), changed, names(latents), title=title)
