"""Does pretraining on video without actions pay? Success on the push-table after it, and without it.

python launch/studies/latent_pretraining.py --out DIR [--short] [--seeds 2] [--jobs 2]
    [--arms scratch scratch_long lapa vpt actions] [--task separate] [--blocks 3] [--gap 6]
    [--overrides optim.weight_decay=0 ...]

Episodes of the expert are recorded as video; few more, others, with actions are the demonstrations. Every arm ends with
the same model, trained for the same steps on the demonstrations alone. What comes before:

  scratch       nothing
  scratch_long  nothing, but as many steps on the demonstrations as the others have in all; of its checkpoints the one
                that predicts the actions of held-out video best, which the other arms are not given
  lapa          stage 1 (configs/laq_conv.py:small+recommended) on the video, stage 2 on its codes
  vpt           the actions of the video as an inverse-dynamics model sees them that learned from the demonstrations
  actions       the true actions of the video: the upper bound

The three pretrainings have the same body, images, instructions and steps. Then each policy drives, on instructions
like those of training (seen) and on combinations that were left out (unseen), beside the expert, random actions and a
repeated first action. Each seed has its own demonstrations, trainings and starts, which are the same for all arms.
Every leg is one of our commands; a study that was interrupted goes on where it stopped.
`tables.md` and `success.png` in --out, which also says how long each leg took.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import common

from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path, read_json, write_json
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data.shards.labels import read_label_info

ARMS = ("scratch", "scratch_long", "lapa", "vpt", "actions")
SPLITS = ("seen", "unseen")
SIZE = 64  # pixels of the recordings
EXECUTE = 4
POLICY = ["data.text_length=20", "data.augment={'shift': 4}", "train.trackers=()"]
FINETUNE = ["optim.learning_rate=0.0005"]
"""Of every arm: at the rate of pretraining, 0.001, demonstrations are learned by heart and what was known is lost."""

LONG_EVALUATIONS = 6
"""Checkpoints that "scratch_long" may choose from."""

HELD_OUT = 0.05
"""Share of the video that only figures are measured on."""

NOISE = 0.004
"""Metres, of the expert's actions: without it no episode shows how to come back."""

