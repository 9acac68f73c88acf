"""Text of others on terminals, pages and in tables: the helper, and every report with hostile names."""

import contextlib
import csv
import html.parser
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapa_jax.core import escape
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.data import images
from lapa_jax.data.checks import Finding
from lapa_jax.data.shards.step_shards import ShardWriter, array_bytes, json_bytes, step_key, write_dataset
from lapa_jax.data.statistics import column_statistics
from lapa_jax.evaluate import report
from lapa_jax.plots import page
from lapa_jax.train.run import LOG, logging_to
from tools import convert, inspect_data

EVIL = '\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\u202e"$\\frac$|=1+1\r\nnext'
"""Clears a terminal and names its window, runs a script, turns the direction of writing, leaves an attribute, starts a
formula and a row, and begins a line."""


@given(st.text())
def test_one_line_is_one_line_and_says_which(text):
    shown = escape.one_line(text)
    assert shown.splitlines() in ([], [shown])
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)
    shown.encode()
    assert shown == text or any(not letter.isprintable() for letter in text)


@pytest.mark.parametrize("text", ["push the red cube", "Würfel schieben", "押す", "a/b c.mp4", "50 %, 3 < 4", "🙂"])
def test_ordinary_text_stays(text):
    assert escape.one_line(text) == escape.lines(text) == text


def test_lines_keep_their_breaks_only():
    assert escape.lines("a\n\x1b[1mb\tc") == "a\n\\x1b[1mb\\tc"


@given(st.text())
def test_a_page_shows_the_text_and_nothing_else(text):
    class Reader(html.parser.HTMLParser):
        seen, tags = "", []

        def handle_starttag(self, tag, attributes):
            self.tags = [*self.tags, (tag, dict(attributes))]

        def handle_data(self, data):
            self.seen += data

    reader = Reader()
    reader.feed(f'<p title="{escape.page(text)}">{escape.page(text)}</p>')
    shown = escape.one_line(text)
    assert reader.tags == [("p", {"title": shown})] and reader.seen == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "plain", "1", "a=b", 'say "a", b'])
def test_cells_are_text_to_a_spreadsheet(text):
    buffer = io.StringIO()
    csv.writer(buffer).writerow([escape.cell(text), escape.cell(-1.5)])
    ((first, second),) = csv.reader(io.StringIO(buffer.getvalue()))
    assert second == "-1.5" and not first.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert first.removeprefix("'") == escape.one_line(text)


def test_all_output_goes_through_it(root):
    """So that a report cannot be forgotten: nobody prints, writes HTML or CSV by himself. `lapa_jax/train` prints the
    tables of its own parameters."""
    own = {"lapa_jax/core/escape.py"}
    for path in sorted(p for folder in ("lapa_jax", "launch", "tools") for p in (root / folder).rglob("*.py")):
        name, text = str(path.relative_to(root)), path.read_text()
        if name in own or name.startswith("lapa_jax/train/"):
            continue
        assert not re.search(r"(?<![\w.`])print\(", text), f"{name}: use escape.say"
        assert "html.escape" not in text, f"{name}: use escape.page"
        if "csv.writer" in text or "csv.DictWriter" in text:
            assert "escape.cell" in text, f"{name}: use escape.cell"


def test_errors_of_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", EVIL])

    def main(argv):
        raise UserError(f"{argv[0]} does not exist")

    with pytest.raises(SystemExit):
        run_main(main)
    assert_harmless(capsys.readouterr().err)


def assert_harmless(text: str) -> None:
    """No control characters, nothing that turns the direction of writing."""
    assert all(letter.isprintable() or letter == "\n" for letter in text), repr(text)


