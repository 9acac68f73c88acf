"""Measures a trained tokenizer or policy on held-out samples and writes a report with pictures.

python launch/eval.py --run RUN [--data SHARDS] [--split val] [--out RUN/eval] [--pairs N]
"""

import argparse
import pathlib

from lapa_jax.core.errors import UserError, run_main


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.supervised_steps < 0:
        raise UserError(f"--supervised_steps {args.supervised_steps} must be 0 (off) or more")

    import lapa_jax
    from lapa_jax.inference.evaluations import evaluation_of
    from lapa_jax.inference.latent_policy import LatentPolicy
    from lapa_jax.inference.tokenizer import LatentActionTokenizer

    model = lapa_jax.load(args.run, step=args.step)
    out = args.out or default_out(pathlib.Path(args.run), args.step)
    given = {"run": args.run, "out": out, "data": args.data, "split": args.split, "pairs": args.pairs}
    how = {}
    if isinstance(model, LatentActionTokenizer):
        how["supervised_steps"] = args.supervised_steps
        if args.dataset:
            raise UserError(f"--dataset {args.dataset} says how numbers are scaled, and {args.run} takes pictures")
    else:
        given["dataset"] = args.dataset
    if isinstance(model, LatentPolicy):
        given["labels"] = args.labels
    elif args.labels:
        raise UserError(f"--labels {args.labels} are latent actions, which {args.run} does not predict; leave it out")
    evaluation = evaluation_of(model)(model, **given)
    for verdict in evaluation.judge(evaluation.write(**how)):
        if verdict.words:
            print(f"{verdict.level:5s} {verdict.metric:32s} {verdict.shown:>12s}  {verdict.words}")
    for name in evaluation.FILES:
        print(pathlib.Path(out) / name)


def default_out(run: pathlib.Path, step: int | None) -> pathlib.Path:
    """`eval` in the run folder, with the step where one checkpoint was asked for."""
    if run.parent.name == "checkpoints":
        return run.parent.parent / f"eval_{run.name}"
    return run / ("eval" if step is None else f"eval_{step}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder")
    parser.add_argument(
        "--data", help="folder of step shards; the run's own by default. Latent actions are probed where it has actions"
    )
    parser.add_argument("--labels", help="of a policy of latent actions: those of --data, from launch/label.py")
    parser.add_argument("--split", help="the split to evaluate on; val by default")
    parser.add_argument("--out", help="folder to write; RUN/eval by default")
    parser.add_argument("--pairs", type=int, default=2048, help="how many samples (pairs, chunks, windows) at most")
    parser.add_argument("--dataset", help="of a run on several datasets: the one whose scaling applies to --data")
    parser.add_argument("--step", type=int, help="checkpoint step; the newest by default")
    parser.add_argument("--supervised_steps", type=int, default=600,
                        help="training steps of latent actions' supervised upper bound; 0 leaves it out")  # fmt: skip
    return parser


if __name__ == "__main__":
    run_main(main)
