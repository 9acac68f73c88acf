"""Trains the stage that a config describes; the same command resumes an interrupted run.

python launch/train.py --config configs/laq.py[:tiny] [--workdir runs/x] [--dry_run] [--config.key=value ...]
"""

import argparse

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import run_main


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--config", required=True, help="config file and optional variant, configs/laq.py:tiny")
    parser.add_argument("--workdir", help="run folder; runs/<config.name> by default")
    parser.add_argument("--dry_run", action="store_true", help="build and compile, print sizes, write nothing")
    args, overrides = parser.parse_known_args(argv)
    config = config_lib.load(args.config, overrides)

    from lapa_jax.data.conversion.raw import as_shards
    from lapa_jax.train.distributed import initialize
    from lapa_jax.train.loop import train
    from lapa_jax.train.run import check_config

    initialize()
    workdir = args.workdir or f"runs/{config.name}"
    with as_shards(config, workdir, check_config, dry_run=args.dry_run) as config:
        train(config, workdir, dry_run=args.dry_run)


if __name__ == "__main__":
    run_main(main)
