"""The command line of commands: a mistake in it is one line, as all else that a user can mend."""

import argparse
from collections.abc import Iterator, Sequence

from lapa_jax.core.errors import UserError, did_you_mean

OVERRIDE = "--config."
"""How overrides of configs begin, which `core.config` reads."""


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `UserError` where that one prints its usage and ends the program.

    An option that does not exist is named with the nearest one that does.
    """

    def error(self, message: str):
        """See `argparse.ArgumentParser`."""
        raise UserError(f"{message}; --help lists what there is")

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """See `argparse.ArgumentParser`."""
        parsed, rest = self.parse_known_args(args, namespace)
        check_options(self, rest, parsed)
        if rest:
            raise UserError(f"'{rest[0]}' is no argument of this command; --help lists what there is")
        return parsed


def check_options(
    parser: argparse.ArgumentParser, rest: Sequence[str], parsed: argparse.Namespace | None = None
) -> None:  # fmt: skip
    """Refuses what looks like an option among the arguments that a parser did not know, but overrides of configs."""
    for text in rest:
        if text.startswith("-") and not text.startswith(OVERRIDE):
            option = text.partition("=")[0]
            raise UserError(f"there is no option {option}{did_you_mean(option, set(_options(parser, parsed)))}")


def _options(parser: argparse.ArgumentParser, parsed: argparse.Namespace | None) -> Iterator[str]:
    """The options of a command, and of the subcommand that was given."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            yield from _options(action.choices[getattr(parsed, action.dest)], parsed)
