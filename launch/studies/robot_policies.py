"""Trains small stage-3 policies with few demonstrations, from stage-2 runs and from scratch, and prints their tables.

python launch/studies/robot_policies.py --data NAME=DEMO_SHARDS,STAGE2_RUN ... --out DIR
    [--recipes bins bins_scratch latent=5 ...] [--seeds 3] [--jobs 2] [--overrides train.steps=500 NAME:seed=7 ...]

DEMO_SHARDS have actions, instructions and held-out episodes; STAGE2_RUN is a run of launch/train.py --config
configs/vla_latent.py:small. A recipe is a head, alone: from the stage-2 run, with "_scratch": the same model and steps
from nothing. All learn the same chunks. Every run is `launch/train.py` and `launch/eval.py`; a study that was
interrupted goes on where it stopped. RECIPE=5 trains a recipe with five seeds.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import common

from lapa_jax.core.errors import run_main
from lapa_jax.core.escape import say


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


# "codes" is the specification's plain network on latent actions, which sees nothing else.
HEADS = {
    "bins": ("vla_action.py:small", ()),
    "latent": ("vla_action.py:small+latent", ()),
    "codes": ("vla_action.py:small+latent", ("model.head.context=False",)),
    "chunk": ("vla_action.py:small+chunk", ()),
    "flow": ("vla_action.py:small+flow", ()),
}
RECIPES = {f"{head}{suffix}": Recipe(*of, pretrained=not suffix)
           for head, of in HEADS.items() for suffix in ("", "_scratch")}  # fmt: skip
USUAL = [f"{head}{suffix}" for head in ("bins", "latent", "chunk", "flow") for suffix in ("", "_scratch")]
CHUNK_LENGTH = 8
COLUMNS = {
    "R²": ("action_r2", "{:.3f}"),
    "MSE": ("action_mse", "{:.4f}"),
    "MAE": ("action_mae", "{:.4f}"),
    "gripper right": ("gripper_accuracy", "{:.1%}"),
    "bins within 1": ("bin_accuracy", "{:.1%}"),
}


FORM = "NAME=DEMO_SHARDS,STAGE2_RUN"


def main(argv: list[str]) -> None:
    args = common.grid_command_line(__doc__, FORM, RECIPES, USUAL, 3).parse_args(argv)
    runs = common.grid(args, common.data_sets(args.data, FORM, Data), RECIPES)
    with common.side_by_side(args.jobs) as pool:
        results = list(pool.map(lambda run: _run(args.out, run), runs))
    say(_means(runs, results))
    say(_runs(runs, results))
    say(common.revisions())


def _run(out: pathlib.Path, run: common.Run) -> dict:
    """Trains and evaluates one run unless that is done; returns the metrics."""
    data, recipe = run.data, RECIPES[run.recipe]
    # The empty key stands for the whole model.
    begin = [f"init_from.={data.stage2}"] if recipe.pretrained else []
    settings = [f"seed={run.seed}", f"data.path={data.demos}", *begin, f"data.chunk_length={CHUNK_LENGTH}",
                *recipe.changes, *run.overrides]  # fmt: skip
    return common.evaluate(common.train(out / run.name, recipe.config, settings))["metrics"]


def _means(runs: Sequence[common.Run], results: Sequence[Mapping]) -> str:
    """The table of means and ranges over seeds."""
    rows = []
    for data, recipe in dict.fromkeys(run[:2] for run in runs):
        group = [metrics for run, metrics in zip(runs, results, strict=True) if run[:2] == (data, recipe)]
        rows.append([data.name, recipe, str(len(group)), *common.ranges(group, COLUMNS)])
    return common.table(["data", "recipe", "seeds", *COLUMNS], rows)


def _runs(runs: Sequence[common.Run], results: Sequence[Mapping]) -> str:
    """The table of single runs."""
    rows = [[run.data.name, run.recipe, str(run.seed), *common.cells(metrics, COLUMNS)]
            for run, metrics in zip(runs, results, strict=True)]  # fmt: skip
    return common.table(["data", "recipe", "seed", *COLUMNS], rows)


if __name__ == "__main__":
    run_main(main)
