"""The code blocks of a page of the documentation, so that tests can run them as they stand there."""

import pathlib
import re
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([\w./-]+\.\w+)`:?\s*\Z")


class Block(NamedTuple):
    """A fenced block. `file`: the name that the line above it ends with in backticks, as `` `reach.py`: ``, or None."""

    language: str
    file: str | None
    text: str


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a Markdown page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(match[1], name[1] if (name := NAMED.search(text[: match.start()])) else None, match[2])
            for match in FENCE.finditer(text)]  # fmt: skip


def write_files(page: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Writes the blocks that have a file name into a folder; their names."""
    named = [block for block in blocks(page) if block.file]
    for block in named:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    return [block.file for block in named]
