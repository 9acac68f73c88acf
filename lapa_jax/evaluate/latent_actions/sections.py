"""Which images a latent action model's report shows, and what each is there to tell."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.evaluate.latent_actions.feature_colors import Coloured
from lapa_jax.evaluate.latent_actions.gallery import names, typical
from lapa_jax.evaluate.report import Section
from lapa_jax.nn.quantizers import usage
from lapa_jax.nn.quantizers.usage import perplexity
from lapa_jax.plots import deltas
from lapa_jax.plots import frames as plots
from lapa_jax.plots.mosaic import to_float, what_changes

EXAMPLES, STARTS, SEQUENCES, ARROWS = 8, 4, 8, 16
CANDIDATES = 64
COLOURED = (
    " This model predicts features of patches, not pixels. What is shown of them here and below are their three "
    "principal components as red, green and blue: like colours are like features."
)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Frame pairs to show.

    Attributes:
      view: the model, or what shows the features that it predicts as images.
      frames: uint8 `[B, 2, H, W, 3]`.
      shown: f32 `[B, 2, H, W, 3]`, what the model sees of them: the same, or their features as images.
      reconstructions: f32 `[B, H, W, 3]`, the model's second frames from the first frames and the latent actions.
    """

    view: object
    frames: np.ndarray
    shown: np.ndarray
    reconstructions: np.ndarray


def choose_examples(tokenizer, source, count: int = EXAMPLES) -> Examples:
    """Of pairs spread evenly over the source those in which most changes, so that there is something to see."""
    # Few candidates: to read every pair of a large set for eight to show would take minutes.
    picked = np.unique(np.linspace(0, len(source) - 1, min(CANDIDATES, len(source))).astype(int))
    frames = np.stack([source[int(i)]["frames"] for i in picked])
    change = np.abs(to_float(frames[:, 1]) - to_float(frames[:, 0])).mean(axis=(1, 2, 3))
    most = np.sort(np.argsort(-change, kind="stable")[:count])
    frames = frames[most]
    view = tokenizer if tokenizer.predicts_images else Coloured(tokenizer, frames.reshape(-1, *frames.shape[2:]))
    shown = np.stack([view.observe(frames[:, i]) for i in range(2)], axis=1)
    return Examples(view, frames, shown, view.decode(frames[:, 0], view.encode(frames)))


