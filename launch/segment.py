"""Cuts episodes into segments of one cluster each, with a trained two-level action tokenizer (configs/mstcn.py).

python launch/segment.py --run RUN --data SHARDS --out DIR [--split train] [--pictures N]

Writes segments.json, segments.npz, overview.png and episodes/<id>.png.
"""

import argparse
import pathlib

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_can_write
from lapa_jax.data.shards.step_shards import read_dataset


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.pictures < 0:
        raise UserError(f"--pictures {args.pictures} must be 0 (none) or more")
    if args.split not in (splits := read_dataset(args.data)["splits"]):
        raise UserError(f"{args.data} has no split '{args.split}'{did_you_mean(args.split, splits)}")
    check_can_write(args.out)

    # After the checks: importing jax takes seconds, and a typing error should be told at once.
    startup.begin(f"segmenting {args.data} with {args.run}")
    import lapa_jax
    from lapa_jax.inference.load import kind_of_run

    kind = kind_of_run(args.run)
    if kind.name != "action_tokenizer":
        raise UserError(f"{args.run} holds a {kind.noun}, which has no clusters of actions; give a run of "
                        "configs/mstcn.py")  # fmt: skip
    from lapa_jax.label import segment_plots
    from lapa_jax.label import segments as segmentation
    from lapa_jax.models import fifa

    settings = fifa.Settings(temperature=args.temperature, switch_cost=args.switch_cost)
    fifa.check(settings)
    tokenizer = lapa_jax.load(args.run, step=args.step)
    segmenter = segmentation.Segmenter(tokenizer, args.data, args.split, dataset=args.dataset, settings=settings)
    episodes = list(segmenter.episodes())
    all_segments = segmenter.segments(episodes)
    out = pathlib.Path(args.out)
    segmentation.write(out, segmenter, episodes, all_segments, args.run)
    names = segmenter.action_names()
    for episode, segments in list(zip(episodes, all_segments, strict=True))[: args.pictures]:
        segment_plots.draw_episode(out / "episodes" / f"{episode.id}.png", episode, segments, names)
    if args.pictures:
        title = f"{args.data} ({args.split}): segments of {args.run}"
        segment_plots.overview(out / "overview.png", episodes[: args.pictures], all_segments[: args.pictures], title)
    for name, value in segmentation.summary(all_segments).items():
        say(f"{name:22s} {value:g}")
    say(out / segmentation.SEGMENTS_FILE)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder")
    parser.add_argument("--data", required=True, help="folder of step shards with actions")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--split", default="val", help="the split to segment; val by default")
    parser.add_argument("--pictures", type=int, default=16, help="how many episodes to draw; the first ones")
    parser.add_argument("--switch_cost", type=float, default=5.0,
                        help="what a change of cluster costs in nats; more gives fewer, longer segments")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.1, help="of the distances to the clusters")
    parser.add_argument("--dataset", help="whose units the actions have, for a tokenizer of several data sets")
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    return parser


if __name__ == "__main__":
    run_main(main)
