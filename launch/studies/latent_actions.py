"""Trains small latent action models, several seeds and ablations, and prints the table of docs/results.md.

python launch/studies/latent_actions.py --data NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES ... --out DIR
    [--seeds 3] [--recipes small laq_conv=5 ...] [--jobs 2] [--overrides train.steps=500 NAME:model.view_share=0.5 ...]

RECIPE=5 trains a recipe with five seeds; an override with a data set's name before it is for the runs on that one. The
recipes small (NSVQ), vq, fsq and laq_conv are four tokenizers with the same codes, 4 of 8, measured alike. Every run is
`launch/train.py` followed by `launch/eval.py`; a study that was interrupted goes on where it stopped.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys

from lapa_jax.core.errors import UserError, did_you_mean, run_main

LAUNCH = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = LAUNCH.parent / "configs"

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
    "R² supervised": ("action_probe_r2_supervised", "{:.3f}"),
}


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    seeds = dict(_parse_recipe(text, args.seeds) for text in args.recipes)
    sets = [_parse_data(text) for text in args.data]
    overrides = {data: _overrides_of(data[0], [name for name, *_ in sets], args.overrides) for data in sets}
    runs = [(data, recipe, seed) for data in sets for recipe in seeds for seed in range(seeds[recipe])]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args.out, overrides[run[0]], *run), runs))
    print("| data (gap) | recipe | seed | " + " | ".join(COLUMNS) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for ((name, _, _, gap), recipe, seed), metrics in zip(runs, results, strict=True):
        print(f"| {name} ({gap}) | {recipe} | {seed} | " + " | ".join(_cells(metrics)) + " |")
    for data, recipe in dict.fromkeys(run[:2] for run in runs):
        group = [metrics for run, metrics in zip(runs, results, strict=True) if run[:2] == (data, recipe)]
        print(f"| {data[0]} ({data[3]}) | {recipe} | mean | " + " | ".join(_cells(_mean(group))) + " |")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--data", nargs="+", required=True, help="NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="of each recipe that does not name its own number")
    parser.add_argument("--recipes", nargs="+", default=["small"],
                        help=f"RECIPE or RECIPE=SEEDS, of {', '.join(RECIPES)}")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each")
    parser.add_argument("--overrides", nargs="*", default=[], help="config changes, key=value or NAME:key=value")
    return parser


def _parse_data(text: str) -> tuple[str, str, str, int]:
    name, _, rest = text.partition("=")
    parts = rest.split(",")
    if not name or len(parts) != 3 or not parts[2].isdigit():
        raise UserError(f"--data {text} is not of the form NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES")
    return name, parts[0], parts[1], int(parts[2])


def _parse_recipe(text: str, usual: int) -> tuple[str, int]:
    """(name, number of seeds)"""
    name, given, seeds = text.partition("=")
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}'{did_you_mean(name, RECIPES)}")
    if given and not (seeds.isdigit() and int(seeds)):
        raise UserError(f"--recipes {text} is not of the form RECIPE=SEEDS, with 1 seed at least")
    return name, int(seeds or usual)


def _overrides_of(data: str, names: list[str], overrides: list[str]) -> list[str]:
    """The overrides that are for all data sets or for this one, in their order."""
    chosen = []
    for override in overrides:
        name, named, setting = override.partition(":")
        if not named or "=" in name:
            chosen.append(override)
        elif name not in names:
            raise UserError(f"--overrides {override} is for no data set of --data{did_you_mean(name, names)}")
        elif name == data:
            chosen.append(setting)
    return chosen


def _run(out: pathlib.Path, overrides: list[str], data: tuple[str, str, str, int], recipe: str, seed: int) -> dict:
    """Trains and evaluates one run unless its results are there; returns the content of its metrics.json."""
    name, train, labelled, gap = data
    run = out / f"{name}_{recipe}_{seed}"
    results = run / "eval" / "metrics.json"
    if not results.is_file():
        out.mkdir(parents=True, exist_ok=True)
        settings = [f"seed={seed}", f"data.path={train}", f"data.val_path={labelled}", f"data.gap_frames={gap}",
                    *RECIPES[recipe], *overrides]  # fmt: skip
        _call(run, "train.py", "--config", str(CONFIGS / CONFIG[recipe]), "--workdir", str(run),
              *(f"--config.{setting}" for setting in settings))  # fmt: skip
        # The supervised bound depends on the data and the sizes, not on the recipe: once is enough.
        bound = [] if (recipe, seed) == ("small", 0) else ["--supervised_steps", "0"]
        _call(run, "eval.py", "--run", str(run), *bound)
    return json.loads(results.read_text())["metrics"]


def _call(run: pathlib.Path, script: str, *arguments: str) -> None:
    # One thread each: two runs side by side on two cores take less time than one after the other on both.
    env = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    log = run.with_name(f"{run.name}.log")
    with open(log, "a", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, str(LAUNCH / script), *arguments], stdout=file, stderr=file, env=env)
    if code.returncode:
        raise UserError(f"{script} failed for {run.name} (exit {code.returncode}); see {log}")


def _cells(metrics: dict) -> list[str]:
    return [form.format(metrics[key]) if key in metrics else "" for key, form in COLUMNS.values()]


def _mean(group: list[dict]) -> dict:
    keys = [key for key, _ in COLUMNS.values() if all(key in metrics for metrics in group)]
    return {key: statistics.mean(metrics[key] for metrics in group) for key in keys}


if __name__ == "__main__":
    run_main(main)
