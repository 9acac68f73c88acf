"""Looks into shards: python tools/inspect_data.py SHARDS [--split NAME] [--out DIR].

Prints the table of contents and the statistics as Markdown, and draws contact_sheet.png (frames of some episodes with
their instructions; the columns over time where there are no pictures), actions.png and a page like it for each other
numeric column: histograms with quantiles and bin edges. SHARDS is a folder of step shards, labelled ones and label
sidecars too, a folder of ready-made frame pairs, or the word sample. Nothing is written into it.
"""

import argparse
import pathlib

from lapa_jax.core.errors import run_main
from lapa_jax.data.contents import choose_split, describe, describe_pairs
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards import StepShards, dataset_folder
from lapa_jax.inference import data_pictures


def main(argv: list[str]) -> None:
    """Prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("--split", help="which split; train where there is one")
    parser.add_argument("--out", type=pathlib.Path, help="where the pictures go; inspect/NAME OF SHARDS by default")
    args = parser.parse_args(argv)
    folder = dataset_folder(args.shards)
    out = args.out or pathlib.Path("inspect") / folder.resolve().name
    split = choose_split(folder, args.split)
    print(inspect(folder, split, out))


def inspect(folder: pathlib.Path, split: str, out: pathlib.Path) -> str:
    """Draws the pictures into `out`; returns the Markdown, which ends with their list."""
    if PairShards.is_one(folder):
        pairs = PairShards(folder, split)
        text, drawn = describe_pairs(pairs), [data_pictures.pair_sheet(out / "contact_sheet.png", pairs)]
    else:
        shards = StepShards(folder, split)
        text, drawn = describe(shards), [data_pictures.contact_sheet(out / "contact_sheet.png", shards)]
        for name in sorted(name for name, feature in shards.features.items() if "dtype" in feature):
            drawn.append(data_pictures.histograms(out / f"{name}s.png", shards, name))
    return f"{text}\n## Pictures\n\n" + "\n".join(f"- {path}" for path in drawn)


if __name__ == "__main__":
    run_main(main)
