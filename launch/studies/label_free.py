"""Which figure that needs no action tells good latent actions? Ranks trained tokenizers by each, and by the probe.

python launch/studies/label_free.py FOLDER ... --out DIR [--jobs 2]

FOLDER: whatever holds runs of tokenizers with codes, on held-out episodes with actions: one run, the --out of
launch/sweep.py, of tools/choose_gap.py, of a study. Evaluations that are there are read; a run whose evaluation lacks a
figure is evaluated again, into DIR, about half a minute of a core each. At least 30 runs on three data sets say
something.

For each data set Spearman's rank correlation of each figure with R² of the action from the codes, with an interval of
95 % by a bootstrap over settings: runs that differ in their seed alone are drawn together. And the R² of the run that
the figure would have picked. `tables.md` and `runs.csv` in DIR.
"""

import csv
import hashlib
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import common
import numpy as np

from lapa_jax.core import escape
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path, read_json
from lapa_jax.train.run import model_defaults

PROBE = "action_probe_r2"
DRAWS = 1000
FEWEST_SETTINGS = 5
"""For an interval: draws of two or three settings are mostly the same few, and the interval would look narrow."""
OF_EVALUATION = ("swap_gap", "swap_gap_same_place", "transfer_consistency", "transfer_chance", "cycle_consistency",
                 "view_consistency", "reversal_correlation", "reversal_r2", "one_frame_r2", "perplexity",
                 "sequence_perplexity", "psnr_gain", "identical_frame_agreement")  # fmt: skip
"""The metrics of launch/eval.py that `FIGURES` are made of."""

FIGURES = {
    "swap gap": lambda m: m["swap_gap"],
    "swap gap, codes of a pair that ends alike": lambda m: m["swap_gap_same_place"],
    "that as a share of the swap gap": lambda m: m["swap_gap_same_place"] / max(m["swap_gap"], 1e-6),
    "codes back in another clip": lambda m: m["transfer_consistency"],
    "codes back beyond chance": lambda m: _beyond_chance(m["transfer_consistency"], m["transfer_chance"]),
    "codes back in the same clip": lambda m: m["cycle_consistency"],
    "codes stay when shifted": lambda m: m["view_consistency"],
    "codes stay beyond chance": lambda m: _beyond_chance(m["view_consistency"], m["transfer_chance"]),
    "deltas turn when reversed": lambda m: -m["reversal_correlation"],
    "R² of the reverse": lambda m: m["reversal_r2"],
    "deltas not seen in one frame": lambda m: -m["one_frame_r2"],
    "perplexity": lambda m: m["perplexity"],
    "perplexity of sequences": lambda m: m["sequence_perplexity"],
    "PSNR gain": lambda m: m["psnr_gain"],
    "one code for standing still": lambda m: m["identical_frame_agreement"],
}
"""{figure: its value from the metrics of an evaluation}, all so that more should be better."""


class Run(NamedTuple):
    """A trained tokenizer. Attributes: name. data: what it was evaluated on, its folder and a checksum of what is in
    it, since folders of several data sets may have one name. setting: its config without the seed. metrics: of its
    evaluation."""

    name: str
    data: str
    setting: str
    metrics: Mapping[str, float]


def main(argv: list[str]) -> None:
    parser = common.command_line(__doc__, overrides=False)
    parser.add_argument("folders", nargs="+", type=pathlib.Path, metavar="FOLDER", help="whatever holds trained runs")
    args = parser.parse_args(argv)
    folders = [each for folder in args.folders for each in tokenizers(folder)]
    hours = len(folders) / 120
    say(f"{len(folders)} tokenizers with codes; {hours:.1f} hours of a core where none is evaluated yet")
    with common.side_by_side(args.jobs) as pool:
        read = list(pool.map(lambda each: _read(*each, args.out), folders))
    runs = [run for run in read if run is not None]
    if not runs:
        raise UserError("no tokenizer is evaluated on episodes with actions: launch/eval.py --run RUN --data FOLDER")
    text = tables(runs)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out / "runs.csv") as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = [[escape.cell(run.name), escape.cell(run.data), run.metrics[PROBE],
                 *(f"{of(run.metrics):.6g}" for of in FIGURES.values())] for run in runs]  # fmt: skip
        csv.writer(file).writerows([["run", "data", PROBE, *FIGURES], *rows])
    with atomic_path(args.out / "tables.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(text)


def tokenizers(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict]]:
    """(folder, config) of the runs of tokenizers with codes at and below a folder.

    Raises:
      UserError: there is none.
    """
    runs = []
    for path in sorted({folder / "checkpoints", *folder.rglob("checkpoints")}):
        if not (path.parent / "config.json").is_file():
            continue
        config = read_json(path.parent / "config.json")
        model = config.get("model", {})
        if model.get("name", "").startswith("tokenizers.") and model.get("code_seq_len") and (
            model.get("quantizer") != "none"
        ):  # fmt: skip
            runs.append((path.parent, config))
    if not runs:
        raise UserError(f"{folder} holds no run of a tokenizer of frame pairs with codes")
    return runs


