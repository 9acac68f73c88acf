"""Trains FSQ and MS-TCN at several bit rates and compares them with bins, DCT + BPE and B-splines at equal bits.

python launch/studies/action_tokenizers.py --data NAME=SHARDS,STEPS[,GRIPPER] ... --out DIR
    [--recipes fsq_quarter=5 fsq_half mstcn_z] [--jobs 2] [--overrides train.steps=500 NAME:train.steps=300]

STEPS is the length of a chunk, GRIPPER a dimension whose accuracy is measured as that of a gripper though neither its
values nor its name say that it is one. RECIPE=5 trains a recipe with five seeds; an override with a data set's name
before it is for the runs on that one. Every run is `launch/train.py`; a study that was interrupted goes on where it
stopped, and a run that is done is not trained again. DIR/comparison gets what `tools/compare_tokenizers.py` writes, of
the first seed, and usage.md: which share of the codes each run uses on the training chunks, for every seed.

Four data sets with six recipes are 24 runs of two to four CPU minutes.
"""

import functools
import pathlib
from typing import NamedTuple

import common
import numpy as np

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path

SHORT_FSQ = ["train.steps=1600", "train.eval_every=800", "train.save_every=400"]
SHORT_MSTCN = ["train.steps=1000", "train.eval_every=500", "train.save_every=250"]


class Data(NamedTuple):
    """A data set of --data."""

    name: str
    shards: str
    steps: int
    gripper: str | None


def fsq(data: Data, tokens: int, levels: str = "(8,5,5,5)") -> tuple[str, list[str]]:
    """Config and overrides of a tokenizer with so many tokens a chunk; up to four steps are a patch."""
    patch = max(n for n in (1, 2, 3, 4) if data.steps % n == 0)
    model = [f"model.chunk_length={data.steps}", f"model.patch={patch}", f"model.tokens={max(1, tokens)}"]
    return "fsq.py:small", [*model, f"model.levels={levels}", *SHORT_FSQ]


def mstcn(data: Data, reads: str) -> tuple[str, list[str]]:
    """Config and overrides of a tokenizer whose decoder reads "z", "q" or "z+q"."""
    layers = min(4, max(1, (data.steps - 1).bit_length()))
    model = [f"model.context={data.steps}", f"model.layers={layers}", f"model.decoder_input={reads}"]
    return "mstcn.py:small", [*model, *SHORT_MSTCN]


