"""What commands that a test starts print."""

import re


def error_of(stderr: str) -> str:
    """The line of an error, the last one. Before it there are lines with the time, on how far the command had come."""
    *said, error = stderr.splitlines()
    assert error.startswith("error: ") and all(re.match(r"\d\d:\d\d:\d\d ", line) for line in said), stderr
    return error
