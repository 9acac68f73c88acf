"""Labels that say nothing: those of launch/label.py dealt to other steps of their split, or drawn at random.

python launch/studies/scramble_labels.py --labels DIR --out DIR --how shuffled|random [--seed 0]

What a pretraining on them gives is not for the latent actions, but for the images, the instructions and the steps.
"shuffled" keeps how often each sequence of codes occurs, "random" has all codes equally often.
"""

import argparse
import hashlib
import pathlib

import numpy as np
from common_settings import SCRAMBLED

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.data.shards.labels import read_label_info
from lapa_jax.data.shards.step_shards import (
    DATASET,
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    read_dataset,
    write_dataset,
)


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--labels", required=True, help="folder of launch/label.py")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder, or one to finish")
    parser.add_argument("--how", choices=SCRAMBLED, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    info = read_label_info(args.labels)
    if info["format"] != "sidecar" or not isinstance(info["codebook_size"], int):
        raise UserError(f"{args.labels} are no labels beside their data with one number of codes; label the data again "
                        "with launch/label.py")  # fmt: skip
    # dataset.json is written last: with it everything is there.
    if not (args.out / DATASET).is_file():
        write(args.labels, args.out, args.how, args.seed)
    say(f"{args.out}: {args.how} codes in place of those in {args.labels}")


def write(labels: str, out: pathlib.Path, how: str, seed: int) -> None:
    """Writes the labels with the same keys in the same shards, and a fingerprint of a tokenizer that there is not."""
    described, info = read_dataset(labels), read_label_info(labels)
    out.mkdir(parents=True, exist_ok=True)
    splits = {}
    for number, (split, entry) in enumerate(sorted(described["splits"].items())):
        shards = StepShards(labels, split)
        codes = scrambled(np.concatenate(list(shards.column("latent"))), how, info["codebook_size"], [seed, number])
        start, written = 0, []
        for shard in entry["shards"]:
            with ShardWriter(out / shard["name"]) as writer:
                for i in range(start, start + shard["samples"]):
                    members = {"latent.npy": array_bytes(codes[i]), "json": json_bytes(shards.meta(i))}
                    writer.add(shards.key(i), members)
            written.append(writer.summary)
            start += shard["samples"]
        splits[split] = {**entry, "shards": written}
    tokenizer = hashlib.sha256(f"{info['tokenizer']} {how} {seed}".encode()).hexdigest()
    write_dataset(out, fps=described["fps"], source={"labels": {**info, "tokenizer": tokenizer}}, splits=splits,
                  features={"latent": described["features"]["latent"]}, statistics={})  # fmt: skip


def scrambled(codes: np.ndarray, how: str, size: int, seed) -> np.ndarray:
    """int32[M, N]: the rows in another order, or codes of 0..size-1 drawn anew."""
    rng = np.random.default_rng(seed)
    if how == "shuffled":
        return rng.permutation(codes)
    return rng.integers(0, size, codes.shape, dtype=codes.dtype)


if __name__ == "__main__":
    run_main(main)
