"""The evaluation's web page: one HTML file that shows the PNGs lying beside it, no script and no network."""

import dataclasses
import pathlib
from collections.abc import Sequence

from lapa_jax.core import escape
from lapa_jax.core.files import atomic_path

GOOD, POOR, NOTE = "good", "poor", "note"
"""Levels of a verdict."""

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; background: #f6f7f9; margin: 0; }
main { max-width: 1100px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: #4a5164; max-width: 80ch; }
section { background: white; border: 1px solid #e1e4ea; border-radius: 8px; padding: 20px; margin-top: 20px; }
video { width: 240px; margin: 12px 8px 0 0; } img { max-width: 100%; height: auto; display: block; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 6px 10px; border-bottom: 1px solid #eceef2; vertical-align: top; }
td.value { white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; }
.good { color: #1c7a4a; } .poor { color: #b3381f; } .note { color: #7a8194; }
.warning { background: #fdf1ee; border-color: #f0c4b8; } .warning li { margin: 4px 0; }
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
    names relative to the page)."""

    title: str
    text: str
    images: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    videos: tuple[str, ...] = ()


def write(
    path, *, title: str, subtitle: str, verdicts: Sequence[Verdict], sections: Sequence[Section],
    note: str = "Held-out episodes, hard codes.",
) -> pathlib.Path:  # fmt: skip
    """Writes the page atomically.

    Args:
      path: the HTML file; the images of `sections` lie in the same folder.
      title, subtitle: the head of the page (plain text; it is escaped).
      verdicts: the rows of the metrics table; those that are "poor" are repeated at the top.
      sections: what follows the table. note: a sentence above the table on what its numbers are measured on.

    Returns:
      `path`.
    """
    poor = [v for v in verdicts if v.level == POOR]
    parts = [f"<h1>{escape.page(title)}</h1><p>{escape.page(subtitle)}</p>"]
    if poor:
        items = "".join(
            f"<li><code>{escape.page(v.metric)}</code> {escape.page(f'{v.shown}: {v.words}')}</li>" for v in poor
        )
        parts.append(f'<section class="warning"><h2>Not good enough yet</h2><ul>{items}</ul></section>')
    parts += [_table(verdicts, note), *map(_section, sections)]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape.page(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = pathlib.Path(path)
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
    return f"<section><h2>Metrics</h2><p>{escape.page(note)}</p><table>{rows}</table></section>"


def _section(section: Section) -> str:
    rows = [f"<tr>{''.join(f'<{cell}>{escape.page(text)}</{cell}>' for text in row)}</tr>"
            for row, cell in zip(section.table, ["th", *["td"] * len(section.table)])]  # fmt: skip
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    media = "".join(f'<img src="{escape.page(p)}" alt="{escape.page(section.title)}">' for p in section.images)
    media += "".join(f'<video src="{escape.page(p)}" controls loop muted></video>' for p in section.videos)
    return f"<section><h2>{escape.page(section.title)}</h2><p>{escape.page(section.text)}</p>{table}{media}</section>"
