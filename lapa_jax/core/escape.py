"""Text of others (file names, instructions, messages of clients) on its way to a terminal, a page or a spreadsheet."""

import html
import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
"""Control characters, which move the cursor, colour a terminal or end a line; what turns the direction of writing or is
not seen at all; and halves of characters, which cannot be written."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def one_line(text) -> str:
    r"""Text that shows as one line of what it says, whatever that is: a line break is the two characters \n."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def lines(text) -> str:
    """As `one_line`, of text that may have several lines: line breaks stay."""
    return "\n".join(map(one_line, str(text).split("\n")))


def say(*texts, sep: str = " ", file=None, flush: bool = False) -> None:
    """Prints texts as `print` does, each as `lines` gives it: a file name cannot command the terminal."""
    print(sep.join(map(lines, texts)), file=sys.stdout if file is None else file, flush=flush)


class LogFormatter(logging.Formatter):
    """Of logs, whose messages may name files and samples: a message is one line, a traceback below it has its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei) -> str:
        return lines(super().formatException(ei))


def warnings_to_terminal() -> None:
    """Sends what any part of the program warns of to the terminal, a message as one line with its time."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def page(text) -> str:
    """Text within the HTML of a page, and within the quotes of an attribute."""
    return html.escape(one_line(text), quote=True)


def script(value) -> str:
    """A value as JSON within a <script> element of a page, which no text in it can end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII alone
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def markdown(text) -> str:
    r"""Text within a line or a cell of Markdown: what Markdown or HTML would make something of is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$!&])", r"\\\1", one_line(text))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; the cells are Markdown already."""
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    return [line(head), "|---" * len(head) + "|", *map(line, rows)]


def cell(value):
    """A value of a CSV table: a text that a spreadsheet would compute, as "=1+1", gets a ' in front; numbers stay."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
