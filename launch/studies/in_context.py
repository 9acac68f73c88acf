"""Trains small in-context policies, measures what prompts are worth, prints the tables of docs/results/results.md.

python launch/studies/in_context.py --data SHARDS --out DIR [--actions raw z q z+q] [--seeds 3] [--folds 5] [--jobs 2]
    [--overrides train.steps=500 ...]

For each seed a causal MS-TCN tokenizer, and a policy for each way to see actions, at the same size and number of steps.
Then each fold leaves out a part of the tasks, so that every task was unseen by one policy (raw actions, seed 0). Errors
are squared, of normalised actions, on held-out episodes, with the right prompt, one of another task, and none.

Every run is `launch/train.py` followed by `launch/eval.py`; a study that was interrupted goes on where it stopped.
Seven minutes of one core a run: two hours for the usual 17 policies.
"""

import argparse
import pathlib
import statistics

import common

from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path
from lapa_jax.data.samples.tasks import task_names
from lapa_jax.data.shards.step_shards import StepShards

ACTIONS = ("raw", "z", "q", "z+q")
CONFIG = {actions: "icl.py:small" if actions == "raw" else "icl.py:small+frozen" for actions in ACTIONS}
PROMPTS = ("right", "wrong", "none")
TOKENIZER = ["model.causal=True", "train.steps=1500", "train.eval_every=500", "train.save_every=500"]


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    for actions in args.actions:
        if actions not in ACTIONS:
            raise UserError(f"--actions {actions}{did_you_mean(actions, ACTIONS)}")
    common.check_overrides(sorted({CONFIG[actions] for actions in args.actions}), args.overrides)
    left_out = folds(sorted(set(task_names(StepShards(args.data, "train")))), args.folds)
    seen = [(actions, seed, ()) for seed in range(args.seeds) for actions in args.actions]
    unseen = [("raw", 0, tasks) for tasks in left_out]
    with common.side_by_side(args.jobs) as pool:
        if set(args.actions) - {"raw"}:
            # Tokenizers first: policies that see codes begin with the one of their seed.
            list(pool.map(lambda seed: _tokenizer(args, seed), range(args.seeds)))
        results = list(pool.map(lambda run: _policy(args, *run), [*seen, *unseen]))
    runs = [(run, result) for run, result in zip(seen, results, strict=False)]
    by_tasks = by_task([r for (actions, *_), r in runs if actions == "raw"], results[len(seen) :])
    text = "\n".join([by_actions(runs), by_tasks, common.revisions()])
    with atomic_path(args.out / "tables.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(text)


def _parser() -> argparse.ArgumentParser:
    parser = common.command_line(__doc__, 3)
    parser.add_argument("--data", required=True, help="folder of step shards with states, actions and tasks")
    parser.add_argument("--actions", nargs="+", default=list(ACTIONS), help="how the policies see actions")
    parser.add_argument("--folds", type=int, default=5, help="policies that each leave out a part of the tasks; or 0")
    return parser


def folds(tasks: list[str], count: int) -> list[tuple[str, ...]]:
    """The tasks in `count` parts of about the same size, every count-th in one; no parts for 0."""
    if count < 0 or count == 1 or count > len(tasks):
        raise UserError(f"--folds {count} of {len(tasks)} tasks; give 0, or at least 2 and at most one a task")
    return [tuple(tasks[start::count]) for start in range(count)]


def _tokenizer(args, seed: int) -> pathlib.Path:
    run = args.out / "runs" / f"tokenizer_{seed}"
    return common.train(run, "mstcn.py:small", [f"seed={seed}", f"data.path={args.data}", *TOKENIZER])


def _policy(args, actions: str, seed: int, left_out: tuple[str, ...]) -> dict:
    """Trains and evaluates a policy unless its results are there; returns the content of its metrics.json."""
    name = f"{actions.replace('+', '')}_{seed}" + (f"_without_{'_'.join(left_out)}" if left_out else "")
    settings = [f"seed={seed}", f"data.path={args.data}", f"model.actions={actions}", *args.overrides]
    if actions != "raw":
        settings.append(f"init_from.tokenizer={args.out / 'runs' / f'tokenizer_{seed}'}")
    if left_out:
        settings.append(f"data.held_out_tasks={left_out!r}")
    run = common.train(args.out / "runs" / name, CONFIG[actions], settings)
    return common.evaluate(run)


def by_actions(runs: list[tuple[tuple, dict]]) -> str:
    """Markdown: for each way to see actions the mean and, in brackets, the range over the seeds."""
    columns = {"right prompt": "action_mse", "wrong": "action_mse_wrong_prompt", "none": "action_mse_no_prompt",
               "R²": "action_r2", "tasks won": "prompt_wins"}  # fmt: skip
    rows = []
    for actions in dict.fromkeys(run[0] for run, _ in runs):
        metrics_of_runs = [result["metrics"] for run, result in runs if run[0] == actions]
        cells = [_spread([metrics[key] for metrics in metrics_of_runs]) for key in columns.values()]
        rows.append([actions, str(len(metrics_of_runs)), *cells])
    return common.table(["actions", "seeds", *columns], rows)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f}–{max(values):.4f})"


def by_task(seen: list[dict], unseen: list[dict]) -> str:
    """Markdown: the errors on each task, means over the policies that saw it, and of the one that did not.

    Args:
      seen: contents of metrics.json of policies that were trained on all tasks. unseen: of those of the folds.
    """
    names = [task["name"] for task in seen[0]["tasks"]] if seen else []
    held_out = {task["name"]: task for result in unseen for task in result["tasks"] if task["status"] == "held out"}
    rows, wins = [], {"seen": [], "unseen": []}
    for name in names:
        of_task = [task for result in seen for task in result["tasks"] if task["name"] == name]
        rows.append([name, *_errors(of_task), *_errors([held_out[name]] if name in held_out else [])])
        wins["seen"].append(_wins(of_task))
        wins["unseen"].append(_wins([held_out[name]]) if name in held_out else False)
    head = ["task", *(f"seen: {kind}" for kind in PROMPTS), *(f"unseen: {kind}" for kind in PROMPTS)]
    wins_by_kind = "; ".join(f"{kind} {sum(won)} of {len(won)}" for kind, won in wins.items())
    sentence = f"The right prompt has the smallest of the three errors: {wins_by_kind} tasks."
    return f"{common.table(head, rows)}\n{sentence}\n"


def _errors(tasks: list[dict]) -> list[str]:
    return [f"{_mse(tasks, kind):.4f}" if tasks else "" for kind in PROMPTS]


def _wins(tasks: list[dict]) -> bool:
    return _mse(tasks, "right") < min(_mse(tasks, "wrong"), _mse(tasks, "none"))


def _mse(tasks: list[dict], kind: str) -> float:
    return statistics.mean(task[kind]["action_mse"] for task in tasks)


if __name__ == "__main__":
    run_main(main)
