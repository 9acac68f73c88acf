"""Instructions in the dresses that datasets store them in, as one text."""

import re
from collections.abc import Sequence

_QUOTES = (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("`", "`"))
_LIKE = re.compile(r"lang|instruct|prompt|caption|sentence|command_text|task_desc|goal_text")
_VECTORS = re.compile(r"emb|feat|token|vec|mask|length|id$|ids$|lang_id|index")


def as_instruction(value: str | Sequence[str] | None) -> str:
    """An instruction as datasets store it, as one text.

    A text in a pair of quotes that holds no other such quote loses them (LIBERO). Of a list of sentences the first that
    is not empty counts; a list of words, or of single characters, is the text that they make up (LIBERO's task files).
    Nothing, and what is no text, is "".
    """
    if isinstance(value, str):
        return _without_quotes(value.strip())
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        return ""
    if len(value) > 1 and all(len(part) <= 1 for part in value):
        return as_instruction("".join(value))
    if len(value) > 1 and not any(re.search(r"\s", part.strip()) for part in value):
        return as_instruction(" ".join(part.strip() for part in value))
    return next((text for text in map(as_instruction, value) if text), "")


def _without_quotes(text: str) -> str:
    for first, last in _QUOTES:
        inside = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and first not in inside and last not in inside:
            return inside.strip()
    return text


def like_instruction(name: str) -> bool:
    """Whether a field's name says that it holds an instruction, and not numbers made from one."""
    return bool(_LIKE.search(name.lower())) and not _VECTORS.search(name.lower())
