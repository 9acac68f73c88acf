"""The evaluation's web page: one HTML file with its images in it, no script and no network; videos lie beside it."""

import base64
import dataclasses
import pathlib
from collections.abc import Sequence

from lapa_jax.core import escape
from lapa_jax.core.files import atomic_path

GOOD, POOR, NOTE = "good", "poor", "note"
"""Levels of a verdict."""
Rows = Sequence[tuple[str, str]]

_CSS = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #4a5164; --ground: #f6f7f9; --card: #fff; --line: #e1e4ea;
  --good: #1c7a4a; --poor: #b3381f; --note: #6b7285; --warning: #fdf1ee; --warning-line: #f0c4b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ef; --soft: #b3b9c7; --ground: #14161c; --card: #1d2029;
  --line: #333846; --good: #63c68f; --poor: #f08d75; --note: #98a0b3; --warning: #35211c; --warning-line: #6b3a2d; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0; }
main { max-width: 1100px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 4px; }
h1, h2, p, td, th, li, summary, figcaption { overflow-wrap: anywhere; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 80ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 20px; margin-top: 20px; }
figure { margin: 12px 0 0; } figcaption { font-size: 12px; color: var(--note); }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
.videos { display: flex; flex-wrap: wrap; gap: 8px; } video { width: 240px; max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
.scroll td, .scroll th { overflow-wrap: normal; }
td.value { white-space: nowrap; font-variant-numeric: tabular-nums; }
.about td:first-child { white-space: nowrap; color: var(--note); width: 1%; }
summary { cursor: pointer; margin: 8px 0; }
code { font: 13px ui-monospace, monospace; }
.good { color: var(--good); } .poor { color: var(--poor); } .note { color: var(--note); }
.warning { background: var(--warning); border-color: var(--warning-line); } .warning li { margin: 4px 0; }
@media (max-width: 600px) {
  main { padding: 16px 10px 40px; } section { padding: 14px; }
  .metrics tr { display: grid; grid-template-columns: 1.2em 1fr auto; border-bottom: 1px solid var(--line); }
  .metrics td { border: 0; padding: 4px; } .metrics td:last-child { grid-column: 2 / -1; color: var(--soft); }
  .about tr { display: block; border-bottom: 1px solid var(--line); padding: 4px 0; }
  .about td { display: block; border: 0; padding: 0 4px; }
}
@media print {
  :root { --ink: #000; --soft: #333; --ground: #fff; --card: #fff; --line: #bbb; --note: #444; }
  main { max-width: none; padding: 0; } section { break-inside: avoid; border: 0; padding: 0; }
  video { display: none; } details > * { display: block; }
}
"""

_MARKS = {"good": "✓", "poor": "✗", "note": "·"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the report's table.

    Attributes:
      metric: the name in metrics.json.
      shown: the value, formatted with its unit.
      level: "good", "poor" or "note" (a figure without a bar).
      words: what it says.
    """

    metric: str
    shown: str
    level: str
    words: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of the page: a sentence or two, a table (its first row is the head), then images and videos (file
    names relative to the page); images that lie there become part of the page."""

    title: str
    text: str
    images: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    videos: tuple[str, ...] = ()


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
    poor = [v for v in verdicts if v.level == POOR]
    parts = [f"<h1>{escape.page(title)}</h1><p>{escape.page(subtitle)}</p>"]
    parts += [_about(about, *compared)] if about else []
    if poor:
        items = "".join(
            f"<li><code>{escape.page(v.metric)}</code> {escape.page(f'{v.shown}: {v.words}')}</li>" for v in poor
        )
        parts.append(f'<section class="warning"><h2>Not good enough yet</h2><ul>{items}</ul></section>')
    path = pathlib.Path(path)
    parts += [_table(verdicts, note), *(_section(section, path.parent) for section in sections)]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape.page(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _table(verdicts: Sequence[Verdict], note: str) -> str:
    rows = "".join(
        f'<tr><td class="{v.level}">{_MARKS[v.level]}</td><td><code>{escape.page(v.metric)}</code></td>'
        f'<td class="value">{escape.page(v.shown)}</td><td>{escape.page(v.words)}</td></tr>'
        # Figures with a bar first; the sort is stable, so that each group keeps its order.
        for v in sorted(verdicts, key=lambda v: v.level == NOTE)
    )
    return f'<section><h2>Metrics</h2><p>{escape.page(note)}</p><table class="metrics">{rows}</table></section>'


def _about(about: Rows, config: str, differing: Rows) -> str:
    """The head of the page: the run, and how its config differs from the published one."""
    rows = lambda pairs: "".join(  # noqa: E731
        f"<tr><td>{escape.page(name)}</td><td>{escape.page(value)}</td></tr>" for name, value in pairs
    )
    words = f"{len(differing)} keys differ from {config}" if differing else f"The config is that of {config}."
    table = f'<table class="about">{rows(differing)}</table>'
    details = f"<details><summary>{escape.page(words)}</summary>{table}</details>" if differing else f"<p>{words}</p>"
    return f'<section><h2>The run</h2><table class="about">{rows(about)}</table>{details if config else ""}</section>'


def _section(section: Section, folder: pathlib.Path) -> str:
    rows = [f"<tr>{''.join(f'<{cell}>{escape.page(text)}</{cell}>' for text in row)}</tr>"
            for row, cell in zip(section.table, ["th", *["td"] * len(section.table)])]  # fmt: skip
    table = f'<div class="scroll"><table>{"".join(rows)}</table></div>' if rows else ""
    images = "".join(_image(folder, name, section.title) for name in section.images)
    videos = "".join(f"<figure>{_video(name)}<figcaption>{escape.page(name)}</figcaption></figure>"
                     for name in section.videos)  # fmt: skip
    videos = f'<div class="videos">{videos}</div>' if videos else ""
    text = f"<h2>{escape.page(section.title)}</h2><p>{escape.page(section.text)}</p>"
    return f"<section>{text}{table}{images}{videos}</section>"


def _image(folder: pathlib.Path, name: str, title: str) -> str:
    """An image within the page, so that the file alone can be sent to somebody."""
    try:
        source = f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"
    except (OSError, ValueError):  # a name may be anything
        source = escape.page(name)
    caption = f"<figcaption>{escape.page(name)}</figcaption>"
    return f'<figure><img src="{source}" alt="{escape.page(title)}">{caption}</figure>'


def _video(name: str) -> str:
    return f'<video src="{escape.page(name)}" controls loop muted playsinline></video>'
