"""Does pretraining on video without actions pay? Success in simulation after it, and without it.

python launch/studies/latent_pretraining.py --out DIR [--benchmark push_table] [--short] [--seeds 5] [--jobs 2]
    [--arms scratch scratch_long lapa vpt actions ...] [--task separate ...] [--blocks 3] [--gap 6] [--videos 1000]
    [--demos 50] [--policy small] [--overrides optim.weight_decay=0 ...]

Episodes of the expert are recorded as video; few more, others, with actions are the demonstrations. Every arm ends with
the same model, trained on the demonstrations. What comes before:

  scratch        nothing
  scratch_long   nothing, but as many steps more on the demonstrations as the others are pretrained
  lapa           stage 1 (configs/laq_conv.py:small+recommended) on the video, stage 2 on its codes
  lapa_few       the same; stage 1 is told the actions of the demonstrations besides
  lapa_shuffled  stage 2 on the codes of other steps
  lapa_random    stage 2 on codes drawn at random
  cotrained      nothing: one training on the labelled video and the demonstrations together, with a head for each,
                 and as many steps as both trainings of the others
  vpt            the actions of the video as an inverse-dynamics model sees them that learned from the demonstrations
  actions        the true actions of the video: the upper bound
  scratch_flow, lapa_flow   the first and the third with a head of flow matching

The pretrainings have the same body, images, instructions and steps. Each arm searches alike: on seed 0 the rate whose
loss on validation demonstrations is least, and with every seed the step. Then each policy drives, beside the expert,
random actions and a repeated first action. Each seed has its own demonstrations, trainings and starts, which are the
same for all arms; on the starts nothing is chosen.

--benchmark: push_table (three blocks; also pairs of them that are never named together), metaworld (MT10), families
(the push-table's five, four blocks), pairs (six blocks; also a moving background and other colours), other_look (video
of another arm, table and camera), other_robot (video of Meta-World, a robot of the push-table).

Every leg is one of our commands; a study that was interrupted goes on where it stopped, and with more arms or seeds it
does what is new. After each seed `tables_DEMOS.md` and `success_DEMOS.png` are in --out, named after the number of
demonstrations. It says beforehand how long it will take.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import common
import common_tables as tables
from common_settings import (
    ARMS,
    BENCHMARKS,
    CONDITIONS,
    OF_CODES,
    OF_DEMONSTRATIONS,
    SCRAMBLED,
    SHORT,
    SHORT_ARMS,
    SHORT_SEEDS,
    TABLE,
    Scene,
)

from lapa_jax.core.errors import UserError, did_you_mean, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import atomic_path, read_json, write_json
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data.shards.labels import read_label_info

SIZE = 64  # pixels of the recordings
EXECUTE = 4
POLICY = ["data.text_length=20", "train.trackers=()"]
LOSS = "val/loss"

HELD_OUT = 0.05
"""Share of the video that only figures are measured on."""

VIDEO_SEED, VALIDATION_SEED, DEMO_SEED = 1, 1_000, 2
"""Of the recordings; seed k of the study has the demonstrations of `DEMO_SEED` + k."""

FEW_SHARE = 0.25
"""Of the pairs that stage 1 draws in "lapa_few", those of the demonstrations."""

OF_SIZES = {"videos": "episodes of video", "demos": "demonstrations", "laq": "steps of stage 1",
            "pretrain": "steps of pretraining", "finetune": "most steps on the demonstrations",
            "episodes": "of each evaluation"}  # fmt: skip
"""{what may be asked for besides: what it is}."""

VIDEOS = {"codes": "as recorded", "few": "as recorded, told the actions of the demonstrations"}
"""{tokenizer: its row in the table}."""

SECONDS = {"policy": 0.09, "laq": 0.2, "reference": 0.07, "inverse": 0.12, "begin": 15.0}
"""Of a core, measured roughly: a step of each kind, and what a command takes before its first step."""


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    study = Study(args)
    seeds = args.seeds or (SHORT_SEEDS if args.short else study.benchmark.seeds)
    core_hours = study.hours(seeds)
    say(f"{common.counted(len(study.arms), 'arm')}, {common.counted(seeds, 'seed')}: about {core_hours:.1f} core hours "
        f"from nothing at most, {core_hours / args.jobs:.1f} hours with --jobs {args.jobs}")  # fmt: skip
    text = ""
    from lapa_jax.evaluate.closed_loop import draw_rates

    for _ in study.run(seeds):
        text = study.tables()
        # Other numbers of demonstrations use the same folder: video, tokenizers and controls are the same.
        with atomic_path(args.out / f"tables_{study.sizes.demos}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        draw_rates(args.out / f"success_{study.sizes.demos}.png", tables.rates(study.cells))
    say(text)


def parser() -> argparse.ArgumentParser:
    """What the command takes, and what a `Study` is made of."""
    parser = common.command_line(__doc__)
    parser.add_argument("--benchmark", default="push_table", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--short", action="store_true", help="fewer demonstrations, steps, rates, arms and seeds")
    parser.add_argument("--seeds", type=common.at_least_one,
                        help=f"of everything that is trained; with --short {SHORT_SEEDS}")  # fmt: skip
    parser.add_argument("--arms", nargs="+", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--task", nargs="+", help="tasks, or families of instructions")
    parser.add_argument("--blocks", type=int, help="on the push-table")
    parser.add_argument("--gap", type=common.at_least_one, help="frames between those of a latent action")
    parser.add_argument("--policy", choices=("tiny", "small"), help="variant of the configs of the policies")
    for name, what in OF_SIZES.items():
        parser.add_argument(f"--{name}", type=common.at_least_one, help=what)
    return parser


class Study:
    """The legs; each is done once.

    Args:
      moving: whether a tokenizer is tried on video with a moving background too, where the benchmark has that.

    Attributes:
      benchmark, arms, sizes, moving: what is compared, as asked for.
      cells: the results so far, see `common_tables`. probes, predictions, pseudo: metrics of the tokenizers, of stage
        2 and of inverse dynamics.
    """

    def __init__(self, args: argparse.Namespace, moving: bool = True):
        asked = [("benchmark", args.benchmark, BENCHMARKS), *(("arm", arm, ARMS) for arm in args.arms or ())]
        for kind, name, known in asked:
            if name not in known:
                raise UserError(f"there is no {kind} '{name}'{did_you_mean(name, known)}")
        benchmark = BENCHMARKS[args.benchmark]
        simulators = {benchmark.robot.env, benchmark.filmed.env}
        if args.blocks and TABLE.env not in simulators:
            raise UserError(f"--blocks {args.blocks}: there are none in {benchmark.robot.env}, which --benchmark "
                            f"{args.benchmark} is about; leave it out")  # fmt: skip
        if args.task and len(simulators) > 1:
            raise UserError(f"--task {' '.join(args.task)}: in --benchmark {args.benchmark} the video is of "
                            f"{benchmark.filmed.env} and the robot of {benchmark.robot.env}, which share none; leave "
                            "it out")  # fmt: skip
        self.benchmark = dataclasses.replace(benchmark, robot=_scene(benchmark.robot, args),
                                             video=benchmark.video and _scene(benchmark.video, args),
                                             policy=args.policy or benchmark.policy)  # fmt: skip
        usual = tuple(arm for arm in SHORT_ARMS if arm in benchmark.arms) if args.short else benchmark.arms
        self.arms = tuple(dict.fromkeys(args.arms or usual))
        given = {name: value for name in OF_SIZES if (value := getattr(args, name)) is not None}
        self.sizes = dataclasses.replace(benchmark.sizes, **{**(SHORT if args.short else {}), **given})
        self.out, self.jobs = args.out, args.jobs
        self.cells: dict[tuple[str, int], dict] = {}
        self.probes: dict[str, list[dict]] = {}
        self.predictions: dict[str, list[dict]] = {}
        self.pseudo: list[dict] = []
        self._pretrained = sorted({ARMS[arm].codes for arm in self.arms} - {""})
        of_codes = any(codes in ("codes", *SCRAMBLED) for codes in self._pretrained)
        self._together = any(ARMS[arm].together for arm in self.arms)
        self._tokenizers = [*(["codes"] if of_codes or self._together else []),
                            *(["few"] if "few" in self._pretrained else [])]  # fmt: skip
        self.moving = moving and self.benchmark.moving and bool(self._tokenizers) and not args.short
        self._of_policies = [f"data.text_tokenizer.name={self._data('words')}", *POLICY, *benchmark.settings,
                             *args.overrides]  # fmt: skip
        self._lock = threading.Lock()

    def hours(self, seeds: int) -> float:
        """Of a core, for everything."""
        sizes, (record, drive) = self.sizes, self.benchmark.robot.seconds
        runs = seeds + len(sizes.rates) - 1
        tuned = sum(sizes.finetune + ARMS[arm].long * sizes.pretrain for arm in self.arms) * runs
        steps = {"policy": tuned + seeds * len(self._pretrained) * sizes.pretrain,
                 "laq": (seeds * len(self._tokenizers) + self.moving) * sizes.laq,
                 "reference": (len(self._tokenizers) + self.moving) * sizes.reference,
                 "inverse": seeds * ("vpt" in self._pretrained) * sizes.inverse,
                 "begin": len(self.arms) * (runs + seeds) + 3 * seeds * len(self._pretrained)}  # fmt: skip
        filmed = sizes.videos * (1 + self.moving) * self.benchmark.filmed.seconds[0]
        recorded = (sizes.validation + seeds * sizes.demos) * record
        cells = (len(self.arms) + len(common.CONTROLS)) * len(self.benchmark.conditions) * seeds
        driven = cells * sizes.episodes * drive
        return (sum(SECONDS[kind] * count for kind, count in steps.items()) + filmed + recorded + driven) / 3600

    def run(self, seeds: int) -> Iterator[int]:
        """Does all legs, seed by seed; each seed that is done is given, with `cells` of the seeds up to it."""
        latent = {f"vla_latent.py:{self.benchmark.policy}"} if {*self._pretrained} & {*OF_CODES} else set()
        # Here, as the first training with them comes after all of stage 1.
        common.check_overrides(sorted(latent | {self._config(arm) for arm in self.arms}), self._of_policies)
        with common.side_by_side(self.jobs) as pool:
            for seed in range(seeds):
                self._record(seed)
                # Independent of the policies: it runs beside them and is collected at the end.
                moving = pool.submit(self.tokenizer, "codes", 0, "moving") if self.moving and not seed else None
                self._pretrain_all(pool, seed)
                self._drive_all(pool, seed)
                if moving is not None:
                    self.probes["moving background"] = [moving.result()]
                yield seed

    def _pretrain_all(self, pool: Executor, seed: int) -> None:
        # Beside the tokenizer: both take minutes, and neither needs the other.
        pseudo = pool.submit(self.pseudo_actions, seed) if "vpt" in self._pretrained else None
        for kind, metrics in zip(self._tokenizers, pool.map(lambda kind: self.labels(kind, seed), self._tokenizers)):
            self.probes.setdefault(VIDEOS[kind], []).append(metrics)
        for how in (codes for codes in self._pretrained if codes in SCRAMBLED):
            self.scrambled(how, seed)
        for data in ((self._demos(seed), "validation") if self._together else ()):
            self._label("codes", seed, data)
        if pseudo is not None:
            self.pseudo.append(pseudo.result())
        runs = pool.map(lambda codes: self.pretrain(codes, seed), self._pretrained)
        for codes, run in zip(self._pretrained, runs, strict=True):
            if codes in OF_CODES:
                evaluations = [line for line in read_metrics(run) if LOSS in line]
                self.predictions.setdefault(codes, []).append(evaluations[-1])

    def _drive_all(self, pool: Executor, seed: int) -> None:
        """From the pretrained runs to `cells` of the seed."""
        if seed == 0:
            searched = [(arm, 0, rate) for arm in self.arms for rate in self.sizes.rates]
            list(pool.map(lambda each: self.finetune(*each), searched))
        list(pool.map(lambda arm: self.finetune(arm, seed, self.rate(arm)), self.arms))
        conditions = self.benchmark.conditions
        controls = dict(zip(conditions, pool.map(lambda each: self.controls(each, seed), conditions), strict=True))
        for arm, cell in zip(self.arms, pool.map(lambda arm: self.drive(arm, seed), self.arms), strict=True):
            self.cells[arm, seed] = cell
        for name in common.CONTROLS:
            self.cells[name, seed] = {"episodes": {condition: each[name] for condition, each in controls.items()}}

    def _record(self, seed: int) -> None:
        """The video, demonstrations of the seed, those for validation, all as trained on; the words of all."""
        sizes, filmed, robot = self.sizes, self.benchmark.filmed, self.benchmark.robot
        film = ["--episodes", str(sizes.videos), "--seed", str(VIDEO_SEED), "--val_fraction", str(HELD_OUT)]
        recordings = {"videos": (filmed, film)}
        if self.moving:
            recordings["moving"] = (filmed, [*film, "--moving"])
        for name, count, its_seed in (("validation", sizes.validation, VALIDATION_SEED),
                                      (self._demos(seed), sizes.demos, DEMO_SEED + seed)):  # fmt: skip
            recordings[name] = (robot, ["--episodes", str(count), "--seed", str(its_seed), "--val_fraction", "0"])
        for name, (scene, how) in recordings.items():
            command = [*scene.recorded(), *CONDITIONS["seen"], "--size", str(SIZE), *how, "--out",
                       str(self._data(name))]  # fmt: skip
            record = functools.partial(common.call, self._log(name), "tools/record_sim.py", *command)
            self._timed(f"record {name}", record)
        if not self._data("words").exists():
            common.call(self._log("words"), "tools/make_tokenizer.py", "--data", str(self._data("videos")),
                        str(self._data("validation")), "--out", str(self._data("words")))  # fmt: skip

    def tokenizer(self, kind: str, seed: int, data: str = "videos") -> dict:
        """Stage 1 on a recording; "few" is told the actions of the demonstrations. The metrics of its evaluation."""
        video = str(self._data(data))
        config, of_data = "laq_conv.py:small+recommended", [f"data.path={video}"]
        if kind == "few":
            parts = ({"path": video, "weight": 1 - FEW_SHARE, "action_share": 0.0},
                     {"path": str(self._data(self._demos(seed))), "weight": FEW_SHARE, "action_share": 1.0,
                      "split_val": None})  # fmt: skip
            config, of_data = f"{config}+actions", [f"data.mixture={parts!r}", f"data.val_path={video}"]
        filmed = self.benchmark.filmed
        settings = [f"seed={seed}", *of_data, f"data.gap_frames={filmed.gap}", *filmed.tokenizer,
                    *_steps(self.sizes.laq), "train.trackers=()"]  # fmt: skip
        run = self._train(f"laq_{kind}_{data}_{self._number(kind, seed)}", config, settings)
        # Of one seed: what the frames show of the actions is the same with all.
        steps = 0 if seed else self.sizes.reference
        probe = functools.partial(common.evaluate, run, "--reference_steps", str(steps),
                                  figures=[tables.REFERENCE] if steps else [])  # fmt: skip
        return self._timed(f"probe {run.name}", probe)["metrics"]

    def labels(self, kind: str, seed: int) -> dict:
        """Labels the video with the tokenizer of a kind; the metrics of this one."""
        metrics = self.tokenizer(kind, seed)
        self._label(kind, seed)
        return metrics

    def _label(self, kind: str, seed: int, data: str = "videos") -> None:
        out = self._labels(kind, seed, data)
        run = self._run(f"laq_{kind}_videos_{self._number(kind, seed)}")
        command = ["--run", str(run), "--data", str(self._data(data)), "--out", str(out)]
        self._timed(f"label {out.name}", lambda: common.call(self._log(out.name), "launch/label.py", *command))

    def scrambled(self, how: str, seed: int) -> None:
        """Labels that say nothing, of the same steps."""
        command = ["--labels", str(self._labels("codes", seed)), "--out", str(self._labels(how, seed)), "--how", how,
                   "--seed", str(seed)]  # fmt: skip
        common.call(self._log(f"labels_{how}_{seed}"), "launch/studies/scramble_labels.py", *command)

    def pseudo_actions(self, seed: int) -> dict:
        """The actions that inverse dynamics sees in the video; what tools/pseudo_actions.py says of them."""
        folder = self._data(f"pseudo_{self._number('vpt', seed)}")
        command = ["--demonstrations", str(self._data(self._demos(seed))), "--data", str(self._data("videos")), "--out",
                   str(folder), "--steps", str(self.sizes.inverse), "--seed", str(seed)]  # fmt: skip
        name = f"pseudo-actions {seed}"
        self._timed(name, lambda: common.call(self._log(folder.name), "tools/pseudo_actions.py", *command))
        return read_json(folder / "pseudo_actions.json")

    def pretrain(self, codes: str, seed: int) -> pathlib.Path:
        """The run of a pretraining, see `common_settings.Arm`."""
        video = str(self._data("videos"))
        config, changes = f"vla_action.py:{self.benchmark.policy}+chunk", [f"data.path={video}"]
        if codes == "vpt":
            pseudo = self._data(f"pseudo_{self._number('vpt', seed)}")
            changes = [f"data.path={pseudo}", f"data.val_path={video}"]
        if codes in OF_CODES:
            labels, config = self._labels(codes, seed), f"vla_latent.py:{self.benchmark.policy}"
            tokenizer = read_label_info(labels)["tokenizer"]
            changes = [f"data.path={video}", f"data.labels={labels}", f"data.labels_tokenizer={tokenizer}"]
        settings = [f"seed={seed}", *changes, *_steps(self.sizes.pretrain), *self._of_policies]
        return self._train(self._before(codes, seed), config, settings)

    def finetune(self, arm: str, seed: int, rate: float) -> pathlib.Path:
        """The run of an arm on the demonstrations, which keeps the checkpoint that validation demonstrations choose."""
        codes, _, long, together = dataclasses.astuple(ARMS[arm])
        begin, learned = [], [f"data.path={self._data(self._demos(seed))}"]
        if together:
            learned = self._both(seed)
        if codes:
            # of latent actions the head begins afresh, as the config says; of actions it goes on
            begin = [f"init_from.={self._run(self._before(codes, seed))}",
                     *([] if codes in OF_CODES else ["init_from_except=()"])]  # fmt: skip
        settings = [f"seed={seed}", *learned, f"data.val_path={self._data('validation')}", "data.split_val=train",
                    *begin, *_steps(self.sizes.finetune + long * self.sizes.pretrain, self.sizes.evaluations),
                    f"train.best_metric={LOSS}", "train.best_mode=min", f"train.patience={self.sizes.patience}",
                    f"optim.learning_rate={rate}", *self._of_policies]  # fmt: skip
        return self._train(self._tuned(arm, seed, rate), self._config(arm), settings)

    def _config(self, arm: str) -> str:
        """Of the training on demonstrations."""
        return f"vla_action.py:{self.benchmark.policy}+{ARMS[arm].head}{'+cotrained' * ARMS[arm].together}"

    def _both(self, seed: int) -> list[str]:
        """The demonstrations and the video, of which nothing but codes is read; as many samples of the one as of the
        other."""
        labels = {name: str(self._labels("codes", seed, name)) for name in ("videos", self._demos(seed), "validation")}
        parts = ({"path": str(self._data(self._demos(seed))), "weight": 1.0, "labels": labels[self._demos(seed)]},
                 {"path": str(self._data("videos")), "weight": 1.0, "labels": labels["videos"],
                  "fields": ("image", "text", "latent"), "split_val": None})  # fmt: skip
        return [f"data.mixture={parts!r}", f"data.val_labels={labels['validation']}"]

    def rate(self, arm: str) -> float:
        """The learning rate that an arm has with all seeds: the one of the least loss on seed 0."""
        losses = self._losses(arm)
        return min(losses, key=losses.get)

    def _losses(self, arm: str) -> dict[float, float]:
        runs = {rate: self._run(self._tuned(arm, 0, rate)) for rate in self.sizes.rates}
        return {rate: min((line[LOSS] for line in finite_lines(run)), default=math.inf) for rate, run in runs.items()}

    def controls(self, condition: str, seed: int) -> dict[str, list[dict]]:
        """The lines of the controls' episodes: they are the same whatever the policy, and driven once."""
        folder = self._of_controls(condition, seed)
        if not common.driven(folder, self.sizes.episodes):
            self._drive(folder, f"controls {condition} {seed}", condition, seed, ["--policy", common.CONTROLS[0]])
        return {name: common.episodes(folder / name, self.sizes.episodes) for name in common.CONTROLS}

    def drive(self, arm: str, seed: int) -> dict:
        """The cell of an arm, see `common_tables`."""
        run = self._run(self._tuned(arm, seed, self.rate(arm)))
        best, episodes = best_line(run), {}
        for condition in self.benchmark.conditions:
            folder = run / f"drive_{condition.replace(' ', '_')}"
            if not common.driven(folder, self.sizes.episodes):
                for name in common.CONTROLS:
                    common.copy(self._of_controls(condition, seed) / name, folder / name)
                policy = ["--run", str(run), "--step", "best", "--execute", str(EXECUTE),
                          *(["--dataset", self._demos(seed)] if ARMS[arm].together else [])]  # fmt: skip
                self._drive(folder, f"drive {run.name} {condition}", condition, seed, policy)
            episodes[condition] = common.episodes(folder / "policy", self.sizes.episodes)
        return {"episodes": episodes, "action_r2": best["val/action_r2"], "step": best["step"], "rate": self.rate(arm),
                "losses": self._losses(arm)}  # fmt: skip

    def _drive(self, folder: pathlib.Path, name: str, condition: str, seed: int, policy: list[str]) -> None:
        command = [*self.benchmark.robot.arguments(), *CONDITIONS[condition], *policy, "--episodes",
                   str(self.sizes.episodes), "--seed", str(seed), "--size", str(SIZE), "--videos", "0", "--out",
                   str(folder)]  # fmt: skip
        log = self._log("_".join(name.split()))
        self._timed(name, lambda: common.call(log, "launch/eval.py", *command))

    def tables(self) -> str:
        """All tables of what there is by now."""
        sizes, of = self.sizes, self.cells
        about = (f"{sizes.videos} episodes of video, {sizes.demos} demonstrations and {sizes.validation} to choose by, "
                 f"{sizes.episodes} episodes a cell and seed.\n")  # fmt: skip
        parts = [about, tables.by_arm(of), tables.verdict(of), tables.differences(of), tables.by_task(of),
                 tables.choices(of), tables.by_video(self.probes), tables.predictions(self.predictions),
                 tables.inverse(self.pseudo), common.revisions(), self.times()]  # fmt: skip
        return "\n".join(part for part in parts if part)

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
        kinds: dict[str, float] = {}
        for name, seconds in read_json(self.out / "times.json").items():
            kind = " ".join(name.split()[:2]).rstrip("_0123456789.") if name.startswith("train") else name.split()[0]
            kinds[kind] = kinds.get(kind, 0.0) + seconds / 60
        rows = [[kind, f"{minutes:.1f}"] for kind, minutes in sorted(kinds.items())]
        return common.table(["leg", "minutes"], [*rows, ["all, one after the other", f"{sum(kinds.values()):.1f}"]])

    def _data(self, name: str) -> pathlib.Path:
        return self.out / "data" / name

    def _demos(self, seed: int) -> str:
        # With their number, so that other numbers of them use the same video and what was pretrained on it.
        return f"demos_{self.sizes.demos}_{seed}"

    def _number(self, kind: str, seed: int) -> str:
        # What was made of other demonstrations must not be taken for it.
        return f"{self.sizes.demos}_{seed}" if kind in OF_DEMONSTRATIONS else str(seed)

    def _before(self, codes: str, seed: int) -> str:
        return f"pretrain_{codes}_{self._number(codes, seed)}"

    def _tuned(self, arm: str, seed: int, rate: float) -> str:
        return f"{arm}_{self.sizes.demos}_{seed}_{rate:g}"

    def _labels(self, kind: str, seed: int, data: str = "videos") -> pathlib.Path:
        of_others = "" if data == "videos" else f"_of_{data}"
        return self.out / "data" / f"labels_{kind}_{self._number(kind, seed)}{of_others}"

    def _run(self, name: str) -> pathlib.Path:
        return self.out / "runs" / name

    def _of_controls(self, condition: str, seed: int) -> pathlib.Path:
        return self.out / "controls" / f"{condition.replace(' ', '_')}_{seed}"

    def _log(self, name: str) -> pathlib.Path:
        return self.out / "logs" / f"{name}.log"