PROBES = {
    "codes used": ("codebook_utilization", "{:.0%}"),
    "PSNR gain (dB)": ("psnr_gain", "{:+.2f}"),
    "swap gap": ("swap_gap", "{:.0%}"),
    "R² codes": ("action_probe_r2", "{:.3f}"),
    "R² untrained": ("action_probe_r2_untrained", "{:.3f}"),
    "codes back in another clip": ("transfer_consistency", "{:.0%}"),
    "by chance": ("transfer_chance", "{:.0%}"),
    "R² back": ("transfer_action_r2", "{:.3f}"),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything. Episodes: `videos`, `demos`, and `episodes` of each evaluation; the rest are steps."""

    videos: int
    demos: int
    laq: int
    inverse: int
    pretrain: int
    finetune: int
    episodes: int


FULL = Sizes(videos=1000, demos=50, laq=400, inverse=1500, pretrain=2000, finetune=400, episodes=50)
SHORT = Sizes(videos=300, demos=50, laq=400, inverse=600, pretrain=1500, finetune=400, episodes=20)


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    for arm in args.arms:
        if arm not in ARMS:
            raise UserError(f"there is no arm '{arm}'{did_you_mean(arm, ARMS)}")
    seeds = args.seeds or (1 if args.short else 2)
    study = Study(args, SHORT if args.short else FULL)
    study.record(seeds)
    with common.side_by_side(args.jobs) as pool:
        # Independent of the policies: it runs beside them and is collected at the end.
        moving = pool.submit(study.latent_actions, "moving", 0)
        labelled = list(pool.map(study.labels, range(seeds))) if "lapa" in args.arms else []
        pseudo = list(pool.map(study.pseudo_actions, range(seeds))) if "vpt" in args.arms else []
        cells = [(arm, seed) for seed in range(seeds) for arm in args.arms]
        policies = dict(zip(cells, pool.map(lambda cell: study.policy(*cell), cells), strict=True))
        probes = {"as recorded": [one for one, _ in labelled], "moving background": [moving.result()]}
    results = pooled(policies)
    text = "\n".join([by_arm(results, policies, study.sizes), verdict(results), differences(policies),
                      by_video(probes), inverse(pseudo), study.times()])  # fmt: skip
    with atomic_path(args.out / "tables.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    from lapa_jax.evaluate import closed_loop

    closed_loop.draw_rates(args.out / "success.png", results)
    say(text)


def _parser() -> argparse.ArgumentParser:
    parser = common.command_line(__doc__)
    parser.add_argument("--short", action="store_true", help="fewer episodes, steps and seeds")
    parser.add_argument("--seeds", type=common.at_least_one, help="of everything that is trained; 2, with --short 1")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--task", default="separate", help="family of instructions")
    parser.add_argument("--blocks", type=int, default=3, help="on the table")
    parser.add_argument("--gap", type=common.at_least_one, default=6, help="frames between those of a latent action")
    return parser


class Study:
    """The legs; each is done once."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes):
        self.args, self.sizes, self.out = args, sizes, args.out
        self._env = ["--env", "push_table", "--task", args.task, "--blocks", str(args.blocks)]
        self._of_policies = [f"data.text_tokenizer.name={self._data('words')}", *POLICY, *args.overrides]
        self._lock = threading.Lock()

    def record(self, seeds: int) -> None:
        """The video, the demonstrations of each seed, and the video with a moving background, all of the split "seen";
        and the words of its instructions."""
        video = ["--episodes", str(self.sizes.videos), "--seed", "1", "--val_fraction", str(HELD_OUT)]
        demos = ["--episodes", str(self.sizes.demos), "--val_fraction", "0"]
        recordings = {"videos": video, "moving": [*video, "--moving"]}
        # Other episodes than those of the video, which has the seed 1.
        recordings |= {f"demos_{seed}": [*demos, "--seed", str(2 + seed)] for seed in range(seeds)}
        for name, how in recordings.items():
            command = [*self._env, "--split", "seen", "--size", str(SIZE), "--noise", str(NOISE), *how, "--out",
                       str(self._data(name))]  # fmt: skip
            record = functools.partial(common.call, self._log(name), "tools/record_sim.py", *command)
            self._timed(f"record {name}", record)
        if not self._data("words").exists():
            common.call(self._log("words"), "tools/make_tokenizer.py", "--data", str(self._data("videos")), "--out",
                         str(self._data("words")))  # fmt: skip

    def latent_actions(self, data: str, seed: int) -> dict:
        """Stage 1 on a recording; the metrics of its evaluation."""
        settings = [f"seed={seed}", f"data.path={self._data(data)}", f"data.gap_frames={self.args.gap}",
                    *_steps(self.sizes.laq), "train.trackers=()"]  # fmt: skip
        run = self._train(f"laq_{data}_{seed}", "laq_conv.py:small+recommended", settings)
        return self._timed(f"probe {run.name}", lambda: common.evaluate(run, "--supervised_steps", "0"))["metrics"]

    def labels(self, seed: int) -> tuple[dict, pathlib.Path]:
        """The latent actions of the video; metrics of the model that gives them, and their folder."""
        metrics, folder = self.latent_actions("videos", seed), self._labels(seed)
        command = ["--run", str(self._run(f"laq_videos_{seed}")), "--data", str(self._data("videos")), "--out",
                   str(folder)]  # fmt: skip
        self._timed(f"label {seed}", lambda: common.call(self._log(folder.name), "launch/label.py", *command))
        return metrics, folder

    def pseudo_actions(self, seed: int) -> dict:
        """The actions that inverse dynamics sees in the video; what tools/pseudo_actions.py says of them."""
        folder = self._pseudo(seed)
        command = ["--demonstrations", str(self._data(f"demos_{seed}")), "--data", str(self._data("videos")), "--out",
                   str(folder), "--steps", str(self.sizes.inverse), "--seed", str(seed)]  # fmt: skip
        name = f"pseudo-actions {seed}"
        self._timed(name, lambda: common.call(self._log(folder.name), "tools/pseudo_actions.py", *command))
        return read_json(folder / "pseudo_actions.json")

    def policy(self, arm: str, seed: int) -> dict:
        """Pretrains, trains on the demonstrations and drives; {"seen", "unseen": metrics.json, "solved": {split: of
        each start}, "action_r2"}."""
        begin, steps, step = self._pretrain(arm, seed), _steps(self.sizes.finetune), []
        if arm == "scratch_long":
            steps = _steps(self.sizes.pretrain + self.sizes.finetune, evaluations=LONG_EVALUATIONS)
            step = ["--step", "best"]
        settings = [f"seed={seed}", f"data.path={self._data(f'demos_{seed}')}", f"data.val_path={self._data('videos')}",
                    *begin, *steps, *FINETUNE, *self._of_policies]  # fmt: skip
        run = self._train(f"{arm}_{seed}", "vla_action.py:small+chunk", settings)
        scores = [line["val/action_r2"] for line in read_metrics(run) if "val/action_r2" in line]
        driven = {split: self._drive(run, split, seed, step) for split in SPLITS}
        return {**driven, "solved": {split: _solved(_drives(run, split)) for split in SPLITS},
                "action_r2": max(scores) if step else scores[-1]}  # fmt: skip

    def _pretrain(self, arm: str, seed: int) -> list[str]:
        """What the policy begins with, as settings of its config."""
        if arm in ("scratch", "scratch_long"):
            return []
        video = str(self._data("videos"))
        config, changes = "vla_action.py:small+chunk", [f"data.path={video}"]
        if arm == "vpt":
            changes = [f"data.path={self._pseudo(seed)}", f"data.val_path={video}"]
        if arm == "lapa":
            labels, config = self._labels(seed), "vla_latent.py:small"
            tokenizer = read_label_info(labels)["tokenizer"]
            changes = [f"data.path={video}", f"data.labels={labels}", f"data.labels_tokenizer={tokenizer}"]
        settings = [f"seed={seed}", *changes, *_steps(self.sizes.pretrain), *self._of_policies]
        run = self._train(f"pretrain_{arm}_{seed}", config, settings)
        # of latent actions the head begins afresh, as the config says; of actions it goes on
        return [f"init_from.={run}", *([] if arm == "lapa" else ["init_from_except=()"])]

    def _drive(self, run: pathlib.Path, split: str, seed: int, step: list[str]) -> dict:
        folder = _drives(run, split)
        command = [*self._env, "--run", str(run), *step, "--split", split, "--episodes", str(self.sizes.episodes),
                   "--seed", str(seed), "--execute", str(EXECUTE), "--videos", "4", "--out", str(folder)]  # fmt: skip
        if not (folder / "metrics.json").is_file():
            drive = functools.partial(common.call, self._log(run.name), "launch/eval.py", *command)
            self._timed(f"drive {run.name} {split}", drive)
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))

    def _train(self, name: str, config: str, settings: list[str]) -> pathlib.Path:
        return self._timed(f"train {name}", lambda: common.train(self._run(name), config, settings))

    def _timed(self, name: str, leg: Callable):
        """Does a leg and adds its seconds to what `times.json` says of it; one that is done already adds nothing."""
        start = time.monotonic()
        result = leg()
        seconds, path = time.monotonic() - start, self.out / "times.json"
        # Legs run in several threads, and each adds its time to the same file.
        with self._lock:
            times = read_json(path) if path.is_file() else {}
            write_json(path, {**times, name: round(times.get(name, 0.0) + seconds, 1)})
        return result

    def times(self) -> str:
        """Minutes of the legs, those of one kind together."""
        seconds_of = read_json(self.out / "times.json")
        kinds: dict[str, float] = {}
        for name, seconds in seconds_of.items():
            kind = " ".join(name.split()[:2]).rstrip("_0123456789") if name.startswith("train") else name.split()[0]
            kinds[kind] = kinds.get(kind, 0.0) + seconds / 60
        rows = [[kind, f"{minutes:.1f}"] for kind, minutes in sorted(kinds.items())]
        return common.table(["leg", "minutes"], [*rows, ["all, one after the other", f"{sum(kinds.values()):.1f}"]])

    def _data(self, name: str) -> pathlib.Path:
        return self.out / "data" / name

    def _labels(self, seed: int) -> pathlib.Path:
        return self.out / "data" / f"labels_{seed}"

    def _pseudo(self, seed: int) -> pathlib.Path:
        return self.out / "data" / f"pseudo_{seed}"

    def _run(self, name: str) -> pathlib.Path:
        return self.out / "runs" / name

    def _log(self, name: str) -> pathlib.Path:
        return self.out / "logs" / f"{name}.log"


