"""Measures a trained tokenizer or policy on held-out samples, or a policy in a simulator, and writes a report.

python launch/eval.py --run RUN [--data SHARDS] [--split val] [--out RUN/eval] [--pairs N]
python launch/eval.py --env NAME --episodes N (--run RUN [--out RUN/eval_NAME] | --policy expert --out DIR)
python launch/eval.py --run RUN --require 'swap_gap>=0.15' --require spec-laq      # exit code 1 where it is not reached
"""

import argparse
import dataclasses
import functools
import pathlib
import re
import sys
from collections.abc import Mapping

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_can_write
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import dataset_folder, read_dataset
from lapa_jax.evaluate import requirements
from lapa_jax.sim import flags

DEFAULT_SIZE = 128  # pixels, of what no policy sees
USUAL = {"episodes": 50, "seed": 0, "num_envs": 8, "videos": 8}
"""In an environment, where the command does not say."""
USUAL_ON_DATA = {"pairs": 2048, "reference_steps": 3000}
"""On recorded steps, where the command does not say."""
ONLY_SOME = ("dataset", "labels", "tokenizer", "projection")
"""Options that only the evaluations of some kinds of models take."""
EXIT_NOT_REACHED = 1
"""The evaluation is written, and something that --require asks for is not reached."""


def main(argv: list[str]) -> None:
    args = _parser(argv).parse_args(argv)
    args.require = requirements.parse(args.require)
    _check(args)
    if args.out or args.run:
        check_can_write(args.out or args.run)
    # Defaults are filled in after the checks, which have to tell what the command says from what it leaves out.
    for name, value in (USUAL if args.env else USUAL_ON_DATA).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.env:
        return act(args)

    # After the checks: importing jax takes seconds, and a typing error should be told at once.
    startup.begin(f"evaluating {args.run}")
    import lapa_jax
    from lapa_jax.evaluate import evaluation_of, options_of
    from lapa_jax.inference.load import check_data, kind_of_run

    # Before the weights, which may take minutes to read.
    options = options_of(kind_of_run(args.run), {name: getattr(args, name) for name in ONLY_SOME}, args.run)
    if args.data and not PairShards.is_one(dataset_folder(args.data)):
        read_dataset(args.data)
    check_data(args.run, args.data, args.split)
    model = lapa_jax.load(args.run, step=args.step)
    out = args.out or default_out(pathlib.Path(args.run), args.step)
    arguments = {"run": args.run, "out": out, "data": args.data, "split": args.split, "pairs": args.pairs, **options}
    how = {name: getattr(args, name) for name in ("reference_steps",) if name in model.kind.options}
    evaluation = evaluation_of(model)(model, **arguments)
    startup.say(f"measuring {evaluation.count} samples of {evaluation.about()['data']}; the first batch compiles")
    result = evaluation.write(**how)
    for verdict in evaluation.judge(result):
        if verdict.words:
            say(f"{verdict.level:5s} {verdict.metric:32s} {verdict.shown:>12s}  {verdict.words}")
    for name in evaluation.FILES:
        say(pathlib.Path(out) / name)
    _require(args.require, evaluation.figures(result))


def _require(wanted: list[requirements.Requirement], metrics: Mapping[str, float | None]) -> None:
    """Ends the command with exit code 1 where the metrics do not reach what is wanted."""
    lines = requirements.failures(wanted, metrics)
    for line in lines:
        say(f"not reached: {line}", file=sys.stderr)
    if lines:
        sys.exit(EXIT_NOT_REACHED)
    if wanted:
        say(f"reached: {', '.join(map(str, wanted))}")