def _scene(scene: Scene, args: argparse.Namespace) -> Scene:
    """A scene with what the command changes of it."""
    changes: dict = {} if args.gap is None else {"gap": args.gap}
    if scene.env == TABLE.env and args.blocks:
        options = list(scene.options)
        options[options.index("--blocks") + 1] = str(args.blocks)
        changes["options"] = tuple(options)
    return dataclasses.replace(scene, **changes, **({"tasks": tuple(args.task)} if args.task else {}))


def _steps(count: int, evaluations: int = 1) -> list[str]:
    every = count // evaluations
    return [f"train.steps={count}", f"train.eval_every={every}", f"train.save_every={every}"]


def finite_lines(run: pathlib.Path) -> list[dict]:
    """The evaluations of a training but that before the first step, and those whose loss is not finite, which
    metrics.jsonl has as null; the training chooses none of these either."""
    return [line for line in read_metrics(run) if line["step"] and line.get(LOSS) is not None]


def best_line(run: pathlib.Path) -> dict:
    """The evaluation of a training whose checkpoint is the best: that of the least loss."""
    if not (lines := finite_lines(run)):
        raise UserError(f"{run} diverged: no evaluation has a finite {LOSS}, see {run / 'metrics.jsonl'}; begin "
                        "another --out with gentler --overrides, as optim.clip_norm=0.5")  # fmt: skip
    return min(lines, key=lambda line: line[LOSS])


if __name__ == "__main__":
    run_main(main)
