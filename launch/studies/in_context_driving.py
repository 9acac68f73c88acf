"""Can a policy learn an unseen task from demonstrations shown to it? In-context policies that drive in Meta-World.

python launch/studies/in_context_driving.py --out DIR [--prompts 1 3 5] [--variations 20] [--unseen 10] [--seeds 3]
    [--episodes 50] [--steps 3000] [--jobs 2] [--overrides optim.learning_rate=5e-4 ...]

The expert's episodes of 40 of the 50 tasks are recorded, several layouts of each, with the simulator's whole state (the
hand, two objects and the goal): what is asked is whether a prompt is used, not whether small images show enough. A
policy (configs/icl.py:small) for each number of demonstrations in its prompt and each seed learns them. Then it drives
in the 10 tasks that were left out, and in 10 of the others, with demonstrations of the task (right), of another one
(wrong), and none. The aim is right over three times wrong on unseen tasks.

Every leg is one of our commands; a study that was interrupted goes on where it stopped, and after each policy
`tables.md` in DIR has what there is. It says beforehand how long it will take.
"""

import argparse

import common
import common_tables as tables

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path
from lapa_jax.sim.metaworld_tasks import TASKS

SIZE, FPS, NOISE = 16, 20, 0.1  # pixels of images that nothing looks at, frames a second, as the expert's actions
KINDS = ("right", "wrong", "none")
PAIRED = [(tasks, kind) for tasks in ("unseen", "seen") for kind in KINDS[1:]]
CONFIG = "icl.py:small"
DATA_SEED = 1
SECONDS = {"record": 0.7, "step": 0.07, "drive": 0.6}
"""Of a core, measured roughly: an episode that is recorded, a step of training with one demonstration in the prompt, an
episode that is driven."""