def act(args: argparse.Namespace) -> None:
    """Closed loop: the policy and all controls act in the environment."""
    from lapa_jax.sim import env

    # A misspelled name, or a simulator that is not installed, is said before jax is imported and a model is loaded.
    simulator = env.env_class(args.env)
    env.check_installed(args.env.partition(":")[0], simulator.packages, simulator.extra)
    startup.begin(f"{args.run or args.policy} acts in {args.env}")
    from lapa_jax.evaluate import closed_loop, provenance
    from lapa_jax.sim import evaluation, rollouts

    policy = None if args.run is None else _policy(args)
    size = args.size
    if size is None:
        size = (policy and _trained_size(policy, args.dataset)) or DEFAULT_SIZE
    env_options = {name: value for name in args.env_options if (value := getattr(args, name)) not in (None, False)}
    env_options["size"] = size
    options = rollouts.Options(args.env, env_options, tuple(args.task or ()), args.seed, args.num_envs)
    if policy is None:
        controller = evaluation.control(args.policy, args.env)
        name, notes = controller.name, evaluation.interface(options).notes
    else:
        options, controller, notes = _controller(args, policy, options)
        name = pathlib.Path(args.run).name
    for note in notes:
        say(f"note: {note}")
    parts = ["eval", re.sub(r"[^\w-]+", "_", args.env.removesuffix(".py")), *([args.split] if args.split else [])]
    out = pathlib.Path(args.out or pathlib.Path(args.run) / "_".join(parts))
    results, lines = evaluation.compare(options, controller, args.episodes, out, args.videos)
    about = {"env": args.env, "options": options.env_options, "tasks": options.tasks, "seed": args.seed, "policy": name,
             "controller": controller.about, "episodes": args.episodes}  # fmt: skip
    head = {}
    if policy is not None:
        run, step = pathlib.Path(args.run), {"step": policy.step, "policy": policy.fingerprint}
        head = {"trained": provenance.rows(run, step), "compared": provenance.config_differences(run)}
    result = closed_loop.write(out, about, results, lines, out / controller.name, **head)
    for verdict in closed_loop.judge(result["metrics"]):
        say(f"{verdict.level:5s} {verdict.metric:32s} {verdict.shown:>12s}  {verdict.words}")
    say(out / "metrics.json", out / "report.html", sep="\n")
    _require(args.require, result["metrics"])


def _policy(args):
    """The run's policy; what does not act is refused."""
    import lapa_jax
    from lapa_jax.inference.load import kind_of_run

    kind = kind_of_run(args.run)
    if kind.controller is None:
        raise UserError(f"{args.run} holds a {kind.noun}, which does not act in physical units; --env takes policies "
                        "of stage 3 and in-context policies")  # fmt: skip
    return lapa_jax.load(args.run, step=args.step)


def _trained_size(policy, dataset: str | None) -> int | None:
    """Pixels of the images that the policy was trained on; None of one that sees none."""
    features = policy.datasets.get(policy.dataset(dataset), {}).get("features", {})
    camera = policy.config.get("data", {}).get("camera", "image")
    camera = camera if isinstance(camera, str) else camera[0]
    return features.get(camera, {}).get("shape", [None])[0]


def _controller(args, policy, options):
    """The options with the policy's actions a second, how it acts, and what to print before."""
    from lapa_jax.inference import controllers
    from lapa_jax.sim import env, evaluation

    interface = evaluation.interface(options, state=bool(policy.model.state_dim))
    prompts = getattr(policy.model, "prompts", 0)
    if prompts and env.env_class(args.env).expert is None:
        raise UserError(f"this policy needs {prompts} demonstrations of each task, and {args.env} has no scripted "
                        "expert to give them")  # fmt: skip
    controllers.check_fits(policy, args.dataset, args.env, interface)
    fps, notes = controllers.rate(policy, args.dataset), list(interface.notes)
    if fps is None:
        notes.append(f"the data of {args.run} name no frame rate; it acts as often as {args.env} takes actions")
    options = dataclasses.replace(options, fps=fps)

    @functools.cache
    def demonstrations(task: str) -> list:
        shown = evaluation.another_task(options, task) if args.prompt == "wrong" else task
        return evaluation.demonstrations(options, prompts, shown)

    how = {"execute": args.execute, "ensemble": args.ensemble, "dataset": args.dataset, "history": args.history}
    return options, controllers.controller_of(policy, demonstrations, **how, prompt=args.prompt), notes


