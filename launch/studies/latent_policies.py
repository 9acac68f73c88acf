"""Labels data with trained latent action models, trains small stage-2 policies on the codes, and prints their table.

python launch/studies/latent_policies.py --data NAME=SHARDS,TOKENIZER_RUN ... --out DIR [--recipes tiny small=3 ...]
    [--seeds 1] [--jobs 2] [--overrides train.steps=500 NAME:data.text_length=48 ...]

SHARDS have held-out episodes, and instructions; TOKENIZER_RUN is a run of launch/train.py --config configs/laq.py or
laq_conv.py. Every run is `launch/label.py` (once a data set), `launch/train.py` and `launch/eval.py`; a study that was
interrupted goes on where it stopped. RECIPE=3 trains a recipe with three seeds.
"""

import pathlib
from typing import NamedTuple

import common

from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say
from lapa_jax.data.shards.labels import read_label_info


class Data(NamedTuple):
    """A data set of --data."""

    name: str
    shards: str
    tokenizer: str


# What each recipe changes in its config, which is configs/vla_latent.py:tiny but for "small".
RECIPES = {
    "tiny": [],
    "small": [],
    "autoregressive": ["model.decode=autoregressive"],
    "bidirectional": ["model.image_attention=bidirectional"],
    "openvla_projector": ["model.projection=openvla"],
}
CONFIG = {recipe: f"vla_latent.py:{'small' if recipe == 'small' else 'tiny'}" for recipe in RECIPES}
COLUMNS = {
    "codes right": ("latent_accuracy", "{:.1%}"),
    "majority": ("majority_accuracy", "{:.1%}"),
    "gain (points)": ("accuracy_gain", "{:+.1%}"),
    "top 3": ("latent_accuracy_top3", "{:.1%}"),
    "majority top 3": ("majority_accuracy_top3", "{:.1%}"),
    "nats": ("loss", "{:.3f}"),
    "nats, unigram": ("loss_unigram", "{:.3f}"),
    "other instruction": ("latent_accuracy_shuffled_text", "{:.1%}"),
    "other image": ("latent_accuracy_shuffled_image", "{:.1%}"),
}


FORM = "NAME=SHARDS,TOKENIZER_RUN"


def main(argv: list[str]) -> None:
    args = common.grid_command_line(__doc__, FORM, RECIPES, ["tiny"], 1).parse_args(argv)
    sets = common.data_sets(args.data, FORM, Data)
    runs = common.grid(args, sets, RECIPES)
    for run in runs:
        common.check_overrides([CONFIG[run.recipe]], run.overrides)
    labels = {data: _label(args.out, data) for data in sets}
    with common.side_by_side(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args.out, labels[run.data], run), runs))
    rows = [[run.data.name, run.recipe, str(run.seed), *common.cells(metrics, COLUMNS)]
            for run, metrics in zip(runs, results, strict=True)]  # fmt: skip
    say(common.table(["data", "recipe", "seed", *COLUMNS], rows))
    say(common.revisions())


def _label(out: pathlib.Path, data: Data) -> pathlib.Path:
    """The labels of a data set, which launch/label.py finishes where they were begun."""
    folder = out / f"labels_{data.name}"
    common.call(out / f"labels_{data.name}.log", "launch/label.py", "--run", data.tokenizer, "--data", data.shards,
                 "--out", str(folder))  # fmt: skip
    return folder


def _run(out: pathlib.Path, labels: pathlib.Path, run: common.Run) -> dict:
    """Trains and evaluates one run unless that is done; returns the metrics."""
    made_by = read_label_info(labels)["tokenizer"]
    settings = [f"seed={run.seed}", f"data.path={run.data.shards}", f"data.labels={labels}",
                f"data.labels_tokenizer={made_by}", *RECIPES[run.recipe], *run.overrides]  # fmt: skip
    folder = common.train(out / run.name, CONFIG[run.recipe], settings)
    return common.evaluate(folder)["metrics"]


if __name__ == "__main__":
    run_main(main)
