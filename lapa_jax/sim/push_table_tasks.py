"""The push-table's blocks and its five families of instructions, with their success rules. NumPy only.

The families are those of Language Table (Lynch et al. 2022, arXiv:2210.06407). Positions are (x, y) in metres from the
middle of the table; x grows to the right of the image and y away from the camera, so "up" is up in the image.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from lapa_jax.sim.options import Wordings

BLOCKS = (
    ("red", "cube"),
    ("red", "disc"),
    ("green", "bar"),
    ("green", "triangle"),
    ("blue", "cube"),
    ("blue", "triangle"),
    ("yellow", "disc"),
    ("yellow", "bar"),
)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1)}
BESIDE = {"left": "to the left of", "right": "to the right of", "up": "above", "down": "below"}
EDGE = 0.17
PLACES = {
    "top left corner": (-EDGE, EDGE),
    "top right corner": (EDGE, EDGE),
    "bottom left corner": (-EDGE, -EDGE),
    "bottom right corner": (EDGE, -EDGE),
    "center": (0.0, 0.0),
    "top side": (0.0, EDGE),
    "bottom side": (0.0, -EDGE),
    "left side": (-EDGE, 0.0),
    "right side": (EDGE, 0.0),
}
"""Named places of the table and their (x, y) in metres."""

REACH = 0.21  # no goal lies farther out than this: behind a block there must be room for the pusher
SLIDE = 0.13  # how far block2relative goes
BESIDE_DISTANCE = 0.085  # between the centres, for block2blockrelative
TOUCHING = 0.068  # centres of two blocks that stand end to end at most: the reach of two bars
SEPARATED = 0.06  # how much farther apart `separate` wants the blocks
AT_GOAL = 0.03  # distance from the goal that counts as there
MIN_TRAVEL = 0.08  # a task that starts nearer to its goal than this is not worth an episode
HELD_OUT = 5  # one combination in so many is held out
FREE_GOAL = 0.06  # no third block nearer than this to where the block is to stand


@dataclass(frozen=True)
class Task:
    """One instruction. Which of the last three fields are set depends on the family.

    Attributes:
      family: one of `FAMILIES`.
      instruction: what the policy reads.
      block: number of the block to push.
      other: number of the block it is related to, or None.
      goal: f64[2], a fixed place in metres, or None.
      offset: f64[2], the place relative to `other`, or None.
      start_distance: metres between `block` and `other` at the start (`separate` only).
      place: the named place or direction, one of `PLACES` or `DIRECTIONS`, or "".
    """

    family: str
    instruction: str
    block: int
    other: int | None = None
    goal: np.ndarray | None = None
    offset: np.ndarray | None = None
    start_distance: float = 0.0
    place: str = ""

    def target(self, blocks: np.ndarray) -> np.ndarray:
        """Where the block should go, f64[2] in metres, from the blocks' positions f64[8, 2]."""
        if self.goal is not None:
            return self.goal
        other = blocks[self.other]
        if self.offset is not None:
            return other + self.offset
        away = unit(blocks[self.block] - other)
        if self.family == "block2block":
            return other + 0.8 * TOUCHING * away
        return np.clip(other + (self.start_distance + 1.4 * SEPARATED) * away, -REACH, REACH)

    def success(self, blocks: np.ndarray) -> bool:
        """Whether the instruction is fulfilled, from the blocks' positions f64[8, 2]."""
        if self.family == "block2block":
            return bool(self._distance(blocks) < TOUCHING)
        if self.family == "separate":
            return bool(self._distance(blocks) > self.start_distance + SEPARATED)
        return bool(np.linalg.norm(blocks[self.block] - self.target(blocks)) < AT_GOAL)

    def held_out(self) -> bool:
        """Whether what is combined here is left out of the split "seen".

        Combinations of a block and its place or direction, and pairs of blocks in either order and any family: about a
        fifth. Each block, place and direction is left in other combinations.
        """
        if self.other is not None:
            return (self.block + self.other) % HELD_OUT == 0
        names = list(PLACES if self.family == "block2absolute" else DIRECTIONS)
        return (self.block + names.index(self.place)) % HELD_OUT == 0

    def worded(self, template: str) -> "Task":
        """The same task in other words, from a template of `WORDS`."""
        other = None if self.other is None else block_name(self.other)
        place = BESIDE[self.place] if self.family == "block2blockrelative" else self.place
        text = template.format(block=block_name(self.block), other=other, place=place)
        return dataclasses.replace(self, instruction=text)

    def _distance(self, blocks: np.ndarray) -> float:
        return float(np.linalg.norm(blocks[self.block] - blocks[self.other]))


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to length 1; (1, 0) for one of length 0."""
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-9 else np.array([1.0, 0.0])


def block_name(block: int) -> str:
    """For example "green bar"."""
    return " ".join(BLOCKS[block])


def _block2block(rng, blocks):
    block, other = rng.choice(len(BLOCKS), 2, replace=False)
    return Task("block2block", "", block, other)


def _block2absolute(rng, blocks):
    block, place = rng.integers(len(BLOCKS)), list(PLACES)[rng.integers(len(PLACES))]
    return Task("block2absolute", "", block, goal=np.array(PLACES[place]), place=place)


def _block2relative(rng, blocks):
    block, way = rng.integers(len(BLOCKS)), list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    return Task("block2relative", "", block, goal=blocks[block] + SLIDE * np.array(DIRECTIONS[way]), place=way)


def _block2blockrelative(rng, blocks):
    block, other = rng.choice(len(BLOCKS), 2, replace=False)
    way = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    offset = BESIDE_DISTANCE * np.array(DIRECTIONS[way])
    return Task("block2blockrelative", "", block, other, offset=offset, place=way)


def _separate(rng, blocks):
    block = rng.integers(len(BLOCKS))
    distances = np.linalg.norm(blocks - blocks[block], axis=1)
    distances[block] = np.inf
    other = int(np.argmin(distances))
    return Task("separate", "", block, other, start_distance=float(distances[other]))


FAMILIES = {
    "block2block": _block2block,
    "block2absolute": _block2absolute,
    "block2relative": _block2relative,
    "block2blockrelative": _block2blockrelative,
    "separate": _separate,
}
"""Family name -> function (rng, blocks) -> Task drawn from it."""


WORDS = {
    "block2block": Wordings(
        (
            "push the {block} to the {other}",
            "bring the {block} to the {other}",
            "slide the {block} against the {other}",
            "move the {block} until it touches the {other}",
        ),
        ("let the {block} meet the {other}", "join the {block} with the {other}"),
    ),
    "block2absolute": Wordings(
        (
            "push the {block} to the {place}",
            "move the {block} to the {place} of the table",
            "bring the {block} to the {place}",
            "slide the {block} over to the {place}",
        ),
        ("take the {block} to the {place} of the board", "the {block} belongs at the {place}"),
    ),
    "block2relative": Wordings(
        (
            "slide the {block} {place}",
            "push the {block} {place}",
            "move the {block} {place}",
            "shift the {block} {place}",
        ),
        ("get the {block} to go {place}", "make the {block} travel {place}"),
    ),
    "block2blockrelative": Wordings(
        (
            "put the {block} {place} the {other}",
            "place the {block} {place} the {other}",
            "move the {block} so that it is {place} the {other}",
            "slide the {block} to a place {place} the {other}",
        ),
        ("set the {block} down {place} the {other}", "the {block} should lie {place} the {other}"),
    ),
    "separate": Wordings(
        (
            "move the {block} away from the {other}",
            "push the {block} away from the {other}",
            "separate the {block} from the {other}",
            "slide the {block} off from the {other}",
        ),
        ("get the {block} far from the {other}", "make room between the {block} and the {other}"),
    ),
}
"""Family name -> templates of its instructions, with {block}, {other} and {place}."""


def draw_task(rng: np.random.Generator, family: str, blocks: np.ndarray) -> Task | None:
    """Draws a task of a family for blocks at f64[8, 2]; None when the draw makes no sensible episode here.

    Sensible: not nearly done at the start, the goal is within the pusher's reach, and no third block stands on it.
    """
    task = FAMILIES[family](rng, blocks).worded(WORDS[family].seen[0])
    target = task.target(blocks)
    third = [i for i in range(len(BLOCKS)) if i not in (task.block, task.other)]
    free = np.linalg.norm(blocks[third] - target, axis=1).min() > FREE_GOAL
    far = np.linalg.norm(blocks[task.block] - target) > MIN_TRAVEL
    room = task.family != "separate" or np.linalg.norm(target - blocks[task.other]) > task.start_distance + SEPARATED
    return task if free and far and room and np.abs(target).max() <= REACH else None