def _check(args) -> None:
    """Refuses options that do not go together."""
    if args.pairs is not None and args.pairs < 2:
        raise UserError(f"--pairs {args.pairs} are too few to measure by; give 2 or more")
    if args.reference_steps is not None and args.reference_steps < 0:
        raise UserError(f"--reference_steps {args.reference_steps} must be 0 (off) or more")
    only = [name for name, value in _closed_loop_only(args).items() if value is not None and value is not False]
    if args.env is None and only:
        raise UserError(f"--{only[0]} is for policies that act in an environment; give --env")
    if (args.run is None) == (args.policy is None):
        raise UserError("give --run, or with --env a scripted --policy in its place" if args.env else "give --run")
    metric_names = requirements.CLOSED_LOOP if args.env else requirements.names_of_run(args.run)
    if metric_names is not None:
        requirements.check_names(args.require, metric_names)
    if args.env is None:
        return
    for name in ("data", "labels", "tokenizer", "projection", *USUAL_ON_DATA):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for recorded steps; leave it out with --env")
    if args.policy and not args.out:
        raise UserError(f"--policy {args.policy} has no run folder to write to; give --out")
    if args.execute is not None and args.ensemble is not None:
        raise UserError("--execute does chunks, --ensemble means of chunks; give one of them")
    if args.videos is not None and args.videos < 0:
        raise UserError(f"--videos must not be negative, got {args.videos}")


def _closed_loop_only(args) -> dict:
    env_options = [name for name in args.env_options if name != "split"]  # which recorded data have too
    names = ("policy", "task", "size", "execute", "ensemble", "history", "prompt", *env_options, *USUAL)
    return {name: getattr(args, name) for name in names}


def default_out(run: pathlib.Path, step: int | str | None) -> pathlib.Path:
    """`eval` in the run folder, with the step where one checkpoint was asked for."""
    if run.parent.name == "checkpoints":
        return run.parent.parent / f"eval_{run.name}"
    return run / ("eval" if step is None else f"eval_{step}")


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", help="run folder, checkpoint folder or exported folder")
    parser.add_argument(
        "--data", help="folder of step shards; the run's own by default. Latent actions are probed where it has actions"
    )
    parser.add_argument("--labels", help="of a policy of latent actions: those of --data, from launch/label.py")
    words = "of a policy of latent actions: run of their tokenizer; the report then shows the frames that codes lead to"
    parser.add_argument("--tokenizer", help=words)
    words = "of a tokenizer of features: the plane in which codebooks are drawn, pca (default) or tsne (scikit-learn)"
    parser.add_argument("--projection", help=words)
    parser.add_argument("--split", help="the split to evaluate on, val by default; of --env: all, seen or unseen")
    parser.add_argument("--out", help="folder to write; RUN/eval, or RUN/eval_ENV, by default")
    parser.add_argument("--pairs", type=int, help="how many samples (pairs, chunks, windows) at most; 2048 by default")
    parser.add_argument("--dataset", help="of a run on several datasets: the one whose scaling applies to --data")
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    words = "most steps of latent actions' reference, the same encoder on true actions, 3000 by default; 0: none"
    parser.add_argument("--reference_steps", type=int, help=words)
    words = ("end with exit code 1 where a metric does not reach its bar (>=, <=, > or <); or a set of bars: "
             f"{', '.join(requirements.SETS)}; may be repeated")  # fmt: skip
    parser.add_argument("--require", action="append", default=[], metavar="METRIC>=NUMBER", help=words)
    add = parser.add_argument_group("in a simulated environment").add_argument
    add("--env", help="simulator: push_table, metaworld, gym:ID (any gymnasium environment), or a file of your own")
    add("--policy", help="a control in place of --run: expert, random or repeat (the expert's first action)")
    add("--episodes", type=int, help="number of episodes, 50 by default; more than before adds to those in --out")
    add("--task", action="append", help="a task of the environment; may be repeated; all in turn by default")
    add("--seed", type=int, help="of the episodes; 0 by default")
    add("--size", type=int, help="edge of the images in pixels; what the policy was trained on by default")
    words = "number of actions of each chunk to execute before querying again (default: all)"
    add("--execute", type=int, help=words)
    words = "query the policy every step and execute the exponentially weighted mean of overlapping chunks"
    add("--ensemble", type=float, metavar="DECAY", help=words)
    words = "UniVLA: tell each query the codes of the one before, as models that were finetuned so are run"
    add("--history", action="store_true", help=words)
    words = "in-context policies: demonstrations of the episode's task, right (default), of another one, wrong, or none"
    add("--prompt", choices=("right", "wrong", "none"), help=words)
    add("--num_envs", type=int, help="environments in lockstep, so that the policy sees batches; 8 by default")
    add("--videos", type=int, help="number of episodes to film, 8 by default; with 0 no images are kept")
    added = flags.add_options(add, argv, skip=("size", "split"))
    parser.set_defaults(env_options=("split", *added))
    return parser


if __name__ == "__main__":
    run_main(main)
