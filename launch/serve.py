"""Serves a stage-3 policy: websocket with msgpack (openpi's clients), POST /act (OpenVLA's), lapa_jax.serve.client.

python launch/serve.py --run RUN [--port 8000] [--host 127.0.0.1] [--token_file FILE] [--rename KEY=NAME ...]

Says "ready" when everything is compiled; SIGTERM and Ctrl-C stop it when what is in flight is answered.
"""

import argparse
import functools
import pathlib

from lapa_jax.core import escape, startup, web
from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, run_main

COUNTS = ("batch", "decoders", "pending", "sockets", "picture_side", "instruction_characters")


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if not 0 < args.message_mb < 2**20:
        raise UserError(f"--message_mb {args.message_mb} is no size of messages; give MiB, such as 16")
    if not 0 < args.held_mb < 2**20:
        raise UserError(f"--held_mb {args.held_mb} is no size of memory; give MiB, such as 256")
    for name in COUNTS:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be 1 or more")
    if not args.wait_ms >= 0:
        raise UserError(f"--wait_ms {args.wait_ms} must be 0 or more, in milliseconds")
    if not args.rate > 0:
        raise UserError(f"--rate {args.rate} must be more than 0, in requests a second")
    token = _token(args.token_file)
    renamed = tuple(_pair(text) for text in args.rename)

    web.check_address(args.host, args.port)
    web.need_aiohttp()

    # After the checks: importing jax takes seconds, and a typing error should be told at once.
    startup.begin(f"serving {args.run}")
    import lapa_jax
    from lapa_jax.inference.load import kind_of_run
    from lapa_jax.serve import run
    from lapa_jax.serve.limits import Limits
    from lapa_jax.serve.service import Options, Service

    kind = kind_of_run(args.run)
    if kind.not_served:
        raise UserError(f"{args.run} holds a {kind.noun}, which {kind.not_served}")
    limits = Limits(
        message_bytes=int(args.message_mb * 2**20),
        picture_side=args.picture_side,
        instruction_characters=args.instruction_characters,
        rate=args.rate,
        pending=args.pending,
        held_bytes=int(args.held_mb * 2**20),
        sockets=args.sockets,
    )
    options = Options(args.batch, args.wait_ms / 1000, args.decoders, renamed, limits)
    escape.warnings_to_terminal()
    policy = lapa_jax.load(args.run, step=args.step)
    run.serve(lambda: Service(policy, args.run, options), args.host, args.port, token,
              say=functools.partial(escape.say, flush=True), allowed=args.allow_host)  # fmt: skip


def _token(file: str | None) -> str | None:
    """The token in a file, without blanks around it."""
    if file is None:
        return None
    path = pathlib.Path(file)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"--token_file {file} {what}; give a file with the token in it")
    # In a file and not on the command line, which every user of the machine can list.
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not token or not token.isascii() or len(token.split()) > 1:
        raise UserError(f"--token_file {file} must hold one word of ASCII characters")
    return token


def _pair(text: str) -> tuple[str, str]:
    key, equals, name = text.rpartition("=")
    if not key or not equals or not name:
        raise UserError(f"--rename {text} is not KEY=NAME")
    return key, name


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder of a policy")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; this machine only by default")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--token_file", help="file with the token that clients must send; none is asked for by default")
    parser.add_argument("--allow_host", action="append", default=[], metavar="NAME",
                        help="name by which clients may call the server, beside localhost and addresses")  # fmt: skip
    parser.add_argument("--rename", action="append", default=[], metavar="KEY=NAME",
                        help="what a key means: a camera, instruction, state, dataset, or nothing")  # fmt: skip
    parser.add_argument("--batch", type=int, default=8, help="requests that are computed together at most")
    parser.add_argument("--wait_ms", type=float, default=2.0, help="how long a request waits for others to join it")
    parser.add_argument("--decoders", type=int, default=1, help="processes that read large messages")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second from one address")
    parser.add_argument("--pending", type=int, default=256, help="requests that may be open, of all clients")
    parser.add_argument("--held_mb", type=float, default=256.0,
                        help="MiB of large messages that arrive or wait, of all clients")  # fmt: skip
    parser.add_argument("--sockets", type=int, default=1024, help="websockets that may be open at a time")
    parser.add_argument("--message_mb", type=float, default=16.0, help="MiB of a message at most")
    parser.add_argument("--picture_side", type=int, default=2048, help="pixels of an image's longer side at most")
    parser.add_argument("--instruction_characters", type=int, default=1000, help="characters of an instruction at most")
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    return parser


if __name__ == "__main__":
    run_main(main)