def _read(folder: pathlib.Path, config: Mapping, out: pathlib.Path) -> Run | None:
    """The run with the metrics of its evaluation, which is made again where it lacks a figure; None without actions."""
    evaluation = _evaluation(folder)
    if not {PROBE, *OF_EVALUATION} <= set(evaluation.get("metrics", {})):
        # Runs of two sweeps may have the same name, and so may the folders that these lie in.
        whole = hashlib.sha256(bytes(folder.resolve())).hexdigest()[:8]
        again = out / "evaluations" / f"{folder.name}_{whole}"
        # On what it was evaluated on before, which may be other data than its own.
        where = ["--data", evaluation["data"], "--split", evaluation["split"]] if evaluation else []
        if not (again / "metrics.json").is_file():
            common.call(again.with_suffix(".log"), "launch/eval.py", "--run", str(folder), *where, "--out", str(again),
                        "--reference_steps", "0")  # fmt: skip
        evaluation = read_json(again / "metrics.json")
    metrics = {name: value for name, value in evaluation["metrics"].items() if value is not None}
    if not {PROBE, *OF_EVALUATION} <= set(metrics):
        say(f"{folder} is left out: its evaluation lacks {', '.join(sorted({PROBE, *OF_EVALUATION} - set(metrics)))}")
        return None
    data = f"{'/'.join(pathlib.Path(evaluation['data']).parts[-2:])} {evaluation['data_fingerprint'][:4]}"
    return Run(str(folder), data, setting_of(config), metrics)


def setting_of(config: Mapping) -> str:
    """A config without its seed and without what changes nothing, which configs of an earlier version may not name."""
    defaults, losses = model_defaults(config), config.get("loss") or {}
    model = {key: value for key, value in config["model"].items() if defaults.get(f"model.{key}", ...) != value}
    losses = {name: weight for name, weight in losses.items() if weight}
    return json.dumps({**config, "seed": None, "model": model, "loss": losses}, sort_keys=True)


def _evaluation(folder: pathlib.Path) -> dict:
    """The content of the `metrics.json` of a run: in its own folder, or in one of a sweep's beside it; {} without."""
    for path in (folder / "eval" / "metrics.json", *sorted(folder.parent.glob("*/metrics.json"))):
        content = read_json(path) if path.is_file() else {}
        # By name: a sweep may have been moved since.
        if PROBE in content.get("metrics", {}) and pathlib.Path(content.get("run", "")).name == folder.name:
            return content
    return {}


def _beyond_chance(share: float, chance: float) -> float:
    return (share - chance) / max(1 - chance, 1e-6)


def tables(runs: Sequence[Run]) -> str:
    """Both tables and what follows from them."""
    of_data = {name: [run for run in runs if run.data == name] for name in sorted({run.data for run in runs})}
    heads = [f"{name} ({len(group)} runs, {len({run.setting for run in group})} settings)"
             for name, group in of_data.items()]  # fmt: skip
    ranks, picks, telling = [], [], []
    for figure, of in FIGURES.items():
        correlations = [rank_correlations([of(run.metrics) for run in group], [run.metrics[PROBE] for run in group],
                                          [run.setting for run in group]) for group in of_data.values()]  # fmt: skip
        together = np.mean(correlations, axis=0)
        ranks.append([figure, *map(_interval, correlations), _interval(together)])
        intervals = [_bounds(drawn) for drawn in correlations]
        if all(bounds is not None and bounds[0] > 0 for bounds in intervals):
            telling.append(figure)
        picks.append([figure, *(f"{max(group, key=lambda run: of(run.metrics)).metrics[PROBE]:.3f}"
                                for group in of_data.values())])  # fmt: skip
    for name, choose in (("the best run", max), ("the mean of the runs", statistics.mean)):
        picks.append([name, *(f"{choose([run.metrics[PROBE] for run in group]):.3f}" for group in of_data.values())])
    verdict = f"Above 0 with their intervals in every data set: {', '.join(telling) or 'none'}."
    if few := [name for name, group in of_data.items() if len({run.setting for run in group}) < FEWEST_SETTINGS]:
        verdict = f"No figure is judged: fewer than {FEWEST_SETTINGS} settings of {', '.join(few)}."
    about = ("Rank correlation with R² of the action from the codes; 95 % by a bootstrap over settings, of which an "
             f"interval needs {FEWEST_SETTINGS}.")  # fmt: skip
    by_rank = common.table(["figure", *heads, "mean of the data sets"], ranks)
    by_choice = common.table(["chosen by", *of_data], picks)
    return f"{about}\n\n{by_rank}\n{verdict}\n\nR² of the run that has the most of a figure.\n\n{by_choice}"


def rank_correlations(figure: Sequence[float], score: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    """Spearman's correlation, and after it those of `DRAWS` draws of the clusters; NaN where one does not vary, and all
    of the draws where there are fewer clusters than `FEWEST_SETTINGS`."""
    from scipy.stats import rankdata

    def spearman(rows: np.ndarray) -> float:
        a, b = (rankdata(values[rows]) for values in (one, other))
        spread = a.std() * b.std()
        return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread else np.nan

    one, other, names = np.asarray(figure), np.asarray(score), np.asarray(clusters)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(clusters)]
    rng = np.random.default_rng(0)
    whole = spearman(np.arange(len(one)))
    if len(members) < FEWEST_SETTINGS:
        return np.array([whole, *[np.nan] * DRAWS])
    drawn = [np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(DRAWS)]
    return np.array([whole, *map(spearman, drawn)])


def _bounds(correlations: np.ndarray) -> np.ndarray | None:
    """95 % of the draws; None where the figure does not vary, or without draws."""
    drawn = correlations[1:]
    if np.isnan(correlations[0]) or np.isnan(drawn).all():
        return None
    return np.nanquantile(drawn, [0.025, 0.975])


def _interval(correlations: np.ndarray) -> str:
    """As +0.50 (+0.20 to +0.70), or +0.50 without draws; "-" where the figure does not vary."""
    if np.isnan(correlations[0]):
        return "-"
    bounds = _bounds(correlations)
    return f"{correlations[0]:+.2f}" + ("" if bounds is None else f" ({bounds[0]:+.2f} to {bounds[1]:+.2f})")


if __name__ == "__main__":
    run_main(main)