def _steps(count: int, evaluations: int = 1) -> list[str]:
    every = count // evaluations
    return [f"train.steps={count}", f"train.eval_every={every}", f"train.save_every={every}"]


def _drives(run: pathlib.Path, split: str) -> pathlib.Path:
    return run / f"drive_{split}"


def _solved(folder: pathlib.Path) -> list[bool]:
    """Whether the policy solved each start, from what launch/eval.py left in a folder."""
    return [read_json(path)["success"] for path in sorted((folder / "policy" / "episodes").iterdir())]


def pooled(policies: Mapping[tuple[str, int], Mapping]) -> dict[str, dict]:
    """{arm or control: {"tasks": {"seen": summary, "unseen": summary}, "overall": summary}}, all seeds together.

    The controls of a seed have the same episodes whatever the policy: they are counted once.
    """
    from lapa_jax.sim.scores import of_counts

    def together(parts: Sequence[Mapping]) -> dict:
        return of_counts(sum(part["successes"] for part in parts), sum(part["episodes"] for part in parts))

    results = {}
    for arm in dict.fromkeys(arm for arm, _ in policies):
        seeds = [cell for (name, _), cell in policies.items() if name == arm]
        summaries = {split: [cell[split]["policies"]["policy"]["overall"] for cell in seeds] for split in SPLITS}
        results[arm] = {"tasks": {split: together(parts) for split, parts in summaries.items()},
                        "overall": together([part for parts in summaries.values() for part in parts])}  # fmt: skip
    arm = next(arm for arm, _ in policies)
    cells = [cell for (name, _), cell in policies.items() if name == arm]
    for name in [name for name in cells[0]["seen"]["policies"] if name != "policy"]:
        tasks = {split: together([cell[split]["policies"][name]["overall"] for cell in cells]) for split in SPLITS}
        results[name] = {"tasks": tasks, "overall": together(list(tasks.values()))}
    return results


