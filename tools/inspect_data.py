"""Looks into shards: python tools/inspect_data.py SHARDS [--split NAME] [--out DIR] [--run RUN].

Writes one page, OUT/index.html, that needs nothing else: warnings first (dead dimensions, scales that explode, idle
stretches, grippers, instructions and the longest prompt, frame rates, episodes shorter than the gap, splits), then
frames of some episodes, histograms of each numeric column with quantiles and bin edges, tables and statistics, and what
tools/convert.py --filter cut out, and why. The same in words goes to the terminal, as Markdown. SHARDS is a folder of
step shards, labelled ones and label sidecars too, a folder of ready-made frame pairs, or the word sample. Nothing is
written into it.

With --run, a stage-3 run, recorded steps also go through its policy (replay.png): predicted against recorded actions,
and whether the policy sees them as its training did. Where it does not, the command ends with an error.
"""

import argparse
import pathlib

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import read_json
from lapa_jax.data import text
from lapa_jax.data.checks import Finding, as_markdown, findings
from lapa_jax.data.contents import choose_split, describe, describe_pairs
from lapa_jax.data.convert.run import FILTERED
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.shards.step_shards import StepShards, dataset_folder

PAGE = "index.html"


def main(argv: list[str]) -> None:
    """Prints and draws."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("--split", help="which split; train where there is one")
    parser.add_argument("--out", type=pathlib.Path, help="where the page goes; inspect/NAME OF SHARDS by default")
    parser.add_argument("--run", help="a stage-3 run: replays recorded steps through its policy")
    parser.add_argument("--gap_seconds", type=float, default=0.6, help="of frame pairs: which episodes are too short")
    parser.add_argument("--gap_frames", type=int, help="the same in frames")
    parser.add_argument("--text_tokenizer", default="bytes", help="bytes or one of Hugging Face, to count tokens with")
    parser.add_argument("--text_length", type=int, default=64, help="tokens that prompts may take (data.text_length)")
    args = parser.parse_args(argv)
    folder = dataset_folder(args.shards)
    out = args.out or pathlib.Path("inspect") / folder.resolve().name
    split = choose_split(folder, args.split)
    gap = Gap.from_config(args.gap_seconds, args.gap_frames)
    if args.run:
        startup.begin(f"inspecting {folder}, and replaying its steps through {args.run}")
    else:
        startup.say(f"inspecting {folder}")
    tokenizer, text_length = text.build({"name": args.text_tokenizer}), args.text_length
    policy = load_policy(args.run) if args.run else None
    if policy:
        tokenizer, text_length = policy.tokenizer, policy.model.text_length
    say(inspect(folder, split, out, gap, tokenizer, text_length))
    if policy:
        from lapa_jax.evaluate.replay import Replay

        replay = Replay(policy, folder, split)
        found = replay.differences()
        say(replay.describe(found, args.run, out / "replay.png"))
        replay.check(found)


def load_policy(run: str):
    """The stage-3 policy of a run; a `UserError` for other models."""
    import lapa_jax
    from lapa_jax.inference.load import kind_of_run

    kind = kind_of_run(run)
    if kind.name != "action_policy":
        raise UserError(f"--run {run} holds a {kind.noun}; steps are replayed through stage-3 policies")
    return lapa_jax.load(run)


def inspect(
    folder: pathlib.Path, split: str, out: pathlib.Path, gap: Gap, tokenizer: text.Tokenizer, text_length: int
) -> str:
    """Draws the images and the page into `out`; returns the Markdown, which ends with their list."""
    from lapa_jax.plots import dataset, page  # matplotlib takes a second, which --help need not wait for

    if PairShards.is_one(folder):
        pairs = PairShards(folder, split)
        markdown, drawn = describe_pairs(pairs), [dataset.pair_sheet(out / "contact_sheet.png", pairs)]
        found = [Finding(False, "Ready-made pairs do not tell their episodes, their gap, or how they were resized.")]
    else:
        shards = StepShards(folder, split)
        markdown, drawn = describe(shards), [dataset.contact_sheet(out / "contact_sheet.png", shards)]
        for name in sorted(name for name, feature in shards.features.items() if "dtype" in feature):
            drawn.append(dataset.histograms(out / f"{name}s.png", shards, name))
        found = findings(shards, gap, tokenizer, text_length)
    filtered = read_json(folder / FILTERED) if (folder / FILTERED).exists() else None
    written = page.write(out / PAGE, found, markdown, drawn, filtered)
    title, _, rest = markdown.partition("\n")
    listed = "\n".join(f"- {path}" for path in (written, *drawn))
    return f"{title}\n\n{as_markdown(found)}{rest}\n## Pictures\n\n{listed}"


if __name__ == "__main__":
    run_main(main)