RECIPES = {
    "fsq_eighth": lambda data: fsq(data, data.steps // 8),
    "fsq_quarter": lambda data: fsq(data, data.steps // 4),
    "fsq_half": lambda data: fsq(data, data.steps // 2),
    "fsq": lambda data: fsq(data, data.steps),
    "fsq_fine": lambda data: fsq(data, data.steps, "(8,8,8,6,5)"),
    "mstcn_z": lambda data: mstcn(data, "z"),
    "mstcn_q": lambda data: mstcn(data, "q"),
    "mstcn_zq": lambda data: mstcn(data, "z+q"),
}
"""{name: (config, overrides) for a data set}. FSQ spends 10 bits a token ("fsq_fine" 13.9), which stands for eight,
four, two steps or one."""

MOST_CHUNKS = 16_384
"""Of the training chunks so many at most, evenly taken, show which codes are in use: encoding may search for long."""

USUAL = ("fsq_quarter", "fsq_half", "fsq", "mstcn_z", "mstcn_q", "mstcn_zq")


FORM = "NAME=SHARDS,STEPS[,GRIPPER]"


def main(argv: list[str]) -> None:
    args = common.grid_command_line(__doc__, FORM, RECIPES, USUAL, 1).parse_args(argv)
    sets = common.data_sets(args.data, FORM, _data)
    runs = sorted(common.grid(args, sets, RECIPES), key=lambda run: run.seed)  # the first seeds are what is compared
    with common.side_by_side(args.jobs) as pool:
        folders = list(pool.map(lambda run: _train(args.out, run), runs))
    first = [(run.recipe, folder) for run, folder in zip(runs, folders, strict=True) if run.seed == 0]
    _compare(args.out, sets, first)
    table = f"{usage_table(runs, folders)}\n{common.revisions()}"
    with atomic_path(args.out / "comparison" / "usage.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    say(table)


def _data(name: str, shards: str, steps: str, gripper: str | None = None) -> Data:
    if not steps.isdecimal() or not (gripper is None or gripper.removeprefix("-").isdecimal()):
        raise ValueError
    if int(steps) < 2:
        raise UserError(f"--data {name}: a chunk of {steps} steps cannot be tokenized; give 2 at least")
    return Data(name, shards, int(steps), gripper)


def _train(out: pathlib.Path, run: common.Run) -> pathlib.Path:
    """Trains a run unless it is done; returns its folder."""
    config, changes = RECIPES[run.recipe](run.data)
    settings = [f"seed={run.seed}", f"data.path={run.data.shards}", *changes, *run.overrides]
    return common.train(out / "runs" / run.name, config, settings)


def _compare(out: pathlib.Path, sets: list[Data], runs: list[tuple[str, pathlib.Path]]) -> None:
    lengths = [f"{data.name}={data.steps}" for data in sets]
    grippers = [f"{data.name}={data.gripper}" for data in sets if data.gripper is not None]
    arguments = ["--data", *(f"{data.name}={data.shards}" for data in sets), "--chunk_length", *lengths,
                 "--runs", *(f"{recipe}={run}" for recipe, run in runs),
                 *(["--gripper", *grippers] if grippers else []),
                 "--out", str(out / "comparison")]  # fmt: skip
    common.call(out / "compare.log", "tools/compare_tokenizers.py", *arguments)


def usage_table(runs: list[common.Run], folders: list[pathlib.Path]) -> str:
    """Markdown: of each run the share of codes in use and their perplexity on the training chunks, and over the seeds
    the least share. Codes of chunks are counted over all positions together, those of two levels apart."""
    from lapa_jax.evaluate.codecs.chunks import read_chunks

    @functools.cache
    def read(data: Data) -> np.ndarray:
        chunks = read_chunks(data.name, data.shards, length=data.steps).train
        # Evenly spaced and not the first ones, which are of few episodes.
        return chunks[:: -(-len(chunks) // MOST_CHUNKS)]

    lines = ["| data | recipe | seed | codes | in use | perplexity | tokens |", "|---" * 7 + "|"]
    least: dict[tuple[str, str, str], float] = {}
    for (data, recipe, seed, _), folder in zip(runs, folders, strict=True):
        for level, size, tokens in _codes(folder, read(data)):
            counts = np.bincount(tokens, minlength=size)
            share, used = counts[counts > 0] / counts.sum(), float((counts > 0).mean())
            perplexity = np.exp(-(share * np.log(share)).sum())
            lines.append(f"| {data.name} | {recipe}{level} | {seed} | {size} | {used:.1%} | {perplexity:.1f} | "
                         f"{len(tokens)} |")  # fmt: skip
            key = data.name, recipe, level
            least[key] = min(used, least.get(key, 1.0))
    for (name, recipe, level), used in least.items():
        lines.append(f"| {name} | {recipe}{level} | least | | {used:.1%} | | |")
    return "\n".join(lines) + "\n"


def _codes(run: pathlib.Path, chunks: np.ndarray) -> list[tuple[str, int, np.ndarray]]:
    """(name, size, codes int[...]) of each codebook of a run, over all chunks."""
    import lapa_jax

    tokenizer = lapa_jax.load(run)
    codes, sizes = tokenizer.encode(chunks), tokenizer.codebook_sizes
    if tokenizer.chunk_length is not None:
        return [("", sizes[0], codes.ravel())]
    return [(f" {level}", size, codes[..., i].ravel()) for i, (level, size) in enumerate(zip("zq", sizes, strict=True))]


if __name__ == "__main__":
    run_main(main)
