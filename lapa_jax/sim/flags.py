"""Command-line flags for the options of simulators, from what each simulator declares."""

import argparse
import typing
from collections.abc import Callable, Sequence

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError
from lapa_jax.sim.env import env_class, options_of, simulators


def add_options(add: Callable, argv: Sequence[str], skip: Sequence[str] = ()) -> tuple[str, ...]:
    """Adds a flag for each option of this package's simulators, and of the one that `argv` names with --env.

    A flag that is not given is None or False: the simulator's default counts.

    Args:
      add: `add_argument` of a parser or group. skip: options for which the command has a flag already.

    Returns:
      The names of the options that were added.
    """
    only_env = Parser(add_help=False, allow_abbrev=False)
    only_env.add_argument("--env", default="")
    env = only_env.parse_known_args(list(argv))[0].env
    names = [*simulators(), *([env] if env.endswith(".py") else [])]
    added: dict[str, None] = {}
    for made in map(env_class, names):
        for name, parameter in options_of(made).items():
            if name in added or name in skip:
                continue
            kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
            kind = next((kind for kind in (int, float) if kind in kinds), str)
            how = {"action": "store_true"} if bool in kinds else {"type": kind}
            try:
                add(f"--{name}", help=made.help.get(name), **how)
            except argparse.ArgumentError:
                raise UserError(f"option '{name}' of {env} is a flag of this command already; rename it") from None
            added[name] = None
    return tuple(added)
