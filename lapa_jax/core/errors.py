"""Errors that are meant for the user: one clear line that names the thing, the value and the remedy."""

import sys
from collections.abc import Callable

from lapa_jax.core.allocator import keep_freed_memory

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. Launchers print it as one line and exit with code 2, without a traceback."""


class ConfigError(UserError):
    """A config file, key or value that cannot be used."""


def did_you_mean(word: str, known) -> str:
    """Returns "; did you mean 'x'?" for the closest of `known`, else the list of what is known."""
    import difflib

    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def run_main(main: Callable[[list[str]], None]) -> None:
    """Runs a launcher's `main(argv)` and turns a `UserError` into one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
