"""Records the scripted expert's episodes in a simulator, to step shards or mp4: for training, demonstrations and tests.

    python tools/record_sim.py --env push_table --episodes 1000 --out DIR [--format shards|mp4] [--columns none]

Run again, it goes on where it stopped. Needs an OpenGL driver, and the extra `lapa_jax[sim]` or `lapa_jax[metaworld]`.
"""

import argparse
import pathlib

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_can_write
from lapa_jax.sim import flags
from lapa_jax.sim.recording import COLUMNS, Options, default_workers, record


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--env", required=True, help="a simulator with a scripted expert: push_table, metaworld, or a file of your own")
    add("--episodes", type=int, required=True)
    add("--out", type=pathlib.Path, required=True, help="a new or empty folder, or one to finish")
    add("--task", action="append", help="a task of the environment; may be repeated; all in turn by default")
    add("--seed", type=int, default=0)
    add("--size", type=int, default=128, help="edge of the images in pixels")
    add("--noise", type=float, default=0.0, help="standard deviation added to the expert's actions, in their units")
    add("--fps", type=float, help="of the recording (default: the environment's); actions in between are merged")
    add("--max_steps", type=int, help="keep only episodes that are solved within so many environment steps")
    add("--columns", default=",".join(COLUMNS), help="what to keep of action,state; 'none': an action-free recording")
    add("--quality", type=int, default=95, help="of the JPEGs in shards")
    add("--val_fraction", type=float, default=0.1, help="share of the episodes in the split val")
    add("--format", default="shards", help="shards or mp4")
    add("--workers", type=int, default=default_workers(), help="processes; the result does not depend on it")
    env_options = flags.add_options(add, argv, skip=("size",))
    values = vars(parser.parse_args(argv))
    given_options = {name: value for name in env_options if (value := values.pop(name)) not in (None, False)}
    out, workers = values.pop("out"), values.pop("workers")
    columns, tasks = values.pop("columns"), tuple(values.pop("task") or ())
    columns = () if columns == "none" else tuple(columns.split(","))
    options = Options(columns=columns, tasks=tasks, env_options=given_options, **values)
    check_can_write(out)
    lines = record(options, out, workers)
    steps = sum(line["frames"] for line in lines)
    held_out = sum(line["split"] == "val" for line in lines)
    say(f"{out}: {len(lines)} episodes ({held_out} held out), {steps} frames of {options.size} px")


if __name__ == "__main__":
    run_main(main)
