"""The page is one file that needs no other, and holds what it was given, whatever characters that has."""

import base64
import html.parser
import io
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lapa_jax.data import images
from lapa_jax.data.checks import Finding
from lapa_jax.plots import page

STRIP = base64.b64encode(images.encode(np.full((32, 96, 3), 200, np.uint8))).decode()
MARKDOWN = "# set <1>\n\n| a | b \\| c |\n|---|---|\n| 1 | <b> |\n\n## Head\n\nwords\n\n- one\n- two & three\n"


class Reader(html.parser.HTMLParser):
    """Collects what a browser would: text by tag, classes, sources; and that tags are closed in order."""

    EMPTY = ("meta", "img", "br", "link", "input")

    def __init__(self):
        super().__init__()
        self.texts, self.tags, self.sources, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))


def read(path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == [], "every tag is closed"
    return reader


def draw(path) -> None:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)


def test_everything_is_in_it_and_nothing_beside_it(tmp_path):
    draw(tmp_path / "contact_sheet.png")
    event = {"kind": "cut", "source": "a<b>.mp4", "first": 7, "end": 7, "words": "", "jpeg": STRIP}
    like = {"kind": "duplicate", "source": "c.mp4", "first": 0, "end": 9, "words": "like a", "jpeg": STRIP}
    filtered = {"rules": "cuts=2", "cut": 12, "duplicate": 1, "frames of duplicate": 9, "events": [event, like]}
    found = [Finding(True, "x < y & z"), Finding(False, "fine")]
    path = page.write(tmp_path / "index.html", found, MARKDOWN, [tmp_path / "contact_sheet.png"], filtered)
    reader = read(path)
    assert ("h1", "set <1>") in reader.texts and ("h2", "1 warning") in reader.texts
    assert [text for tag, text in reader.texts if tag == "li"] == ["x < y & z", "fine", "one", "two & three"]
    assert [attributes.get("class") for tag, attributes in reader.tags if tag == "li"][:2] == ["warning", None]
    assert [text for tag, text in reader.texts if tag == "th"] == ["rule", "times", "frames left out", "a", "b | c"]
    assert [text for tag, text in reader.texts if tag == "td"][:5] == ["Scene cuts", "12", "Near-duplicates", "1", "9"]
    assert ("td", "<b>") in reader.texts and ("p", "words") in reader.texts and ("p", "cuts=2") in reader.texts
    captions = [text for tag, text in reader.texts if tag == "figcaption"]
    assert captions == ["a<b>.mp4: frame 7", "c.mp4: frames 0 to 8, like a"]
    assert ("h3", "Scene cuts, the first 1 of 12") in reader.texts and ("h3", "Near-duplicates") in reader.texts
    kinds = []
    for source in reader.sources:
        kind, _, data = re.fullmatch(r"data:image/(png|jpeg)(;base64),(.*)", source, re.DOTALL).groups()
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        kinds.append(kind)
    assert kinds == ["png", "jpeg", "jpeg"] and not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    assert [p.name for p in tmp_path.iterdir()].count("index.html") == 1 and len(list(tmp_path.iterdir())) == 2


def test_it_holds_in_a_browser(browser, tmp_path):
    Image.new("RGB", (1600, 200), "navy").save(tmp_path / "wide.png")
    event = {"kind": "cut", "source": "a<b>.mp4" * 20, "first": 7, "end": 7, "words": "", "jpeg": STRIP}
    filtered = {"rules": "cuts=2" * 40, "cut": 12, "events": [event] * 5}
    table = "\n".join(["| " + " | ".join(f"column_{i}_of_many" for i in range(14)) + " |"] * 3)
    path = page.write(tmp_path / "index.html", [Finding(True, "x" * 300)], f"{MARKDOWN}\n{table}\n",
                      [tmp_path / "wide.png"], filtered)  # fmt: skip
    assert browser.check(path).requests() == [path.as_uri()]


def test_a_wide_table_has_a_soft_edge_where_it_goes_on(browser, tmp_path):
    table = "\n".join(["| " + " | ".join(f"column_{i}_of_many" for i in range(14)) + " |"] * 3)
    path = page.write(tmp_path / "index.html", [], f"# set\n\n## Table\n\n{table}\n", [], None)
    opened = browser.open(path, 390)

    def edges(scrolled: str) -> list[bool]:
        """Whether the left and the right edge of the table differ from the page below its text."""
        opened.run(f"document.querySelector('.scroll').scrollLeft = {scrolled}")
        left, top, width = opened.run("(r => [r.left, r.top, r.width])"
                                      "(document.querySelector('.scroll').getBoundingClientRect())")  # fmt: skip
        opened.picture(tmp_path / "page.png")
        pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
        scale = pixels.shape[1] / 390
        row = int((top + 3) * scale)
        ends = [pixels[row, int((left + 1) * scale)], pixels[row, int((left + width - 2) * scale)]]
        return [bool((255 - end.astype(int)).max() > 20) for end in ends]

    assert edges("0") == [False, True] and edges("99999") == [True, False] and edges("200") == [True, True]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.text(max_size=30))
def test_no_text_becomes_part_of_the_page(tmp_path_factory, texts, name):
    folder = tmp_path_factory.getbasetemp()
    event = {"kind": "still", "source": name, "first": 1, "end": 4, "words": name, "jpeg": f'"><script>{STRIP}'}
    found = [Finding(False, text) for text in texts]
    table = "\n".join(["# t", "| a |", "|---|", *(f"| {' '.join(t.split()).replace('|', '')} |" for t in texts)])
    path = page.write(folder / "any.html", found, table, [], {"rules": name, "events": [event]})
    reader = read(path)
    allowed = "html head meta title style body main section h1 h2 h3 ul li table tr th td p div figure img figcaption"
    assert {tag for tag, _ in reader.tags} <= set(allowed.split())
    assert sum(tag == "li" for tag, _ in reader.tags) == len(texts)
