"""The evaluation's web page: one HTML file with its images, short videos and what draws its curves in it."""

import base64
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from lapa_jax.core import escape
from lapa_jax.evaluate import metric_words
from lapa_jax.plots import page, zoom
from lapa_jax.plots.curves import Panels

GOOD, POOR, NOTE = "good", "poor", "note"
"""Levels of a verdict."""
Rows = Sequence[tuple[str, str]]
VIDEO = 2_000_000
"""Bytes of a video that becomes part of the page; of episodes in simulation a tenth is usual."""

_MARKS = {"good": "✓", "poor": "✗", "note": "·"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the report's table.

    Attributes:
      metric: the name in metrics.json.
      shown: the value, formatted with its unit.
      level: "good", "poor" or "note" (a figure without a bar).
      words: what it says; where empty, the page has those of `metric_words`.
    """

    metric: str
    shown: str
    level: str
    words: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of the page: a sentence or two, a table, images, videos.

    Attributes:
      images: names of PNG files beside the page, which become part of it.
      table: its first row is the head.
      videos: {name of an mp4 file, relative to the page: caption}; those of at most `VIDEO` bytes become part of it.
      curves: curves that zoom; `images` are then what is printed and what readers without scripts see.
    """

    title: str
    text: str
    images: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    videos: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curves: Panels = dataclasses.field(default_factory=dict)


def write(
    path, *, title: str, subtitle: str, verdicts: Sequence[Verdict], sections: Sequence[Section],
    note: str = "Held-out episodes, hard codes.", about: Rows = (), compared: tuple[str, Rows] = ("", ()),
) -> pathlib.Path:  # fmt: skip
    """Writes the page atomically.

    Args:
      path: the HTML file; the images of `sections` lie in the same folder.
      title, subtitle: the head of the page (plain text; it is escaped).
      verdicts: the rows of the metrics table; those that are "poor" are repeated at the top.
      sections: what follows the table. note: a sentence above the table on what its numbers are measured on.
      about: (what, its value) of the run. compared: the config that it departs from, and (key, how) of what differs.
      Both are as of `provenance`.

    Returns:
      `path`.
    """
    path = pathlib.Path(path)
    parts = [f"<p>{escape.page(subtitle)}</p>"]
    parts += [_about(about, *compared)] if about else []
    poor = [v for v in verdicts if v.level == POOR]
    if poor:
        items = "".join(
            f"<li><code>{escape.page(v.metric)}</code> {escape.page(f'{v.shown}: {v.words}')}</li>" for v in poor
        )
        parts.append(f'<section class="warning"><h2>Not good enough yet</h2><ul>{items}</ul></section>')
    parts += [_table(verdicts, note), *(_section(section, path.parent) for section in sections)]
    return page.save(path, title, parts, curves=any(section.curves for section in sections))


def _table(verdicts: Sequence[Verdict], note: str) -> str:
    # Figures with a bar first; the sort is stable, so that each group keeps its order.
    ranked = sorted(verdicts, key=lambda v: v.level == NOTE)
    parts = [v for v in ranked if v.level == NOTE and metric_words.is_part(v.metric)]
    whole = _rows([v for v in ranked if v not in parts])
    words = f"{len(parts)} figures of single code positions, dimensions and datasets"
    details = f"<details><summary>{words}</summary>{_rows(parts)}</details>" if parts else ""
    return f"<section><h2>Metrics</h2><p>{escape.page(note)}</p>{whole}{details}</section>"


def _rows(verdicts: Sequence[Verdict]) -> str:
    rows = "".join(
        f'<tr><td class="{v.level}">{_MARKS[v.level]}</td><td><code>{escape.page(v.metric)}</code></td>'
        f'<td class="value">{escape.page(v.shown)}</td>'
        f"<td>{escape.page(v.words or metric_words.of(v.metric))}</td></tr>"
        for v in verdicts
    )
    return f'<table class="metrics">{rows}</table>'


def _about(about: Rows, config: str, differing: Rows) -> str:
    """The head of the page: the run, and how its config differs from the published one."""
    rows = lambda pairs: "".join(  # noqa: E731
        f"<tr><td>{escape.page(name)}</td><td>{escape.page(value)}</td></tr>" for name, value in pairs
    )
    keys = "1 key differs" if len(differing) == 1 else f"{len(differing)} keys differ"
    words = f"{keys} from {config}" if differing else f"The config is that of {config}."
    table = f'<table class="about">{rows(differing)}</table>'
    details = f"<details><summary>{escape.page(words)}</summary>{table}</details>" if differing else f"<p>{words}</p>"
    return f'<section><h2>The run</h2><table class="about">{rows(about)}</table>{details if config else ""}</section>'


def _section(section: Section, folder: pathlib.Path) -> str:
    rows = [f"<tr>{''.join(f'<{cell}>{escape.page(text)}</{cell}>' for text in row)}</tr>"
            for row, cell in zip(section.table, ["th", *["td"] * len(section.table)])]  # fmt: skip
    table = f'<div class="scroll"><table>{"".join(rows)}</table></div>' if rows else ""
    images = "".join(_image(folder, name, section.title) for name in section.images)
    images = zoom.html(section.curves, images) if section.curves else images
    videos = "".join(_video(folder, name, caption) for name, caption in section.videos.items())
    videos = f'<div class="videos">{videos}</div>' if videos else ""
    text = f"<h2>{escape.page(section.title)}</h2><p>{escape.page(section.text)}</p>"
    return f"<section>{text}{table}{images}{videos}</section>"


def _image(folder: pathlib.Path, name: str, title: str) -> str:
    try:
        return page.figure(folder / name, title, caption=name)
    except (OSError, ValueError):  # a name may be anything
        name = escape.page(name)
        return f'<figure><img src="{name}" alt="{escape.page(title)}"><figcaption>{name}</figcaption></figure>'


def _video(folder: pathlib.Path, name: str, caption: str) -> str:
    source, file = escape.page(name), folder / name
    if file.is_file() and file.stat().st_size <= VIDEO:
        source = f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"
    video = f'<video src="{source}" controls loop muted playsinline></video>'
    return f"<figure>{video}<figcaption>{escape.page(caption)}</figcaption></figure>"
