"""Trains the stage that a config describes; the same command resumes an interrupted run.

python launch/train.py --config configs/laq.py[:variant+variant] [--config_file site.yaml ...] [--workdir runs/x]
                       [--dry_run] [--config.key=value ...]
python launch/train.py --config configs/laq.py:tiny --help      # all keys of this config, with their values
python launch/train.py --config configs/vla_latent.py --dry_run --mesh 8x4 --device H100-94GB    # for GPUs not at hand
python launch/train.py --config configs/vla_latent.py --dry_run --mesh 2x2x4 --device TPU-v5p    # or a slice of TPUs
"""

import argparse

from lapa_jax.core import config as config_lib
from lapa_jax.core import config_files, startup
from lapa_jax.core.arguments import Parser, check_options
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_can_write
from lapa_jax.evaluate import metric_words


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False, add_help=False)  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true", help="show this; with --config also its keys and values")
    parser.add_argument("--config", help="config file and optional variants, configs/laq.py:features+cosine")
    parser.add_argument("--config_file", action="append", default=[],
                        help="YAML file of overrides: a site, a data set; may be repeated, later ones win")  # fmt: skip
    parser.add_argument("--workdir", help="run folder; runs/<config.name> by default")
    parser.add_argument("--dry_run", action="store_true", help="build and compile, print sizes, write nothing")
    parser.add_argument("--mesh", help="with --dry_run: compile for that many hosts x GPUs, 8x4, or for a slice "
                        "of TPUs by its topology, 2x2x4, instead of run")  # fmt: skip
    parser.add_argument("--device", help="with --mesh: which GPUs or TPUs, H100-94GB, TPU-v5e")
    args, overrides = parser.parse_known_args(argv)
    if args.help:
        parser.print_help()
        if args.config:
            say("\n".join(["", *config_lib.explain(args.config, overrides, args.config_file)]))
        return
    if not args.config:
        parser.error("--config is required, configs/laq.py:tiny for example")
    planned = args.mesh is not None or args.device is not None
    if planned and not (args.mesh and args.device and args.dry_run):
        raise UserError("--mesh and --device go together and with --dry_run: --dry_run --mesh 8x4 --device H100-94GB")
    check_options(parser, overrides)
    config = config_lib.load(args.config, overrides, args.config_file)
    workdir = args.workdir or f"{config_files.read(args.config_file).roots.get('runs', 'runs')}/{config.name}"
    if not args.dry_run:
        check_can_write(workdir)
    from lapa_jax.data.training import check_folders

    check_folders(config.data)
    if best_metric := config.train.get("best_metric"):
        metric_words.check_logged(best_metric, "config.train.best_metric")
    words = f"dry run of {config.name}" if args.dry_run else f"training {config.name} in {workdir}"
    startup.begin(words, keep=not planned)
    config_lib.check_fields(config_lib.MODELS, config.model)

    # These take as long again as jax.
    from lapa_jax.data.convert.raw import as_shards
    from lapa_jax.evaluate import drawing_of
    from lapa_jax.train.distributed import initialize
    from lapa_jax.train.loop import train
    from lapa_jax.train.plan import plan
    from lapa_jax.train.run import check_config

    if not planned:
        initialize()
    with as_shards(config, workdir, check_config, dry_run=args.dry_run) as config:
        if planned:
            return plan(config, args.mesh, args.device)
        train(config, workdir, dry_run=args.dry_run, drawing_of=drawing_of)


if __name__ == "__main__":
    run_main(main)
