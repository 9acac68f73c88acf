"""Images of what a stage-2 policy predicts. Files are written as in `plots`."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from lapa_jax.plots import frames

COLUMNS = 4


def imagined(path, rows: Sequence[Mapping]) -> pathlib.Path:
    """What codes lead to: a line for each example, its image, as the policy sees it, and the frames of the codes.

    Args:
      path: the PNG to write. rows: "image" uint8 [H, W, 3], "instruction", and under further names, the titles of their
        columns, images f32 [H, W, 3] in [0, 1].
    """
    titles = [name for name in rows[0] if name not in ("image", "instruction")]
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(2.2 * (1 + len(titles)), 2.5 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), 1 + len(titles), squeeze=False)
        for line, row in zip(panels, rows):
            for axes, name in zip(line, ("image", *titles)):
                axes.set_axis_off()
                axes.imshow(row[name])
            words = textwrap.wrap(row["instruction"], 34)[:2]
            line[0].set_title("\n".join(words), fontsize=8, loc="left")
            for axes, title in zip(line[1:], titles):
                axes.set_title(title, fontsize=8, loc="left")
        return frames.save(figure, path)


def examples(path, rows: Sequence[Mapping]) -> pathlib.Path:
    """Images with their instruction, the true and the predicted codes.

    Args:
      path: the PNG to write. rows: "image" uint8 [H, W, 3], "instruction", "codes" and "predicted" int [N].
    """
    with matplotlib.rc_context(frames.STYLE):
        lines = -(-len(rows) // COLUMNS)
        figure = Figure(figsize=(2.7 * COLUMNS, 3.5 * lines), layout="constrained")
        panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, row in zip(panels, rows):
            axes.imshow(row["image"])
            axes.set_title("\n".join(textwrap.wrap(row["instruction"], 34)[:3]), fontsize=8, loc="left")
            rows_of_codes = {"true": row["codes"], "predicted": row["predicted"]}
            for line, (word, codes) in enumerate(rows_of_codes.items()):
                axes.text(0.0, -0.07 - 0.09 * line, word, fontsize=8, transform=axes.transAxes)
                for position, code in enumerate(codes.tolist()):
                    wrong = code != row["codes"][position]
                    color = frames.ACCENT if wrong else frames.INK
                    axes.text(0.45 + 0.1 * position, -0.07 - 0.09 * line, str(code), fontsize=9, color=color,
                              weight="bold" if wrong else "normal", transform=axes.transAxes)  # fmt: skip
        return frames.save(figure, path)
