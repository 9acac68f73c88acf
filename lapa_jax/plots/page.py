"""One HTML file that shows a data set: findings first, then tables, images, and what a filter did. Nothing else is
needed to look at it: styles and images lie in it, and there is no script."""

import base64
import pathlib
import re
from collections.abc import Mapping, Sequence

from lapa_jax.core import escape
from lapa_jax.core.files import atomic_path
from lapa_jax.data.checks import Finding

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2430; max-width: 1200px; margin: 24px auto; padding: 0 16px }
h1 { font-size: 26px } h2 { font-size: 20px; margin-top: 34px; border-bottom: 1px solid #dde1ea; padding-bottom: 4px }
h3 { font-size: 16px }
table { border-collapse: collapse; margin: 10px 0; display: block; overflow-x: auto }
td, th { border: 1px solid #dde1ea; padding: 3px 9px; text-align: left; font-variant-numeric: tabular-nums }
th { background: #f4f6fa } tr:first-child th:empty { display: none }
.findings { list-style: none; padding: 0 } .findings li { padding: 7px 12px; margin: 5px 0; background: #f6f8fb;
  border-left: 4px solid #b9c1d1 } .findings li.warning { border-color: #d1603d; background: #fdf1ec }
li, p, td, figcaption { overflow-wrap: anywhere }
img { max-width: 100% } figure { margin: 12px 0 } figcaption { color: #5b6478; font-size: 13px }
.strips { display: flex; flex-wrap: wrap; gap: 12px } .strips figure { margin: 0; max-width: 400px }
.strips img { image-rendering: auto; border: 1px solid #dde1ea; display: block }
"""

KINDS = {
    "cut": ("Scene cuts", "The episode is split before the third image."),
    "still": ("Still stretches", "First, middle and last frame; what lies between is left out."),
    "blank": ("Blank stretches", "Black frames, or frames of one colour, are left out."),
    "short": ("Short pieces", "Left out: what is left between other cuts is too short."),
    "small": ("Small images", "Left out: the source's images have too few pixels."),
    "duplicate": ("Near-duplicates", "Left out: it is like an earlier piece."),
}


def write(
    path: pathlib.Path,
    findings: Sequence[Finding],
    markdown: str,
    images: Sequence[pathlib.Path],
    filtered: Mapping | None,
) -> pathlib.Path:
    """Writes the page.

    Args:
      path: of the HTML file. findings: shown first.
      markdown: the description, as `lapa_jax.data.contents` writes it; its first line is the title.
      images: files to show, in this order. filtered: `filter.json` of a conversion.
    """
    parts = [_findings(findings), "<h2>What it looks like</h2>", *map(_figure, images)]
    parts += [_filtered(filtered)] if filtered else []
    title, _, description = markdown.partition("\n")
    return _save(path, title, [*parts, "<h2>Contents</h2>", to_html(description)])


def simple(path: pathlib.Path, markdown: str, images: Sequence[pathlib.Path]) -> pathlib.Path:
    """Writes a page of images and of Markdown, whose first line is the title."""
    title, _, rest = markdown.partition("\n")
    return _save(path, title, [*map(_figure, images), to_html(rest)])


def _save(path: pathlib.Path, title: str, parts: Sequence[str]) -> pathlib.Path:
    title = escape.page(title.lstrip("# "))
    parts = [f"<h1>{title}</h1>", *parts]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}</style></head>\n<body>\n"
    with atomic_path(path) as temporary:
        temporary.write_text(page + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")
    return path


def _findings(findings: Sequence[Finding]) -> str:
    items = (
        f"<li{' class=warning' if finding.warning else ''}>{escape.page(finding.text)}</li>" for finding in findings
    )
    count = sum(finding.warning for finding in findings)
    words = f"{count} warning{'s' * (count != 1)}" if count else "No warnings"
    return f"<h2>{words}</h2>\n<ul class=findings>\n" + "\n".join(items) + "\n</ul>"


def _figure(path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape.page(path.stem.replace("_", " "))
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def _filtered(filtered: Mapping) -> str:
    """What `tools/convert.py --filter` did: counts, and strips of small frames by the reason."""
    counts = {name: count for name, count in filtered.items() if name not in ("rules", "events")}
    rows = "".join(
        f"<tr><td>{title}</td><td>{counts[kind]}</td><td>{counts.get(f'frames of {kind}', '')}</td></tr>"
        for kind, (title, _) in KINDS.items() if kind in counts
    )  # fmt: skip
    of_all = f" on {counts['episodes of the source']} episodes" if "episodes of the source" in counts else ""
    parts = [f"<h2>What the filter did</h2><p>{escape.page(filtered['rules'])}{of_all}</p>"]
    parts += [f"<table><tr><th>rule</th><th>times</th><th>frames left out</th></tr>{rows}</table>"] if rows else []
    for kind, (title, words) in KINDS.items():
        events = [event for event in filtered["events"] if event["kind"] == kind]
        if not events:
            continue
        shown = f", the first {len(events)} of {counts[kind]}" if counts.get(kind, 0) > len(events) else ""
        strips = "\n".join(map(_strip, events))
        parts.append(f"<h3>{title}{escape.page(shown)}</h3><p>{words}</p>\n<div class=strips>\n{strips}\n</div>")
    return "\n".join(parts)


def _strip(event: Mapping) -> str:
    first, end = event["first"], event["end"]
    where = f"frame {first}" if first == end else f"frames {first} to {end - 1}"
    words = f", {event['words']}" if event["words"] else ""
    caption = escape.page(f"{event['source']}: {where}{words}")
    # base64 has no sign that means something in HTML; whatever else a file may hold must not become part of the page
    data = re.sub(r"[^A-Za-z0-9+/=]", "", event["jpeg"])
    image = f'<img alt="{caption}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def to_html(markdown: str) -> str:
    """The Markdown that this package writes itself: headings, tables, lists and paragraphs."""
    parts, lines = [], markdown.split("\n")
    while lines:
        line = lines.pop(0)
        if line.startswith("#"):
            level = len(line) - len(line.lstrip("#"))
            parts.append(f"<h{level}>{escape.page(line.lstrip('# '))}</h{level}>")
        elif line.startswith("|"):
            rows = [line]
            while lines and lines[0].startswith("|"):
                rows.append(lines.pop(0))
            parts.append(_table(rows))
        elif line.startswith("- "):
            items = [line]
            while lines and lines[0].startswith("- "):
                items.append(lines.pop(0))
            parts.append("<ul>" + "".join(f"<li>{escape.page(item[2:])}</li>" for item in items) + "</ul>")
        elif line.strip():
            parts.append(f"<p>{escape.page(line)}</p>")
    return "\n".join(parts)


def _table(lines: Sequence[str]) -> str:
    """Rows of cells between bars; a bar in a cell is written with a backslash. The second line only draws a rule."""
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    head = "".join(f"<th>{escape.page(cell)}</th>" for cell in cells[0])
    rows = ("".join(f"<td>{escape.page(cell)}</td>" for cell in row) for row in cells[2:])
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
