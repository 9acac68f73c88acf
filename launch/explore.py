"""Explores a run on a local page: clicks codes and rolls them out, asks a policy what it does with an instruction.

python launch/explore.py --run RUN [--data DATA] [--split val] [--port 8800] [--host 127.0.0.1]

Says "ready" with the address of the page; Ctrl-C ends it.
"""

import argparse

from lapa_jax.core import escape, startup, web
from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.data.shards.step_shards import read_dataset


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.pairs is not None and args.pairs < 1:
        raise UserError(f"--pairs {args.pairs} must be 1 or more")
    web.check_address(args.host, args.port)
    web.need_aiohttp()
    if args.data is not None:
        read_dataset(args.data)

    # After the checks: importing jax takes seconds, and a typing error should be told at once.
    startup.begin(f"exploring {args.run}")
    import lapa_jax
    from lapa_jax.explore.options import Options, refuse
    from lapa_jax.inference import kinds
    from lapa_jax.inference.load import check_data, kind_of_run

    kind = kind_of_run(args.run)
    if kind.explorer is None:
        explored = ", ".join(sorted(f"a {kind.noun}" for kind in kinds.KINDS.values() if kind.explorer))
        raise UserError(f"{args.run} holds a {kind.noun}, for which there is no page; give the run of {explored}")
    options = Options(args.data, args.split, args.pairs, args.tokenizer, args.dataset)
    refuse(args.run, kind, options)
    check_data(args.run, args.data, args.split)
    if args.tokenizer is not None:
        kind_of_run(args.tokenizer)  # whether there is one
    from lapa_jax.explore import server

    escape.warnings_to_terminal()
    explorer = kinds.resolve(kind.explorer)(lapa_jax.load(args.run, step=args.step), args.run, options)
    explorer.prepare()
    server.serve(explorer, args.host, args.port)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder")
    parser.add_argument("--data", help="folder of step shards whose episodes are shown; the run's own by default")
    parser.add_argument("--split", help="the split to show, val by default")
    words = "of a tokenizer of frame pairs: pairs that are encoded at the start to look codes up, 500 by default"
    parser.add_argument("--pairs", type=int, help=words)
    words = "of a policy of latent actions: run of their tokenizer; the page then shows the frames that codes lead to"
    parser.add_argument("--tokenizer", help=words)
    parser.add_argument("--dataset", help="of a policy of several datasets: the one whose scaling applies to --data")
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; this machine only by default")
    parser.add_argument("--port", type=int, default=8800, help="0 takes a free one")
    return parser


if __name__ == "__main__":
    run_main(main)
