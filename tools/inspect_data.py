"""Looks into shards: python tools/inspect_data.py SHARDS [--split NAME] [--out DIR] [--run RUN].

Prints the table of contents and the statistics as Markdown, and draws contact_sheet.png (frames of some episodes with
their instructions; the columns over time where there are no pictures), actions.png and a page like it for each other
numeric column: histograms with quantiles and bin edges. SHARDS is a folder of step shards, labelled ones and label
sidecars too, a folder of ready-made frame pairs, or the word sample. Nothing is written into it.

With --run, a stage-3 run, recorded steps also go through its policy (replay.png): predicted against recorded actions,
and whether the policy sees them as its training did. Where it does not, the command ends with an error.
"""

import argparse
import pathlib

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.data.contents import choose_split, describe, describe_pairs
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import StepShards, dataset_folder
from lapa_jax.plots import dataset


def main(argv: list[str]) -> None:
    """Prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("--split", help="which split; train where there is one")
    parser.add_argument("--out", type=pathlib.Path, help="where the pictures go; inspect/NAME OF SHARDS by default")
    parser.add_argument("--run", help="a stage-3 run: replays recorded steps through its policy")
    args = parser.parse_args(argv)
    folder = dataset_folder(args.shards)
    out = args.out or pathlib.Path("inspect") / folder.resolve().name
    split = choose_split(folder, args.split)
    policy = load_policy(args.run) if args.run else None
    print(inspect(folder, split, out))
    if policy:
        from lapa_jax.evaluate.replay import Replay

        replay = Replay(policy, folder, split)
        found = replay.differences()
        print(replay.describe(found, args.run, out / "replay.png"))
        replay.check(found)


def load_policy(run: str):
    """The stage-3 policy of a run; a `UserError` for other models."""
    import lapa_jax

    model = lapa_jax.load(run)
    if model.kind.name != "action_policy":
        raise UserError(f"--run {run} holds a {model.config.model.name}; steps are replayed through stage-3 policies")
    return model


def inspect(folder: pathlib.Path, split: str, out: pathlib.Path) -> str:
    """Draws the pictures into `out`; returns the Markdown, which ends with their list."""
    if PairShards.is_one(folder):
        pairs = PairShards(folder, split)
        text, drawn = describe_pairs(pairs), [dataset.pair_sheet(out / "contact_sheet.png", pairs)]
    else:
        shards = StepShards(folder, split)
        text, drawn = describe(shards), [dataset.contact_sheet(out / "contact_sheet.png", shards)]
        for name in sorted(name for name, feature in shards.features.items() if "dtype" in feature):
            drawn.append(dataset.histograms(out / f"{name}s.png", shards, name))
    return f"{text}\n## Pictures\n\n" + "\n".join(f"- {path}" for path in drawn)


if __name__ == "__main__":
    run_main(main)
