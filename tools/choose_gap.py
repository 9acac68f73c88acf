"""Which gap between the two frames of a pair suits a data set: trains a small tokenizer with several, in minutes.

    python tools/choose_gap.py DATA --out DIR [--labelled FOLDER] [--gaps 3,6,12] [--grid KEY=A,B ...] [--seeds N]

The runs are those of launch/sweep.py, in DIR: the same command goes on where it stopped. Where held-out episodes have
actions, the gap whose codes say most about them is recommended. Without, no gap is: a table and an image show what is
known of each, and no rule has been shown to choose by it. Among scalings and losses at a single gap (--gaps 6 --grid
model.delta_norm=whitened,running_per_position) it is the one with the largest swap gap, which ranked those well where
camera and background stood still. Other keys are set as everywhere, --config.key=value.
"""

import argparse
import math
import pathlib
import subprocess
import sys

import yaml

from lapa_jax.core import escape, startup
from lapa_jax.core import sweep as sweeps
from lapa_jax.core.arguments import OVERRIDE, Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path, check_can_write, write_json
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data import pipeline
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.shards.step_shards import StepShards, dataset_folder

ROOT = pathlib.Path(__file__).resolve().parents[1]
GAP = "data.gap_frames"
SECONDS, FRAMES = (0.2, 0.4, 0.8, 1.6), (1, 2, 4, 8, 16)
"""Gaps that are tried where none are given: in seconds, or in frames where the data have no frame rate."""
PROBE, PROBE_PAIRS, SWAP_GAP = "val/action_probe_r2", "val/action_probe_pairs", "val/swap_gap"
FEWEST_PAIRS = 256
"""Pairs that a probe must be fitted on to choose by it, the bar of the report."""
SWAP_GAP_RANKS = ("model.delta_norm", "model.quant_dim", "model.view_", "loss.")
"""Keys, or their beginnings, between whose values the swap gap was shown to tell (docs/results/latent_actions.md): not
those that change how many codes there are, the image, the gap or the number of steps."""
COLUMNS = {"R² of the codes": PROBE, "R² of the deltas": "val/action_probe_r2_delta", "swap gap": SWAP_GAP,
           "perplexity": "val/perplexity", "change, grey levels": "change"}  # fmt: skip


def main(argv: list[str]) -> None:
    args, content, fps = plan(argv)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps} must be 1 or more")
    startup.say(f"checking the settings that are tried on {args.data}")
    list(sweeps.configs(sweeps.from_values(content, "choose_gap")))  # refuses what no run can have
    check_can_write(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "sweep.yaml"
    with atomic_path(file) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    words = [sys.executable, str(ROOT / "launch/sweep.py"), "--file", str(file), "--out", str(args.out), "--jobs",
             str(args.jobs)]  # fmt: skip
    if subprocess.run(words).returncode:
        raise UserError(f"the sweep {file} did not end well, see above; the same command goes on")
    keys = list(content["grid"])
    table = read(sweeps.read(str(file)), args.out)
    choice, lines = advise(table, keys, fps, content["metric"])
    write_json(args.out / "choice.json", {"choice": choice, "why": lines, "tried": table})
    _draw(args.out / "choose_gap.png", table, keys, choice)
    say("\n".join([*_markdown(table, keys), *lines]))
    say(f"the same as an image -> {args.out / 'choose_gap.png'}")


def plan(argv: list[str]) -> tuple[argparse.Namespace, dict, float | None]:
    """The arguments, the content of the sweep file, and the frame rate of the data.

    Raises:
      UserError: data that do not exist, or gaps that leave no pair in them.
    """
    args, overrides = _arguments(argv)
    folder = str(dataset_folder(args.data))
    shards = StepShards(folder, "train")
    gaps = args.gaps or usual_gaps(shards)
    check_gaps(gaps, shards)
    grid = {GAP: list(gaps)} | dict(_pair(text) for text in args.grid)
    settings = {"data.path": folder, "data.eval_examples": 1024, "train.trackers": "()", "train.images": False,
                "train.steps": args.steps, "train.eval_every": args.steps, "train.save_every": args.steps}  # fmt: skip
    judged = folder
    if args.labelled:
        judged = settings["data.val_path"] = str(dataset_folder(args.labelled))
    settings |= overrides
    if settings.get("model.quantizer") == "none":
        raise UserError("choose_gap compares codes: leave out --config.model.quantizer=none; R² of the deltas stands "
                        "beside that of the codes")  # fmt: skip
    # The probe is fitted on one half of the episodes and scored on the other.
    has_probe = pipeline.has_actions({"path": judged}, "val") and len(StepShards(judged, "val").episodes) > 1
    metric = PROBE if has_probe else SWAP_GAP
    # A key that is varied is not set: the last one would win.
    settings = {key: value for key, value in settings.items() if key not in grid}
    content = {"config": args.config, "set": settings, "grid": grid, "seeds": args.seeds, "metric": metric}
    return args, content, shards.fps


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("data", help="folder of step shards to learn from")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs and of what comes out")
    parser.add_argument("--labelled", help="another folder, whose split val has actions to judge by; DATA by default")
    parser.add_argument("--config", default="laq_conv:small+recommended", help="what is trained")
    parser.add_argument("--gaps", type=_gaps, help="in frames, 3,6,12; 0.2 to 1.6 seconds by default")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B",
                        help="what else is varied, as of launch/sweep.py, such as model.image_size=32,48")  # fmt: skip
    parser.add_argument("--steps", type=int, default=240, help="of each training")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    args = parser.parse_args([text for text in argv if not text.startswith(OVERRIDE)])
    given = [text.removeprefix(OVERRIDE).partition("=") for text in argv if text.startswith(OVERRIDE)]
    return args, {key: value for key, _, value in given}


