"""The scenes, arms and sizes of `latent_pretraining.py`: what is filmed, who drives where, and how much of everything.
"""

import dataclasses

MT10 = ("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
        "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3")  # fmt: skip
"""The ten tasks of Meta-World's benchmark of that name (Yu et al. 2019, arXiv:1910.10897)."""

FAMILIES = ("separate", "block2block", "block2absolute", "block2relative", "block2blockrelative")


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is recorded, and where policies drive.

    Attributes:
      env: the simulator. tasks: of it, which take turns. options: further arguments of it, ("--blocks", "3").
      fps: frames and actions a second that are recorded, and that policies act at; the simulator's own where None.
      gap: frames between those of a latent action. noise: of the expert's actions when it is recorded, in their units:
        without it no episode shows how to come back. tokenizer: settings of stage 1 on video of it.
      seconds: of a core, measured roughly, for an episode that is recorded and one that is driven.
    """

    env: str
    tasks: tuple[str, ...]
    options: tuple[str, ...] = ()
    fps: int | None = None
    gap: int = 6
    noise: float = 0.0
    tokenizer: tuple[str, ...] = ()
    seconds: tuple[float, float] = (0.05, 0.3)

    def arguments(self) -> list[str]:
        """Of tools/record_sim.py and launch/eval.py."""
        return ["--env", self.env, *(word for task in self.tasks for word in ("--task", task)), *self.options]

    def recorded(self) -> list[str]:
        """Of tools/record_sim.py."""
        rate = [] if self.fps is None else ["--fps", str(self.fps)]
        return [*self.arguments(), "--noise", str(self.noise), *rate]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything. Episodes: `videos`, `demos`, `validation` and `episodes` of each evaluation; the rest are
    steps: of stage 1, most of the reference of its codes, of inverse dynamics, of pretraining, and of learning from
    demonstrations. These end where so many as `patience` of their `evaluations` have brought nothing; `rates` are those
    that an arm may choose from."""

    videos: int = 1000
    demos: int = 50
    validation: int = 20
    laq: int = 400
    reference: int = 3000
    inverse: int = 1500
    pretrain: int = 1500
    finetune: int = 2400
    evaluations: int = 12
    patience: int = 5
    rates: tuple[float, ...] = (1e-3, 5e-4, 2e-4)
    episodes: int = 50


SHORT = {"demos": 10, "reference": 0, "inverse": 600, "finetune": 800, "evaluations": 8, "rates": (5e-4,)}
"""What --short changes: two seeds of `push_table` in well under an hour of two cores. With so few demonstrations
pretraining matters most; stage 1 and the pretraining are whole, as codes of less video say less."""
SHORT_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class Arm:
    """Attributes: codes: what the model is pretrained on, a kind of labels, "vpt" or "actions"; "" for nothing.
    head: of the policy. long: whether it has the steps of the others' pretraining too, in the one training there is.
    together: whether that is on the demonstrations and on the labelled video at once."""

    codes: str = ""
    head: str = "chunk"
    long: bool = False
    together: bool = False


ARMS = {
    "scratch": Arm(),
    "scratch_long": Arm(long=True),
    "lapa": Arm("codes"),
    "lapa_few": Arm("few"),
    "lapa_shuffled": Arm("shuffled"),
    "lapa_random": Arm("random"),
    "cotrained": Arm(long=True, together=True),
    "vpt": Arm("vpt"),
    "actions": Arm("actions"),
    "scratch_flow": Arm(head="flow"),
    "lapa_flow": Arm("codes", "flow"),
}
SHORT_ARMS = ("scratch", "scratch_long", "lapa", "actions")
SCRAMBLED = ("shuffled", "random")
"""Labels that say nothing: those of the tokenizer dealt to other steps, or drawn at random."""
OF_CODES = ("codes", "few", *SCRAMBLED)
"""The kinds of labels: of a tokenizer of video alone, of one that was told the actions of the demonstrations, ..."""
OF_DEMONSTRATIONS = ("few", "vpt")
"""What the video is labelled with by something that learned from the demonstrations."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A table.

    Attributes:
      robot: where demonstrations come from and policies drive. video: what the video shows; the same where None.
      conditions: {name: arguments of the evaluation}, the first one that of training.
      arms, seeds: the usual ones. sizes: what differs from `Sizes`. policy: variant of the policies' configs.
      settings: of the policies' configs.
      moving: whether the tokenizer is also tried on video with a moving background.
    """

    robot: Scene
    video: Scene | None = None
    conditions: tuple[str, ...] = ("seen",)
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: int = 3
    sizes: Sizes = Sizes()
    policy: str = "small"
    settings: tuple[str, ...] = ("data.augment={'shift': 4}",)
    moving: bool = False

    @property
    def filmed(self) -> Scene:
        """What the video shows."""
        return self.video or self.robot


CONDITIONS = {
    "seen": ("--split", "seen"),
    "unseen": ("--split", "unseen"),
    "moving": ("--split", "seen", "--moving"),
    "other colours": ("--split", "seen", "--varied"),
}
"""{name: arguments of launch/eval.py}; recordings are of the first. The last two are shifts that training never saw."""

TABLE = Scene("push_table", ("separate",), ("--blocks", "3"), noise=0.004)
# At the 80 frames a second of the simulator neighbours hardly differ, and a chunk of eight actions is 0.1 seconds.
# Meta-World's arm stands at one side: mirrored pairs would take codes of their own, see docs/results/latent_actions.md.
WORLD = Scene("metaworld", MT10, fps=20, gap=2, noise=0.1, tokenizer=("data.augment=None",), seconds=(0.6, 2.0))

BENCHMARKS = {
    "push_table": Benchmark(TABLE, conditions=("seen", "unseen"), seeds=5, moving=True),
    "metaworld": Benchmark(
        WORLD, arms=("scratch", "scratch_long", "lapa", "lapa_shuffled", "vpt", "actions"),
        sizes=Sizes(demos=200, validation=40, pretrain=3000), policy="tiny", settings=(),
    ),
    "families": Benchmark(
        dataclasses.replace(TABLE, tasks=FAMILIES, options=("--blocks", "4")),
        arms=("scratch", "scratch_long", "lapa", "vpt", "actions"),
        # With half of the video, of the demonstrations and of the steps even true actions solve 48 %.
        sizes=Sizes(videos=4000, demos=200, validation=40, pretrain=12000),
    ),
    # Six blocks: 12 pairs that training names, 3 that it does not.
    "pairs": Benchmark(
        dataclasses.replace(TABLE, options=("--blocks", "6")),
        conditions=("seen", "unseen", "moving", "other colours"), arms=("scratch", "scratch_long", "lapa", "actions"),
        sizes=Sizes(videos=3000, demos=200, validation=40, pretrain=8000),
    ),
    # The video is of another arm, table and camera. With ten demonstrations, where pretraining on the robot's own look
    # matters most.
    "other_look": Benchmark(
        TABLE, video=dataclasses.replace(TABLE, options=("--blocks", "3", "--robot", "orange")),
        arms=("scratch", "scratch_long", "lapa", "lapa_shuffled", "actions"), sizes=Sizes(demos=10),
    ),
    "other_robot": Benchmark(TABLE, video=WORLD, arms=("scratch", "scratch_long", "lapa", "lapa_shuffled"),
                             sizes=Sizes(demos=10)),
}  # fmt: skip
"""{--benchmark: its table}."""
