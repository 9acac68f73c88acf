"""Makes a tokenizer of whole words from the instructions of data sets: short sequences for small policies.

    python tools/make_tokenizer.py --data SHARDS [SHARDS ...] --out DIR       # for data.text_tokenizer.name

Words that no instruction has become one token, "<unk>"; large models have tokenizers of their own.
"""

import argparse
import pathlib

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_new_folder
from lapa_jax.data.shards.step_shards import StepShards, read_dataset
from lapa_jax.data.text import build
from lapa_jax.data.words import write_tokenizer


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="step shards; the words of all splits are known")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder")
    args = parser.parse_args(argv)
    # A recording without held-out episodes has an empty split.
    splits = [(folder, name) for folder in args.data for name, split in read_dataset(folder)["splits"].items()
              if split["steps"]]  # fmt: skip
    check_new_folder(args.out)
    startup.say(f"reading the instructions of {', '.join(args.data)}")
    instructions = sorted({text for folder, split in splits for text in StepShards(folder, split).instructions()})
    size = write_tokenizer(args.out, instructions)
    longest = max(build({"name": str(args.out)}).lengths(instructions))
    say(f"{args.out}: {size} tokens; the longest of {len(instructions)} instructions takes {longest}: "
          "set data.text_length to that or more, or to None")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