def _gaps(text: str) -> tuple[int, ...]:
    values = text.split(",")
    if not all(value.isdecimal() and int(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text}: give whole numbers of at least 1, 3,6,12")
    return tuple(dict.fromkeys(map(int, values)))


def _pair(text: str) -> tuple[str, list[str]]:
    key, sign, values = text.partition("=")
    if not (key and sign and values):
        raise UserError(f"--grid {text} is not of the form KEY=A,B")
    return key, sweeps.split_values(values)


def usual_gaps(shards: StepShards) -> tuple[int, ...]:
    """The gaps in frames that are tried where none are given, of those that fit into most episodes."""
    in_frames = FRAMES if shards.fps is None else [Gap(seconds=each).in_frames(shards.fps) for each in SECONDS]
    shortest = sorted(shards.episodes.lengths.tolist())[len(shards.episodes) // 4]
    return tuple(dict.fromkeys(gap for gap in in_frames if gap < shortest)) or (1,)


def check_gaps(gaps: tuple[int, ...], shards: StepShards) -> None:
    """Refuses a gap that leaves no pair."""
    longest = int(shards.episodes.lengths.max())
    if too_long := [gap for gap in gaps if gap >= longest]:
        raise UserError(f"--gaps: {too_long[0]} leaves no pair, the longest episode of {shards.folder} has {longest} "
                        "frames; give smaller gaps")  # fmt: skip


def read(sweep: sweeps.Sweep, out: pathlib.Path) -> list[dict]:
    """A row for each setting, in the order of the grid: the values that were tried, the mean over the seeds of each
    figure of `COLUMNS` at the end, and "least" and "most" of the R² of the codes."""
    table = []
    for point in sweep.points():
        ends = []
        for seed in range(sweep.seeds):
            lines = read_metrics(sweeps.steps(sweep, point, seed, out)[-1].folder)
            ends.append([line for line in lines if SWAP_GAP in line][-1])
        row: dict = dict(point)
        for end in ends:
            if "val/psnr" not in end:  # a model of features
                continue
            # PSNR of copying the first frame says how much changes: as a root mean square of 256 grey levels.
            end["change"] = 255 * 10 ** (-(end["val/psnr"] - end["val/psnr_gain"]) / 20)
        for head, name in COLUMNS.items():
            values = [end[name] for end in ends if end.get(name) is not None]
            row |= {head: sum(values) / len(values)} if values else {}
        scores = [end[PROBE] for end in ends if end.get(PROBE) is not None]
        row |= {"least": min(scores), "most": max(scores)} if scores else {}
        pairs = [end[PROBE_PAIRS] for end in ends if end.get(PROBE_PAIRS) is not None]
        table.append({**row, "probe_pairs": min(pairs, default=0)})
    return table


def advise(table: list[dict], keys: list[str], fps: float | None, metric: str) -> tuple[dict | None, list[str]]:
    """The setting that is recommended, None where nothing can be, and lines that say why.

    Args: table: of `read`. keys: what was varied. fps: of the data. metric: what the sweep ranks by.
    """
    scored = [row for row in table if COLUMNS_PROBE in row and row["probe_pairs"] >= FEWEST_PAIRS]
    if not scored:
        few = any(COLUMNS_PROBE in row for row in table)
        why = "too few held-out pairs have actions to judge by" if few else "no held-out pair has an action"
        label = f"Label about 20 episodes (--labelled FOLDER; a probe needs {FEWEST_PAIRS} pairs in one half of them)."
        order = "R² of the codes, on these few pairs" if metric == PROBE else "the swap gap"
        varied = [key for key in keys if len({row[key] for row in table}) > 1]
        if varied and all(key.startswith(SWAP_GAP_RANKS) for key in varied) and all("swap gap" in row for row in table):
            best = max(table, key=lambda row: row["swap gap"])
            choice = {key: best[key] for key in keys}
            return choice, [
                f"Recommended: {_options(choice)}",
                f"by the largest swap gap, {best['swap gap']:.0%}, since {why}. It ranked such settings much as "
                "actions do (+0.71 on two data sets) where camera and background stood still, and says nothing where "
                f"they move. The order in sweep.md and best.yaml is that of {order}.",
                label,
            ]
        return None, [
            f"Nothing is recommended: {why}, and no rule that does without has been shown to choose "
            f"{', '.join(varied) or GAP}.",
            "Swap gap, perplexity and change say that something happens and that the codes are used, not what they "
            "say: codes can be in use and steer the decoder, and yet say nothing about the action. A sweep has to rank "
            f"by something: the order in sweep.md and best.yaml is that of {order}, and no reason to choose.",
            label,
        ]
    best = max(scored, key=lambda row: row[COLUMNS_PROBE])
    choice = {key: best[key] for key in keys}
    gap = f"{best[GAP]} frames" + (f", {int(best[GAP]) / fps:.2f} s" if fps else "")
    lines = [f"Recommended: {_options(choice)}",
             f"by the held-out episodes with actions: R² {best[COLUMNS_PROBE]:.2f} at a gap of {gap} "
             f"(a probe on {best['probe_pairs']:.0f} pairs)."]  # fmt: skip
    near = [row for row in scored if row is not best and row[COLUMNS_PROBE] > best[COLUMNS_PROBE] - 0.05]
    if near:
        others = "; ".join(", ".join(str(row[key]) for key in keys) for row in near)
        lines.append(f"Within 0.05 of it: {others}. More --seeds tell them apart, or nothing does.")
    if best[COLUMNS_PROBE] < 0.2:
        lines.append("That is little: the best of these gaps is not yet a good one. Try --steps 1000, other --gaps, or "
                     "the actions of a few episodes (configs/laq_conv.py:small+recommended+actions).")  # fmt: skip
    lines.append("R² of different gaps is of different actions, the sum over each gap; and what is chosen by these "
                 "episodes is to be judged on others.")  # fmt: skip
    return choice, lines


COLUMNS_PROBE = next(iter(COLUMNS))


def _options(choice: dict) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in choice.items())


def _markdown(table: list[dict], keys: list[str]) -> list[str]:
    heads = [head for head in COLUMNS if any(head in row for row in table)]
    rows = [[str(row[key]) for key in keys] + [f"{row[head]:.2f}" if head in row else "" for head in heads]
            for row in table]  # fmt: skip
    return escape.table([*keys, *heads], rows)


def _draw(path: pathlib.Path, table: list[dict], keys: list[str], choice: dict | None) -> None:
    from lapa_jax.plots import gaps

    lines: dict[str, list[dict]] = {}
    for row in table:
        lines.setdefault(", ".join(str(row[key]) for key in keys if key != GAP), []).append(row)
    panels = {head: {name: [(int(row[GAP]), row[head]) for row in rows if head in row and math.isfinite(row[head])]
                     for name, rows in lines.items()} for head in COLUMNS}  # fmt: skip
    spread = {name: [(int(row[GAP]), row["least"], row["most"]) for row in rows if "least" in row]
              for name, rows in lines.items()}  # fmt: skip
    gaps.draw(path, {head: curves for head, curves in panels.items() if any(curves.values())},
              {COLUMNS_PROBE: spread}, None if choice is None else int(choice[GAP]))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
