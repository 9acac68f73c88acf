"""Commands that a test starts, and what they print."""

import re
from collections.abc import Callable, Sequence

import pytest

from lapa_jax.core.errors import run_main


def error_of(stderr: str) -> str:
    """The line of an error, the last one. Before it there are lines with the time, on how far the command had come."""
    *said, error = stderr.splitlines()
    assert error.startswith("error: ") and all(re.match(r"\d\d:\d\d:\d\d ", line) for line in said), stderr
    return error


def refusal(main: Callable[[list[str]], None], arguments: Sequence, capsys: pytest.CaptureFixture) -> str:
    """The one line in which a launcher's `main(argv)` refuses arguments with exit code 2; nothing is on stdout.

    As its file ends, but within this process: importing jax takes longer than most refusals.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_main(lambda _: main([str(argument) for argument in arguments]))
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "", printed
    return error_of(printed.err)