def main(argv: list[str]) -> None:
    parser = common.command_line(__doc__, 3)
    add = parser.add_argument
    add("--prompts", nargs="+", type=common.at_least_one, default=(1, 3, 5), help="demonstrations in a prompt")
    add("--variations", type=common.at_least_one, default=20, help="recorded layouts of each task")
    add("--unseen", type=common.at_least_one, default=10, help="tasks that are left out")
    add("--episodes", type=common.at_least_one, default=50, help="of each evaluation")
    add("--steps", type=common.at_least_one, default=3000, help="of each training")
    args = parser.parse_args(argv)
    seen, unseen = split(args.unseen)
    common.check_overrides([CONFIG], args.overrides)
    say(f"prompts of {', '.join(map(str, args.prompts))} demonstrations, {common.counted(args.seeds, 'seed')}: about "
        f"{hours(args):.1f} core hours from nothing")
    command = [*_tasks(seen), "--episodes", str(args.variations * len(seen)), "--seed", str(DATA_SEED), "--noise",
               str(NOISE), "--fps", str(FPS), "--out", str(args.out / "demos")]  # fmt: skip
    common.call(args.out / "logs" / "demos.log", "tools/record_sim.py", *_env(), *command)
    # As many of those that were trained on as of the others, spread over all.
    driven = {"unseen": unseen, "seen": seen[:: len(seen) // len(unseen)][: len(unseen)]}
    runs = [(prompts, seed) for seed in range(args.seeds) for prompts in args.prompts]
    cells: dict[tuple[str, int], dict] = {}
    text = ""
    with common.side_by_side(args.jobs) as pool:
        # Controls do not depend on the policy: those of each seed are driven once.
        starts = [(name, tasks, seed) for seed in range(args.seeds) for name, tasks in driven.items()]
        list(pool.map(lambda each: _controls(args, *each), starts))
        results = pool.map(lambda run: _policy(args, driven, *run), runs)
        for (prompts, seed), episodes in zip(runs, results, strict=True):
            cells[f"{prompts} shown", seed] = {"episodes": episodes}
            text = f"{table(cells, len(seen), len(unseen))}\n{common.revisions()}"
            with atomic_path(args.out / "tables.md") as temporary:
                temporary.write_text(text, encoding="utf-8")
    say(text)


def split(unseen: int) -> tuple[list[str], list[str]]:
    """(tasks that are trained on, tasks that are left out): every n-th of all in alphabetical order is left out."""
    names = sorted(TASKS)
    if not 1 <= unseen <= len(names) // 2:
        raise UserError(f"--unseen {unseen}: there are {len(names)} tasks; leave out 1 to {len(names) // 2} of them")
    left_out = names[:: len(names) // unseen][:unseen]
    return [name for name in names if name not in left_out], left_out


def hours(args: argparse.Namespace) -> float:
    """Of a core, for everything. A step costs by its length: the window's ten steps and ten of each demonstration."""
    steps = sum(args.steps * (1 + prompts) / 2 for prompts in args.prompts) * args.seeds
    driven = (len(args.prompts) * len(KINDS) + len(common.CONTROLS)) * args.seeds * args.episodes * 2
    recorded = args.variations * (len(TASKS) - args.unseen)
    return (SECONDS["step"] * steps + SECONDS["drive"] * driven + SECONDS["record"] * recorded) / 3600


def _env() -> list[str]:
    return ["--env", "metaworld", "--state", "all", "--size", str(SIZE)]


def _tasks(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--task", name)]


def _policy(args: argparse.Namespace, driven: dict[str, list[str]], prompts: int, seed: int) -> dict[str, list]:
    """Trains a policy and lets it drive, unless that is done; the lines of its episodes, by tasks and prompt."""
    every = max(1, args.steps // 4)
    settings = [f"seed={seed}", f"data.path={args.out / 'demos'}",
                f"model.prompts={prompts}", f"train.steps={args.steps}", f"train.eval_every={every}",
                f"train.save_every={every}", "train.trackers=()", *args.overrides]  # fmt: skip
    run = common.train(args.out / "runs" / f"icl_{prompts}_{seed}", CONFIG, settings)
    episodes = {}
    for name, tasks in driven.items():
        for kind in KINDS:
            folder = run / f"drive_{name}_{kind}"
            command = ["--run", str(run), "--step", "best", *_env(), *_tasks(tasks), "--prompt", kind, "--episodes",
                       str(args.episodes), "--seed", str(seed), "--videos", "0", "--out", str(folder)]  # fmt: skip
            if not common.driven(folder, args.episodes):
                for control in common.CONTROLS:
                    common.copy(args.out / "controls" / f"{name}_{seed}" / control, folder / control)
                common.call(args.out / "logs" / f"{run.name}_{name}_{kind}.log", "launch/eval.py", *command)
            episodes[f"{name}, {kind}"] = common.episodes(folder / "policy", args.episodes)
    return episodes


def _controls(args: argparse.Namespace, name: str, tasks: list[str], seed: int) -> None:
    folder = args.out / "controls" / f"{name}_{seed}"
    command = ["--policy", common.CONTROLS[0], *_env(), *_tasks(tasks), "--episodes", str(args.episodes), "--seed",
               str(seed), "--videos", "0", "--out", str(folder)]  # fmt: skip
    if not common.driven(folder, args.episodes):
        common.call(args.out / "logs" / f"controls_{folder.name}.log", "launch/eval.py", *command)


def table(cells: tables.Cells, seen: int, unseen: int) -> str:
    """Success with each kind of prompt, how many times the right one's is that of the wrong one, how many points it is
    ahead of the others, and of the tasks one by one."""
    from lapa_jax.evaluate.closed_loop import cell

    rows, ahead = [], []
    for name in tables.names(cells):
        starts = {each: tables.solved(cells, name, each) for each in tables.conditions(cells)}
        rates = {each: tables.rate(own) for each, own in starts.items()}
        right, wrong = (rates[f"unseen, {kind}"]["success_rate"] for kind in ("right", "wrong"))
        ratio = f"{right / wrong:.1f}" if wrong else "undefined (0 successes)"
        rows.append([name, *map(cell, rates.values()), ratio])
        ahead.append([name, *(tables.ahead(starts[f"{tasks}, right"], starts[f"{tasks}, {kind}"])
                              for tasks, kind in PAIRED)])  # fmt: skip
    head = ["", *tables.conditions(cells), "unseen: right over wrong"]
    about = f"Trained on {seen} tasks, {unseen} left out. {tables.drawn(cells)}"
    paired = common.table(["right minus", *(f"{tasks}, {kind}" for tasks, kind in PAIRED)], ahead)
    return f"{about}\n\n{common.table(head, rows)}\nPaired differences in points.\n\n{paired}\n{tables.by_task(cells)}"


if __name__ == "__main__":
    run_main(main)
