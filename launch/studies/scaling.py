"""How success depends on the number of episodes of video, and on that of demonstrations.

python launch/studies/scaling.py --out DIR [--benchmark push_table] [--videos 100 300 1000 3000]
    [--demos 5 10 25 50 200] [--seeds 3] [--jobs 2] [--overrides optim.weight_decay=0 ...]

Each point is a `latent_pretraining.py`, in a folder of its own; those of the same video share what was pretrained on
it. With more video the arms are "lapa" and "actions", with more demonstrations "scratch_long" and "vpt" too. One number
of the other kind stays that of the benchmark. A study that was interrupted goes on where it stopped. `tables.md` and
`scaling.png` in DIR.
"""

import argparse
import pathlib
from collections.abc import Mapping

import common
import common_tables as tables
import latent_pretraining
from common_settings import BENCHMARKS

from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path

ARMS = {"videos": ("lapa", "actions"), "demos": ("scratch_long", "lapa", "vpt", "actions")}
"""{what is counted: the arms that depend on it}."""

WORDS = {"videos": "episodes of video", "demos": "demonstrations"}


def main(argv: list[str]) -> None:
    parser = common.command_line(__doc__, 3)
    parser.add_argument("--benchmark", default="push_table", help=f"of {', '.join(BENCHMARKS)}")
    for name, usual in (("videos", (100, 300, 1000, 3000)), ("demos", (5, 10, 25, 50, 200))):
        parser.add_argument(f"--{name}", nargs="*", type=common.at_least_one, default=usual, help=WORDS[name])
    args = parser.parse_args(argv)
    if args.benchmark not in BENCHMARKS:
        raise UserError(f"there is no benchmark '{args.benchmark}'{did_you_mean(args.benchmark, BENCHMARKS)}")
    studies = {(kind, count): _study(args, kind, count) for kind in ARMS for count in getattr(args, kind)}
    if not studies:
        raise UserError("--videos and --demos are both empty; name the numbers of one, as --demos 5 25")
    core_hours = sum(study.hours(args.seeds) for study in studies.values())
    say(f"{common.counted(len(studies), 'point')}, {common.counted(args.seeds, 'seed')}: at most {core_hours:.1f} core "
        f"hours, {core_hours / args.jobs:.1f} hours with --jobs {args.jobs}")  # fmt: skip
    done: dict[tuple[str, int], latent_pretraining.Study] = {}
    text = ""
    for (kind, count), study in studies.items():
        for _ in study.run(args.seeds):
            pass
        done[kind, count] = study
        text = f"{table(done)}\n{common.revisions()}"
        with atomic_path(args.out / "tables.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        _draw(args.out / "scaling.png", done)
    say(text)


def _study(args: argparse.Namespace, kind: str, count: int) -> latent_pretraining.Study:
    """The study of a point; points of as many videos lie in the same folder."""
    videos = count if kind == "videos" else BENCHMARKS[args.benchmark].sizes.videos
    given = ["--out", str(args.out / f"videos_{videos}"), "--benchmark", args.benchmark, "--jobs", str(args.jobs),
             "--arms", *ARMS[kind], f"--{kind}", str(count), "--overrides", *args.overrides]  # fmt: skip
    return latent_pretraining.Study(latent_pretraining.parser().parse_args(given), moving=False)


def table(done: Mapping[tuple[str, int], latent_pretraining.Study]) -> str:
    """The success rates of all points with R² of actions and codes, and what LAPA is ahead of the others by."""
    rows = []
    for (kind, count), study in done.items():
        codes = [f"{of_seed[tables.CODES]:.3f}" for of_seed in study.probes.get(latent_pretraining.VIDEOS["codes"], ())]
        for arm in tables.arms(study.cells):
            of_codes = ", ".join(codes) if arm == "lapa" else ""
            rows.append([f"{count} {WORDS[kind]}", *tables.row(study.cells, arm), of_codes])
    head = ["", "arm", *tables.head(next(iter(done.values())).cells)[1:], "R² of codes"]
    ahead = [f"{count} {WORDS[kind]}. {tables.differences(study.cells)}" for (kind, count), study in done.items()]
    return "\n".join([common.table(head, rows), *ahead])


def _draw(path: pathlib.Path, done: Mapping[tuple[str, int], latent_pretraining.Study]) -> None:
    from lapa_jax.plots import scaling

    panels: dict[str, dict[str, list]] = {}
    for (kind, count), study in done.items():
        for arm in tables.arms(study.cells):
            rate = tables.rate(tables.solved(study.cells, arm, tables.conditions(study.cells)[0]))
            panels.setdefault(WORDS[kind], {}).setdefault(arm, []).append((count, rate))
    scaling.draw(path, panels)


if __name__ == "__main__":
    run_main(main)