def assert_no_script(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert_harmless(text)
    assert "<script" not in text and "&lt;script&gt;" in text


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Step shards whose every free text is hostile; the names of files are what they may be."""
    folder = tmp_path_factory.mktemp("evil") / "shards"
    rng, rows = np.random.default_rng(0), []
    with ShardWriter(folder / "train-00000.tar") as writer:
        for episode in range(2):
            for step in range(4):
                meta = {"episode": f"ep{episode}", "step": step, "length": 4, "fps": 5.0, "source": EVIL, "task": EVIL}
                image = images.encode(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8))
                members = {"image.jpg": image, "txt": f"{episode} {EVIL}".encode(), "json": json_bytes(meta)}
                if step < 3:
                    rows.append(rng.normal(size=2).astype(np.float32))
                    members["action.npy"] = array_bytes(rows[-1])
                writer.add(step_key(f"ep{episode}", step), members)
    features = {"image": {"shape": [16, 16, 3], "codec": "jpeg"}, "instruction": {"codec": "txt"},
                "action": {"shape": [2], "dtype": "float32", "names": [EVIL, f"b{EVIL}"]}}  # fmt: skip
    write_dataset(folder, features=features, fps=5.0, source={"name": EVIL, "options": {EVIL: EVIL}},
                  splits={"train": {"episodes": 2, "steps": 8, "shards": [writer.summary]}},
                  statistics={"action": column_statistics([np.stack(rows)])})  # fmt: skip
    (folder / "report.json").write_text(json.dumps({"errors": [{"path": EVIL, "error": EVIL}], "notes": {EVIL: EVIL}}))
    event = {"kind": "cut", "source": EVIL, "first": 1, "end": 1, "words": EVIL, "jpeg": EVIL}
    (folder / "filter.json").write_text(json.dumps({"rules": EVIL, EVIL: EVIL, "cut": 1, "events": [event]}))
    return folder


def test_looking_into_hostile_shards(shards, tmp_path, capsys):
    """The terminal's Markdown, the page, and images whose titles hold a $."""
    inspect_data.main([str(shards), "--out", str(tmp_path)])
    assert_harmless(capsys.readouterr().out)
    assert_no_script(tmp_path / "index.html")


def test_pages_of_hostile_texts(tmp_path):
    verdicts = [report.Verdict(EVIL, EVIL, level, EVIL) for level in (report.POOR, report.GOOD)]
    section = report.Section(EVIL, EVIL, (EVIL,), ((EVIL,), (EVIL,)), {EVIL: EVIL})
    texts = {"title": EVIL, "subtitle": EVIL, "note": EVIL}
    path = report.write(tmp_path / "r.html", **texts, verdicts=verdicts, sections=[section])
    assert_no_script(path)
    path = page.write(tmp_path / "p.html", [Finding(True, EVIL)], f"# {EVIL}\n\n- {EVIL}\n", [], None)
    assert "<script" not in path.read_text()


def test_converting_hostile_file_names(tmp_path, capsys):
    """A name of a file may hold all but a slash; these videos are none."""
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(2):
        (source / f"{number}{EVIL.replace('/', '')}.mp4").write_bytes(b"no video")
    with contextlib.suppress(SystemExit, UserError):
        convert.main([str(source), str(tmp_path / "out"), "--workers", "0", "--max_errors", "5"])
    out, err = capsys.readouterr()
    assert_harmless(out)
    with pytest.raises(UserError) as refusal:
        convert.main([str(source), str(tmp_path / "other"), "--workers", "0"])
    escape.say(refusal.value)
    assert_harmless(capsys.readouterr().out)


def test_a_line_of_the_log_cannot_command_the_terminal_or_feign_another_line(tmp_path, capsys):
    with logging_to(tmp_path):
        LOG.warning("damaged sample: %s", EVIL)
        try:
            raise ValueError(EVIL)
        except ValueError:
            LOG.exception("failed: %s", EVIL)
    shown = capsys.readouterr().err
    assert_harmless(shown)
    assert shown == (tmp_path / "log.txt").read_text("utf-8")
    # Two messages; the traceback has lines of its own, its last ones those of the error.
    assert [line.split()[1] for line in shown.splitlines() if "=1+1" in line and ":" in line[:3]] == [
        "damaged", "failed:"]  # fmt: skip
