"""One HTML file that needs nothing else: styles, images and, where there are curves, what draws them lie in it. The
page of a data set has findings first, then tables, images, and what a filter did."""

import base64
import pathlib
import re
from collections.abc import Mapping, Sequence

from lapa_jax.core import escape
from lapa_jax.core.files import atomic_path
from lapa_jax.data.checks import Finding
from lapa_jax.plots import zoom
from lapa_jax.plots.curves import Panels

STYLE = pathlib.Path(__file__).with_name("page.css")

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
    title, _, description = markdown.partition("\n")
    parts = [_findings(findings), _section("<h2>What it looks like</h2>", *map(figure, images))]
    parts += [_section(_filtered(filtered))] if filtered else []
    return save(path, title.lstrip("# "), [*parts, _section("<h2>Contents</h2>", to_html(description))])


def compare(path: pathlib.Path, markdown: str, panels: Panels, still: pathlib.Path | None) -> pathlib.Path:
    """Writes a page of curves, which zoom, and of Markdown, whose first line is the title.

    Args:
      path: of the HTML file. panels: see `curves.Panels`; none: `still` is None. still: the image of the curves.
    """
    title, _, rest = markdown.partition("\n")
    parts = [_section(zoom.html(panels, figure(still)))] if still else []
    tables = [_section(to_html(f"## {part}")) for part in rest.split("\n## ")[1:]]
    return save(path, title.lstrip("# "), [*parts, *tables], curves=bool(parts))


def save(path: pathlib.Path, title: str, parts: Sequence[str], curves: bool = False) -> pathlib.Path:
    """Writes a page atomically: its title (plain text), then parts of HTML. curves: some are of `zoom.html`."""
    title, body = escape.page(title), "\n".join(parts)
    style = (zoom.style() if curves else "") + STYLE.read_text(encoding="utf-8")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>\n'
        f"<body><main>\n<h1>{title}</h1>\n{body}\n</main>{zoom.scripts() if curves else ''}</body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def figure(path: pathlib.Path, title: str = "", caption: str = "") -> str:
    """An image within the page, so that the file alone can be sent to somebody.

    Args:
      path: of a PNG. title: what it shows, the file's name by default. caption: a line below it.

    Raises:
      OSError: it cannot be read.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    below = f"<figcaption>{escape.page(caption)}</figcaption>" if caption else ""
    alt = escape.page(title or path.stem.replace("_", " "))
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">{below}</figure>'


def _section(*parts: str) -> str:
    return "<section>" + "\n".join(parts) + "</section>"


def _findings(findings: Sequence[Finding]) -> str:
    items = (
        f"<li{' class=warning' if finding.warning else ''}>{escape.page(finding.text)}</li>" for finding in findings
    )
    count = sum(finding.warning for finding in findings)
    words = f"{count} warning{'s' * (count != 1)}" if count else "No warnings"
    return _section(f"<h2>{words}</h2>\n<ul class=findings>", *items, "</ul>")


def _filtered(filtered: Mapping) -> str:
    """What `tools/convert.py --filter` did: counts, and strips of small frames by the reason."""
    counts = {name: count for name, count in filtered.items() if name not in ("rules", "events")}
    rows = "".join(
        f"<tr><td>{title}</td><td>{counts[kind]}</td><td>{counts.get(f'frames of {kind}', '')}</td></tr>"
        for kind, (title, _) in KINDS.items() if kind in counts
    )  # fmt: skip
    of_all = f" on {counts['episodes of the source']} episodes" if "episodes of the source" in counts else ""
    parts = [f"<h2>What the filter did</h2><p>{escape.page(filtered['rules'])}{of_all}</p>"]
    head = "<tr><th>rule</th><th>times</th><th>frames left out</th></tr>"
    parts += [f'<div class="scroll"><table>{head}{rows}</table></div>'] if rows else []
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
    lines = "".join(f"<tr>{row}</tr>" for row in (head, *rows))
    return f'<div class="scroll"><table>{lines}</table></div>'
