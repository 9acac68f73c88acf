"""Trains feature tokenizers with several seeds and prints the table of docs/results/results.md.

python launch/studies/feature_tokenizers.py --data NAME=SHARDS[,COLUMN] ... --out DIR [--seeds 5] [--jobs 2]

COLUMN is feature (the default) or state. Every run is `launch/train.py` followed by `launch/eval.py`; a study that was
interrupted goes on where it stopped. Where the shards were made by tools/make_planted_features.py, the categories that
were found are compared with the planted ones.
"""

import json
import pathlib
from typing import NamedTuple

import common
import numpy as np

from lapa_jax import sample
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say

COLUMNS = {
    "categories": ("categories", "{:.0f}"),
    "Rand index": ("adjusted_rand_index", "{:.3f}"),
    "quality": ("quality", "{:.3f}"),
    "codes used": ("codebook_utilization", "{:.1%}"),
    "level 0, 1, 2": ("levels", "{}"),
    "orthogonality": ("orthogonality", "{:.3f}"),
    "topographic": ("topo", "{:.3f}"),
    "to latents": ("topo_pre", "{:.3f}"),
    "to codes": ("topo_post", "{:.3f}"),
}


FORM = "NAME=SHARDS[,COLUMN]"


class Data(NamedTuple):
    """A data set of --data."""

    name: str
    shards: str
    column: str = "feature"


def main(argv: list[str]) -> None:
    parser = common.command_line(__doc__, 5)
    parser.add_argument("--data", nargs="+", required=True, help=FORM)
    parser.add_argument("--variant", default="small", help="of configs/feature_vq.py")
    args = parser.parse_args(argv)
    sets = common.data_sets(args.data, FORM, _data)
    names = [data.name for data in sets]
    overrides = {data: common.overrides_of(data.name, names, args.overrides) for data in sets}
    runs = [(data, seed) for data in sets for seed in range(args.seeds)]
    with common.side_by_side(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args, overrides[run[0]], *run), runs))
    rows = [[data.name, str(seed), *common.cells(metrics, COLUMNS)]
            for (data, seed), metrics in zip(runs, results, strict=True)]  # fmt: skip
    for data in sets:
        group = [metrics for run, metrics in zip(runs, results, strict=True) if run[0] == data]
        rows.append([data.name, "mean", *common.cells(common.mean(group, COLUMNS), COLUMNS)])
    say(common.table(["data", "seed", *COLUMNS], rows))
    say(common.revisions())


def _data(*parts: str) -> Data:
    data = Data(*parts)
    if data.column not in ("feature", "state"):
        raise UserError(f"--data {data.name}: there is no column '{data.column}'; give feature or state")
    return data


def _run(args, overrides: list[str], data: Data, seed: int) -> dict:
    """Trains and evaluates one run unless its results are there; returns the figures of the table."""
    run = args.out / f"{data.name}_{args.variant}_{seed}"
    settings = [f"seed={seed}", f"data.path={data.shards}", f"data.fields=('{data.column}',)", *overrides]
    common.train(run, f"feature_vq.py:{args.variant}", settings)
    metrics = common.evaluate(run)["metrics"]
    groups = json.loads((run / "config.json").read_text())["model"]["groups"]
    levels = " ".join(f"{metrics[f'utilization_level_{level}']:.0%}" for level in range(3))
    return {**metrics, "categories": len(groups), "levels": levels, **_planted(data.shards, groups)}


def _planted(shards: str, groups) -> dict[str, float]:
    """How well the categories agree with the planted ones, where there are any; loners and constants have none."""
    from lapa_jax.models.tokenizers.feature_vq.categories import adjusted_rand_index  # imports jax, takes seconds

    truth = pathlib.Path(sample.path(shards) if shards in sample.FOLDERS else shards) / "planted.json"
    if not truth.is_file():
        return {}
    planted = np.array(json.loads(truth.read_text())["categories"])
    labels = np.full(len(planted), -1)
    for label, group in enumerate(groups):
        labels[list(group)] = label
    return {"adjusted_rand_index": adjusted_rand_index(planted[planted >= 0], labels[planted >= 0])}


if __name__ == "__main__":
    run_main(main)
