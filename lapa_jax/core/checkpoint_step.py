"""Which checkpoint of a run is meant: the newest, a step, or the best."""

import pathlib

from lapa_jax.core.errors import UserError

FOLDER = "checkpoints"
BEST = "best"


def parse_step(text: str) -> int | str:
    """`--step N` or `--step best` of a command; for `argparse`, as a type."""
    if text == BEST or text.isascii() and text.isdigit():
        return BEST if text == BEST else int(text)
    raise UserError(f"--step {text} is no step; give a number of training steps, or {BEST}")


def split_best(path: pathlib.Path, step: int | str | None) -> tuple[pathlib.Path, int | str | None]:
    """"RUN/checkpoints/best", which is no folder, as the run folder and the step "best"; other paths as they are."""
    if path.name == BEST and path.parent.name == FOLDER:
        return path.parent.parent, BEST
    return path, step