def decode_grid(tokenizer, starts: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Applies each of C latent actions to each of R start frames: f32 `[R, C, H, W, 3]`."""
    count = len(latents)
    frames = tokenizer.decode(np.repeat(starts, count, axis=0), np.concatenate([latents] * len(starts)))
    return frames.reshape(len(starts), count, *frames.shape[1:])


def draw(examples: Examples, arrays: Mapping[str, np.ndarray], out: pathlib.Path) -> list[Section]:
    """Draws what needs no actions: reconstructions, a gallery, the deltas; of codes also what each position does, and
    how often each occurs.

    Args:
      examples: pairs to show.
      arrays: of the evaluated pairs "delta" f32 `[M, N, Q]`, and "codes" int32 `[M, N]` where there are codes.
      out: the folder for the PNGs.

    Returns:
      The report's sections, in order.
    """
    first, tokenizer, codes = examples.frames[:, 0], examples.view, arrays.get("codes")
    plots.reconstructions(
        out / "reconstructions.png", examples.shown[:, 0], examples.shown[:, 1], examples.reconstructions
    )
    deltas.maps(out / "deltas.png", arrays["delta"], codes)
    drawn = [
        Section(
            "Reconstructions",
            f"The decoder sees the first frame and the {_latents(arrays)} only. A good model leaves less error than "
            f"the change. Shown are the {len(first)} pairs with most change out of pairs spread evenly over the held-"
            "out episodes."
            + (COLOURED if isinstance(tokenizer, Coloured) else ""),
            ("reconstructions.png",),
        ),
        _gallery(tokenizer, first[:: max(1, len(first) // STARTS)][:STARTS], arrays, out),
    ]
    if codes is None:
        words = ("What the decoder gets, a dot for each pair, each vector in the plane of its two largest principal "
                 "components. Separate clouds are few motions, for which codes would do.")  # fmt: skip
        return [*drawn, Section("Deltas", words, ("deltas.png",))]
    counts = usage.histogram(codes, tokenizer.codebook_size)
    plots.code_histograms(out / "histograms.png", counts, [perplexity(row) for row in counts])
    return [
        *drawn,
        _positions(tokenizer, first[len(first) // 2], codes, out),
        Section(
            "Code usage",
            "How often each code occurs at each position, and the effective number of codes (perplexity); dotted: all "
            "codes equally often. Usage is not meaning: codes that follow noise are used evenly too.",
            ("histograms.png",),
        ),
        Section(
            "Deltas",
            "What is quantised at each code position, a dot for each pair, in the plane of the two largest principal "
            "components; the colour is the code. Separate clouds are codes that the data ask for; one cloud cut into "
            "sectors is something continuous, which few codes can only describe roughly.",
            ("deltas.png",),
        ),
    ]


def _latents(arrays: Mapping[str, np.ndarray]) -> str:
    return "codes" if "codes" in arrays else "deltas"


def _gallery(tokenizer, starts: np.ndarray, arrays: Mapping[str, np.ndarray], out: pathlib.Path) -> Section:
    latents, shares = typical(arrays, SEQUENCES)
    columns = [f"{name}\n{share:.0%}" for name, share in zip(names(latents), shares)]
    decoded = decode_grid(tokenizer, starts, latents)
    plots.code_gallery(out / "gallery.png", starts, decoded, columns)
    changed, scale = what_changes(decoded)
    title = f"minus the row's mean, ×{scale:.0f}"
    plots.code_gallery(out / "gallery_change.png", starts, changed, columns, title=title)
    applied = f"one delta, the centre of one of {len(latents)} clusters of all deltas,"
    if "codes" in arrays:
        occurring = len(usage.sequences(arrays["codes"])[0])
        applied = f"one code sequence, the {len(latents)} most frequent of {occurring} that occur,"
    return Section(
        "Code gallery" if "codes" in arrays else "Gallery of deltas",
        f"Each column applies {applied} to the start frame on the left. If {_latents(arrays)} mean actions, a column "
        "does the same in every row. Below: the same minus the mean of the row, amplified, so that only what the "
        "choice of the latent action changes is left.",
        ("gallery.png", "gallery_change.png"),
    )


def _positions(tokenizer, start: np.ndarray, codes: np.ndarray, out: pathlib.Path) -> Section:
    size, length = tokenizer.codebook_size, tokenizer.code_length
    shown = np.arange(size) if size <= 16 else np.unique(np.linspace(0, size - 1, 16).astype(int))
    base = usage.sequences(codes)[0][0]
    # All other positions keep the codes of the most frequent sequence.
    sequences = np.tile(base, (length, len(shown), 1))
    for position in range(length):
        sequences[position, :, position] = shown
    decoded = decode_grid(tokenizer, start[None], sequences.reshape(-1, length))[0]
    changed, scale = what_changes(decoded.reshape(length, len(shown), *decoded.shape[1:]))
    starts = np.repeat(start[None], length, axis=0)
    rows = [f"position {i}" for i in range(length)]
    title = f"from {usage.name(base)}, minus the row's mean, ×{scale:.0f}"
    plots.code_gallery(out / "gallery_positions.png", starts, changed, [f"code {k}" for k in shown], rows, title)
    return Section(
        "One position at a time",
        f"The most frequent sequence {usage.name(base)} with one position (row) set to each code (column): what each "
        "position controls. A grey row is a position that the decoder ignores.",
        ("gallery_positions.png",),
    )


def draw_probe(title: str, probe: Mapping[str, np.ndarray], out: pathlib.Path) -> Section:
    """Draws the probe's scatter: "predicted" and "true" f32 `[P, A]` of the scored half, "r2" f32 `[A]`."""
    plots.probe_scatter(out / "probe.png", probe["predicted"], probe["true"], probe["r2"])
    return Section(
        title,
        "A ridge regression from one-hot codes, or from deltas where there are no codes, to the net action over the "
        "gap, fitted on one half of the held-out episodes and shown on the other. Points on the dotted line are "
        "perfect; a flat cloud says nothing.",
        ("probe.png",),
    )


def draw_actions(codes: np.ndarray, actions: np.ndarray, codebook_size: int, out: pathlib.Path) -> Section:
    """Draws which actions go with which codes.

    Args:
      codes: int32 `[M, N]`.
      actions: f32 `[M, A]`, net actions of the same pairs.
      codebook_size: K.
      out: the folder for the PNGs.
    """
    means = usage.mean_action_per_code(codes, actions, codebook_size)
    plots.code_action_heatmap(out / "code_action.png", means)
    images = ["code_action.png"]
    if actions.shape[1] >= 2:
        images.append(_arrows(codes, actions, out))
    return Section(
        "Codes against actions",
        "Mean net action of the pairs that carry each code, in standard deviations; white: like the average pair. "
        "Arrows: the most frequent sequences in the plane of the first two action dimensions, thicker if frequent.",
        tuple(images),
    )


def _arrows(codes: np.ndarray, actions: np.ndarray, out: pathlib.Path) -> str:
    distinct, often = usage.sequences(codes)
    means = usage.mean_action_per_sequence(codes, actions[:, :2], distinct[:ARROWS])
    labels: Sequence[str] = [usage.name(s) for s in distinct[:ARROWS]]
    plots.code_action_arrows(out / "code_action_arrows.png", means, often[:ARROWS], labels)
    return "code_action_arrows.png"
