"""Trains small stage-3 policies with few demonstrations, from stage-2 runs and from scratch, and prints their tables.

python launch/studies/robot_policies.py --data NAME=DEMO_SHARDS,STAGE2_RUN ... --out DIR
    [--recipes bins bins_scratch latent=5 ...] [--seeds 3] [--jobs 2] [--overrides train.steps=500 NAME:seed=7 ...]

DEMO_SHARDS have actions, instructions and held-out episodes; STAGE2_RUN is a run of launch/train.py --config
configs/vla_latent.py:small. A recipe is a head, alone: from the stage-2 run, with "_scratch": the same model and steps
from nothing. All learn the same chunks. Every run is `launch/train.py` and `launch/eval.py`; a study that was
interrupted goes on where it stopped. RECIPE=5 trains a recipe with five seeds.
"""

import concurrent.futures
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lapa_jax.core import studies
from lapa_jax.core.errors import UserError, run_main


class Data(NamedTuple):
    """A data set of --data."""

    name: str
    demos: str
    stage2: str


class Recipe(NamedTuple):
    """A config, what is changed in it, and whether the run begins with the stage-2 run."""

    config: str
    changes: tuple[str, ...]
    pretrained: bool


# "codes" is the plan's plain network on latent actions, which sees nothing else.
HEADS = {
    "bins": ("vla_action.py:small", ()),
    "latent": ("vla_action.py:small_latent", ()),
    "codes": ("vla_action.py:small_latent", ("model.latent_context=False",)),
    "chunk": ("vla_action.py:small_chunk", ()),
}
RECIPES = {f"{head}{suffix}": Recipe(*of, pretrained=not suffix)
           for head, of in HEADS.items() for suffix in ("", "_scratch")}  # fmt: skip
USUAL = [f"{head}{suffix}" for head in ("bins", "latent", "chunk") for suffix in ("", "_scratch")]
CHUNK_LENGTH = 8
COLUMNS = {
    "R²": ("action_r2", "{:.3f}"),
    "MSE": ("action_mse", "{:.4f}"),
    "MAE": ("action_mae", "{:.4f}"),
    "gripper right": ("gripper_accuracy", "{:.1%}"),
    "bins within 1": ("bin_accuracy", "{:.1%}"),
}


def main(argv: list[str]) -> None:
    args = studies.parser(__doc__, "NAME=DEMO_SHARDS,STAGE2_RUN", RECIPES, USUAL, 3).parse_args(argv)
    seeds = dict(studies.recipe_and_seeds(text, RECIPES, args.seeds) for text in args.recipes)
    sets = [_parse_data(text) for text in args.data]
    names = [data.name for data in sets]
    overrides = {data: studies.overrides_of(data.name, names, args.overrides) for data in sets}
    runs = [(data, recipe, seed) for data in sets for recipe in seeds for seed in range(seeds[recipe])]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args.out, overrides[run[0]], *run), runs))
    print(_means(dict(zip(runs, results, strict=True))))
    print(_runs(zip(runs, results, strict=True)))


def _parse_data(text: str) -> Data:
    name, _, rest = text.partition("=")
    parts = rest.split(",")
    if not name or len(parts) != 2 or not all(parts):
        raise UserError(f"--data {text} is not of the form NAME=DEMO_SHARDS,STAGE2_RUN")
    return Data(name, *parts)


def _run(out: pathlib.Path, overrides: list[str], data: Data, name: str, seed: int) -> dict:
    """Trains and evaluates one run unless that is done; returns the metrics."""
    recipe = RECIPES[name]
    begin = [f"init_from.={data.stage2}"] if recipe.pretrained else []
    settings = [f"seed={seed}", f"data.path={data.demos}", *begin, f"data.chunk_length={CHUNK_LENGTH}",
                *recipe.changes, *overrides]  # fmt: skip
    return studies.evaluate(studies.train(out / f"{data.name}_{name}_{seed}", recipe.config, settings))["metrics"]


def _means(results: Mapping[tuple[Data, str, int], Mapping]) -> str:
    """The table of means and ranges over seeds."""
    rows = []
    for data, recipe in dict.fromkeys(run[:2] for run in results):
        group = [metrics for run, metrics in results.items() if run[:2] == (data, recipe)]
        rows.append([data.name, recipe, str(len(group)), *studies.ranges(group, COLUMNS)])
    return studies.table(["data", "recipe", "seeds", *COLUMNS], rows)


def _runs(results: Iterable[tuple[tuple[Data, str, int], Mapping]]) -> str:
    """The table of single runs."""
    rows = [[data.name, recipe, str(seed), *studies.cells(metrics, COLUMNS)]
            for (data, recipe, seed), metrics in results]  # fmt: skip
    return studies.table(["data", "recipe", "seed", *COLUMNS], rows)


if __name__ == "__main__":
    run_main(main)
