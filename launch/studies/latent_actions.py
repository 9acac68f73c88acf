"""Trains small latent action models, several seeds and ablations, and prints the table of docs/results/results.md.

python launch/studies/latent_actions.py --data NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES ... --out DIR
    [--seeds 3] [--recipes small laq_conv=5 ...] [--jobs 2] [--overrides train.steps=500 NAME:model.view_share=0.5 ...]

RECIPE=5 trains a recipe with five seeds; an override with a data set's name before it is for the runs on that one. The
recipes small (NSVQ), vq, fsq and laq_conv are four tokenizers with the same codes, 4 of 8, measured alike. Every run is
`launch/train.py` followed by `launch/eval.py`; a study that was interrupted goes on where it stopped.
"""

import pathlib
from typing import NamedTuple

import common

from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say


class Data(NamedTuple):
    """A data set of --data."""

    name: str
    train: str
    labelled: str
    gap: int

    def __str__(self) -> str:
        return f"{self.name} ({self.gap})"


# What each recipe changes in its config. Ablations change one thing each; "spec_wiring" needs the decoder to see what
# the encoder saw, which rules out the second view. "fsq" has one feature of 8 levels, so that all have as many codes.
RECIPES = {
    "small": [],
    "official_layout": ["model.layout=official"],
    "one_view": ["model.view_shift=0"],
    "spec_wiring": ["model.view_shift=0", "model.decoder_context=encoder"],
    "plain_loss": ["loss.motion=0", "loss.coarse=0"],
    "official_start": ["model.codebook_init=normal", "model.delta_norm=none"],
    "official_pooling": ["model.pooling=conv"],
    "vq": ["model.quantizer=vq", "loss.commitment=0.005"],
    "fsq": ["model.quantizer=fsq", "model.levels=(8,)", "model.quant_dim=1", "model.replacement=none"],
    "laq_conv": [],
}
CONFIG = {recipe: "laq_conv.py:small" if recipe == "laq_conv" else "laq.py:small" for recipe in RECIPES}
COLUMNS = {
    "codes used": ("codebook_utilization", "{:.0%}"),
    "perplexity": ("perplexity", "{:.2f}"),
    "PSNR gain (dB)": ("psnr_gain", "{:+.2f}"),
    "swap gap": ("swap_gap", "{:.0%}"),
    "R² codes": ("action_probe_r2", "{:.3f}"),
    "R² untrained": ("action_probe_r2_untrained", "{:.3f}"),
    "R² delta": ("action_probe_r2_delta", "{:.3f}"),
    "R² reference": ("action_probe_r2_reference", "{:.3f}"),
}


FORM = "NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES"


def main(argv: list[str]) -> None:
    args = common.grid_command_line(__doc__, FORM, RECIPES, ["small"], 3).parse_args(argv)
    runs = common.grid(args, common.data_sets(args.data, FORM, _data), RECIPES)
    with common.side_by_side(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args.out, run), runs))
    rows = [[str(run.data), run.recipe, str(run.seed), *common.cells(metrics, COLUMNS)]
            for run, metrics in zip(runs, results, strict=True)]  # fmt: skip
    for data, recipe in dict.fromkeys(run[:2] for run in runs):
        group = [metrics for run, metrics in zip(runs, results, strict=True) if run[:2] == (data, recipe)]
        rows.append([str(data), recipe, "mean", *common.cells(common.mean(group, COLUMNS), COLUMNS)])
    say(common.table(["data (gap)", "recipe", "seed", *COLUMNS], rows))
    say(common.revisions())


def _data(name: str, train: str, labelled: str, gap: str) -> Data:
    if not gap.isdecimal():
        raise ValueError
    return Data(name, train, labelled, int(gap))


def _run(out: pathlib.Path, run: common.Run) -> dict:
    """Trains and evaluates one run unless that is done; returns the metrics."""
    data = run.data
    settings = [f"seed={run.seed}", f"data.path={data.train}", f"data.val_path={data.labelled}",
                f"data.gap_frames={data.gap}", *RECIPES[run.recipe], *run.overrides]  # fmt: skip
    folder = common.train(out / run.name, CONFIG[run.recipe], settings)
    # The reference depends on the data and the encoder, and hardly on the recipe: once for each encoder is enough.
    trained = run.recipe in ("small", "laq_conv") and run.seed == 0
    return common.evaluate(folder, *([] if trained else ["--reference_steps", "0"]))["metrics"]


if __name__ == "__main__":
    run_main(main)