def by_arm(results: Mapping[str, Mapping], policies: Mapping[tuple[str, int], Mapping], sizes: Sizes) -> str:
    """The table of success rates; of each seed in brackets, and R² of actions on held-out video."""
    from lapa_jax.evaluate.closed_loop import cell

    rows = []
    for name, result in results.items():
        of_arm = [one for (arm, _), one in policies.items() if arm == name]
        shown = [cell(result["tasks"][split]) for split in SPLITS]
        for i, split in enumerate(SPLITS):
            if len(of_arm) > 1:
                rates = (f"{one[split]['metrics']['success_rate']:.0%}" for one in of_arm)
                shown[i] += f" [{', '.join(rates)}]"
        rows.append([name, *shown, ", ".join(f"{one['action_r2']:.3f}" for one in of_arm)])
    head = ["", *(f"success, {split}" for split in SPLITS), "R² of held-out actions"]
    about = f"{sizes.videos} episodes of video, {sizes.demos} demonstrations, {sizes.episodes} episodes a cell."
    return f"{about}\n\n{common.table(head, rows)}"


def verdict(results: Mapping[str, Mapping]) -> str:
    """The aims, and what came out."""
    if not {"scratch", "lapa", "actions"} <= set(results):
        return ""
    lines = []
    for split in SPLITS:
        rate = {name: results[name]["tasks"][split]["success_rate"] for name in ("scratch", "lapa", "actions")}
        ratios = [f"{rate['lapa'] / rate[name]:.2f}" if rate[name] else "undefined (0 successes)"
                  for name in ("scratch", "actions")]  # fmt: skip
        lines.append(f"{split}: LAPA over scratch {ratios[0]} (aim 2), LAPA over true actions {ratios[1]} (aim 0.85)")
    best = max(results["actions"]["tasks"][split]["low"] for split in SPLITS)
    floor = max(results[name]["tasks"][split]["success_rate"] for name in ("random", "repeat") for split in SPLITS)
    if best <= floor:
        lines.append("The upper bound is not clearly above the controls: at this size the comparison says nothing.")
    return "\n".join(lines) + "\n"


def differences(policies: Mapping[tuple[str, int], Mapping]) -> str:
    """The table of how much more of the starts LAPA solves than each other arm, in points."""
    from lapa_jax.sim.scores import paired_difference

    arms = list(dict.fromkeys(arm for arm, _ in policies))
    if "lapa" not in arms:
        return ""

    def solved(arm: str, split: str) -> list[list[bool]]:
        return [cell["solved"][split] for (name, _), cell in policies.items() if name == arm]

    rows = []
    for arm in (arm for arm in arms if arm != "lapa"):
        spans = [paired_difference(solved("lapa", split), solved(arm, split)) for split in SPLITS]
        rows.append([arm, *(f"{100 * mean:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})" for mean, low, high in spans)])
    several = len(policies) > len(arms)
    drawn = "seeds and starts" if several else "starts; what another seed would give, one seed cannot say"
    about = f"Paired differences in points, with intervals of 95 % by a bootstrap over {drawn}."
    return f"{about}\n\n{common.table(['LAPA minus', *SPLITS], rows)}"


def by_video(probes: Mapping[str, Sequence[Mapping]]) -> str:
    """The table of what the codes say."""
    rows = [[name, *common.cells(common.mean(group, PROBES) if len(group) > 1 else group[0], PROBES)]
            for name, group in probes.items() if group]  # fmt: skip
    return common.table(["latent actions of the video", *PROBES], rows)


def inverse(pseudo: Sequence[Mapping]) -> str:
    """What the pseudo-actions are worth."""
    scores = ", ".join(f"{one['action_r2']:.3f}" for one in pseudo)
    return f"R² of the pseudo-actions against the true ones of the video, a seed each: {scores}\n" if pseudo else ""


if __name__ == "__main__":
    run_main(main)
