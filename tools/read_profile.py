"""Where the time of traced steps goes: python tools/read_profile.py RUN [--longest 10].

RUN is a run folder that was trained with --config.train.profile='(20, 5)', which traces 5 steps from step 20 on. It
prints the shares of matrix products, other operations, collectives that nothing hides, waiting for data and idle time,
of every host, and the longest operations. The traces in RUN/profile also open in Perfetto and TensorBoard.
"""

import argparse

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--longest", type=int, default=10, help="how many operations are listed; 10 by default")
    args = parser.parse_args(argv)
    if args.longest < 0:
        raise UserError(f"--longest {args.longest} must be 0 or more")

    # After the checks: importing jax takes seconds.
    startup.say(f"reading the traces of {args.run}")
    from lapa_jax.train import profile_report

    say(profile_report.as_text(profile_report.read(args.run), args.longest))


if __name__ == "__main__":
    run_main(main)
