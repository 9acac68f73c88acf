"""Submits a training to Slurm with what a site file says about the cluster.

python launch/slurm/submit.py --config_file configs/site/lrz_h100.yaml [--sbatch=OPTION ...] --config CONFIG ...

The group `slurm` of the files becomes options of sbatch ({partition: gpu, time: 2:00:00} is --partition=gpu
--time=2:00:00), which win over those in launch/slurm/train.sbatch; --sbatch=--nodes=8 wins over both. All other
arguments, the files too, go on to launch/train.py. With --dry_run the command is printed and nothing is submitted.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys

from lapa_jax.core import config_files
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say

SCRIPT = pathlib.Path(__file__).with_name("train.sbatch")


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--config_file", action="append", default=[], help="YAML file of overrides; may be repeated")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="--sbatch=--nodes=8")
    parser.add_argument("--dry_run", action="store_true", help="print the command instead")
    args, rest = parser.parse_known_args(argv)
    options = {}
    for file in config_files.read(args.config_file).files:
        for name, value in file.slurm.items():
            if not isinstance(value, (str, int)) or isinstance(value, bool):
                raise UserError(f"{file.path}: slurm.{name} is {value!r}; give a text or a number")
            options[str(name)] = f"--{name}={value}"
    # The site files go on to the training too: the rest of them are its overrides.
    files = [argument for path in args.config_file for argument in ("--config_file", path)]
    command = ["sbatch", *options.values(), *args.sbatch, str(SCRIPT), *files, *rest]
    say(shlex.join(command))
    if args.dry_run:
        return
    try:
        sys.exit(subprocess.run(command, check=False).returncode)
    except FileNotFoundError:
        raise UserError("there is no sbatch on this machine; submit from a login node of the cluster") from None


if __name__ == "__main__":
    run_main(main)
