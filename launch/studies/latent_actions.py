"""Trains small latent action models, several seeds and ablations, and prints the table of docs/results.md.

python launch/studies/latent_actions.py --data NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES ... --out DIR
    [--seeds 3] [--recipes small spec_wiring ...] [--jobs 2]

Every run is `launch/train.py` followed by `launch/eval.py`; a study that was interrupted goes on where it stopped.
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
CONFIG = LAUNCH.parent / "configs" / "laq.py:small"

# What each recipe changes. Ablations change one thing each; "spec_wiring" needs the decoder to see what the encoder
# saw, which rules out the second view.
RECIPES = {
    "small": [],
    "official_layout": ["--config.model.layout=official"],
    "one_view": ["--config.model.view_shift=0"],
    "spec_wiring": ["--config.model.view_shift=0", "--config.model.decoder_context=encoder"],
    "plain_loss": ["--config.loss.motion=0", "--config.loss.coarse=0"],
    "official_start": ["--config.model.codebook_init=normal", "--config.model.delta_norm=none"],
    "official_pooling": ["--config.model.pooling=conv"],
}
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
    for recipe in args.recipes:
        if recipe not in RECIPES:
            raise UserError(f"unknown recipe '{recipe}'{did_you_mean(recipe, RECIPES)}")
    sets = [_parse_data(text) for text in args.data]
    runs = [(*data, recipe, seed) for recipe in args.recipes for seed in range(args.seeds) for data in sets]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args.out, args.overrides, *run), runs))
    print("| data (gap) | recipe | seed | " + " | ".join(COLUMNS) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for (name, _, _, gap, recipe, seed), metrics in zip(runs, results, strict=True):
        print(f"| {name} ({gap}) | {recipe} | {seed} | " + " | ".join(_cells(metrics)) + " |")
    for name, _, _, gap in sets:
        for recipe in args.recipes:
            group = [m for run, m in zip(runs, results, strict=True) if (run[0], run[4]) == (name, recipe)]
            print(f"| {name} ({gap}) | {recipe} | mean | " + " | ".join(_cells(_mean(group))) + " |")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--data", nargs="+", required=True, help="NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=["small"], help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each")
    parser.add_argument("--overrides", nargs="*", default=[], help="further config changes, key=value")
    return parser


def _parse_data(text: str) -> tuple[str, str, str, int]:
    name, _, rest = text.partition("=")
    parts = rest.split(",")
    if not name or len(parts) != 3 or not parts[2].isdigit():
        raise UserError(f"--data {text} is not of the form NAME=TRAIN_SHARDS,LABELLED_SHARDS,GAP_FRAMES")
    return name, parts[0], parts[1], int(parts[2])


def _run(out: pathlib.Path, overrides, name, train, labelled, gap, recipe, seed) -> dict:
    """Trains and evaluates one run unless its results are there; returns the content of its metrics.json."""
    run = out / f"{name}_{recipe}_{seed}"
    results = run / "eval" / "metrics.json"
    if not results.is_file():
        out.mkdir(parents=True, exist_ok=True)
        data = [f"--config.data.path={train}", f"--config.data.val_path={labelled}", f"--config.data.gap_frames={gap}"]
        extra = [f"--config.{override}" for override in overrides]
        _call(run, "train.py", "--config", str(CONFIG), "--workdir", str(run), f"--config.seed={seed}", *data,
              *RECIPES[recipe], *extra)  # fmt: skip
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
