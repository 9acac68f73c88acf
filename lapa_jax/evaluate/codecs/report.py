"""A comparison of codecs as Markdown and as images; the figures come from `measures.measure`."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.evaluate.codecs.chunks import ActionChunks
from lapa_jax.evaluate.codecs.measures import Curve, curves
from lapa_jax.plots.frames import INK, MUTED, STYLE, save

NOTES = """\
- *Bits*: tokens × log2(vocabulary). *Coded*: bits with an entropy coder that knows the frequencies of the
  training chunks.
- Everything was fitted on the training split. Errors are on held-out chunks that do not overlap.
- *Normalised error*: root mean square over all dimensions that are not constant; 1 is half the range from q01 to q99 of
  the training data (for dimensions with two values or rare movements: from minimum to maximum).
- *Fail*: number of chunks whose own tokens do not decode; then the share of chunks that do not decode if one token is
  wrong.
- *µs*: microseconds a chunk, for one chunk at a time / for 64 together; medians of calls on one thread. They are noisy
  and depend on the machine.
"""

MARKERS = "osD^vP*Xh<>"


def markdown(results: Sequence[tuple[ActionChunks, Sequence[Mapping], str]]) -> str:
    """The whole page: for each (chunks, figures, name of the plot's file) its tables and its plot."""
    parts = ["# Action tokenizers compared", "", NOTES]
    for chunks, measured, plot in results:
        shown = [one for one in measured if one["usual"] or one["learned"]]
        parts += [f"## {chunks.name}", "", describe(chunks), "", *summary_table(shown), ""]
        parts += [f"{len(measured)} settings were measured; the table has the usual and the learned ones.", "",
                  f"![error against bits, {chunks.name}]({plot})", ""]  # fmt: skip
        parts += ["Error of each dimension, root mean square / mean absolute, in the data's units:", ""]
        parts += [*dimension_table(shown, chunks.dimensions), ""]
        if equal := equal_bits_table(measured):
            parts += [EQUAL_BITS, "", *equal, ""]
    return "\n".join(parts)


EQUAL_BITS = """\
Normalised error at the bits of each learned tokenizer. For the other codecs it is interpolated between the best
settings just below and above these bits; in brackets, the bits that they need for the learned tokenizer's error."""


def describe(chunks: ActionChunks) -> str:
    """One sentence on the data."""
    counts = chunks.counts
    lasting = "" if chunks.seconds is None else f" ({chunks.length * chunks.seconds:.2g} s)"
    clock = "It has no clock: bits are per step. " if chunks.seconds is None else ""
    repeated = (f" {counts['repeated_episodes']} episodes of val are in train too and were left out."
                if counts["repeated_episodes"] else "")  # fmt: skip
    return (
        f"{counts['chunks']} held-out chunks of {chunks.length} steps{lasting} from {counts['episodes']} episodes; "
        f"{counts['steps_left_over']} of their {counts['steps']} steps are left over at the end of episodes. Fitted on "
        f"{counts['train_episodes']} episodes. {clock}{_grippers(chunks)}{repeated}"
    )


def _grippers(chunks: ActionChunks) -> str:
    grippers = [f"{chunks.dimensions[i]} ({', '.join(f'{level:g}' for level in levels)})"
            for i, levels in chunks.grippers.items()]  # fmt: skip
    return f"Grippers: {', '.join(grippers)}." if grippers else "No dimension is known to be a gripper."


def summary_table(measured: Sequence[Mapping]) -> list[str]:
    """Lines of a Markdown table, a codec each."""
    clocked = all(one["bits_per_second"] is not None for one in measured)
    unit = "second" if clocked else "step"
    head = ["codec", "tokens", f"bits a {unit}", "coded", "normalised error", "gripper right", "fail", "encode µs",
            "decode µs"]  # fmt: skip
    rows = []
    for one in measured:
        micro = [" / ".join(f"{value:.0f}" for value in one["microseconds"][k].values()) for k in ("encode", "decode")]
        gripper = "" if one["gripper_accuracy"] is None else f"{one['gripper_accuracy']:.1%}"
        failing = f"{one['failures']}, {one['failures_damaged']:.0%}"
        rows.append([one["name"], f"{one['tokens']:.1f}", f"{one[f'bits_per_{unit}']:.1f}",
                     f"{one[f'coded_bits_per_{unit}']:.1f}", f"{one['normalized_rmse']:.4f}", gripper, failing,
                     *micro])  # fmt: skip
    return _table(head, rows)


def dimension_table(measured: Sequence[Mapping], dimensions: Sequence[str]) -> list[str]:
    """Lines of a Markdown table: RMSE / MAE / 99th percentile / maximum of the absolute errors of each dimension, in
    the data's units."""
    keys = ("rmse", "mae", "p99_error", "max_error")
    rows = [[one["name"], *(" / ".join(f"{value:.2g}" for value in values)
                            for values in zip(*(one[key] for key in keys), strict=True))]
            for one in measured]  # fmt: skip
    return _table(["codec", *dimensions], rows)


def equal_bits_table(measured: Sequence[Mapping]) -> list[str]:
    """Lines of a Markdown table: each learned codec against the best of each other family; none without learned ones.

    Bold is what is lower than all others in its row.
    """
    learned = [one for one in measured if one["learned"]]
    if not learned:
        return []
    others = curves([one for one in measured if not one["learned"]])
    rows = []
    for one in learned:
        error, bits = one["normalized_rmse"], one["bits_per_step"]
        # Interpolated between settings: hardly any has exactly the bits of the learned one.
        at = {name: curve.error_at(bits) for name, curve in others.items()}
        least = min([error, *(value for value in at.values() if value is not None)])
        cells = [_against(value, others[name].bits_at(error), least) for name, value in at.items()]
        rows.append([one["name"], f"{bits:.2f}", _bold(error, least), *cells])
    return _table(["learned", "bits a step", "its error", *others], rows)


def _against(error: float | None, bits: float | None, least: float) -> str:
    shown = "too few bits" if error is None else _bold(error, least)
    return f"{shown} ({'never' if bits is None else f'{bits:.2f}'})"


def _bold(error: float, least: float) -> str:
    return f"**{error:.4f}**" if error <= least else f"{error:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def plot(path, chunks: ActionChunks, measured: Sequence[Mapping]) -> pathlib.Path:
    """Draws error against bits: a line through the best settings of each family, all settings as pale points."""
    by_second = chunks.seconds is not None
    factor = 1 / chunks.seconds if by_second else 1.0
    # The ticks of logarithmic axes are mathematics.
    with matplotlib.rc_context({**STYLE, "text.parse_math": True}):
        figure = Figure(figsize=(8.2, 4.8), layout="constrained")
        axes = figure.subplots()
        lines = curves(measured)
        learned = {one["family"] for one in measured if one["learned"]}
        colours = matplotlib.colormaps["tab10"].colors
        for number, (family, curve) in enumerate(lines.items()):
            colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
            ours = [m for m in measured if m["family"] == family]
            _draw_family(axes, ours, curve, factor, colour, marker, family, family in learned)
        axes.set(xscale="log", yscale="log", xlabel=f"bits a {'second' if by_second else 'step'}",
                 ylabel="normalised error (RMS)")  # fmt: skip
        axes.set_title(f"{chunks.name}: {len(chunks.val)} held-out chunks of {chunks.length} steps", loc="left",
                       parse_math=False)
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.grid(color="#e4e6ec", lw=0.6)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return save(figure, path)


def _draw_family(axes, ours: Sequence[Mapping], curve: Curve, factor: float, colour, marker, name, learned) -> None:
    bits = np.array([one["bits_per_step"] for one in ours]) * factor
    # A lossless codec has the error 0, which a logarithmic axis cannot show.
    errors = np.maximum([one["normalized_rmse"] for one in ours], 1e-6)
    axes.scatter(bits, errors, s=10, color=colour, alpha=0.25, linewidths=0, zorder=2)
    width, size = (2.4, 7) if learned else (1.3, 4)
    axes.plot(curve.bits * factor, np.maximum(curve.errors, 1e-6), color=colour, marker=marker, ms=size, lw=width,
              label=name, zorder=4 if learned else 3)  # fmt: skip


def _plain_ticks(axis) -> None:
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set_tick_params(colors=MUTED)
