"""What converted episodes add up to: kept a shard, not an episode, so that memory does not grow with the data."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping

from lapa_jax.data.convert.filter import DUPLICATE

_COUNTERS = ("dropped", "blank", "remarks", "filtered")


@dataclasses.dataclass
class Totals:
    """Sums over episodes.

    Attributes:
      episodes, steps: how many. left_out: fields of the source that stayed behind.
      dropped: {why: steps left out on purpose}. blank: {camera: steps without a picture of it}.
      remarks: {what was done or noticed: how many}. filtered: {what `--filter` did: how many}.
      text: whether any step has an instruction.
      fps: [slowest, fastest] of the episodes with a clock. clockless: episodes without one.
    """

    episodes: int = 0
    steps: int = 0
    left_out: set[str] = dataclasses.field(default_factory=set)
    dropped: Counter = dataclasses.field(default_factory=Counter)
    blank: Counter = dataclasses.field(default_factory=Counter)
    remarks: Counter = dataclasses.field(default_factory=Counter)
    filtered: Counter = dataclasses.field(default_factory=Counter)
    text: bool = False
    fps: list[float] = dataclasses.field(default_factory=list)
    clockless: int = 0

    @classmethod
    def of_part(cls, part: Mapping, duplicates: Collection[str] = ()) -> "Totals":
        """Of one episode, see `parts.read_part`, without those of its pieces that are left out as duplicates."""
        pieces = [piece for piece in part["pieces"] if piece["id"] not in duplicates]
        twice = [piece["steps"] for piece in part["pieces"] if piece["id"] in duplicates]
        filtered = Counter(part["filtered"])
        if twice:
            filtered.update({DUPLICATE: len(twice), f"frames of {DUPLICATE}": sum(twice)})
        fps = [] if part["fps"] is None or not pieces else [part["fps"]] * 2
        return cls(
            episodes=len(pieces),
            steps=sum(piece["steps"] for piece in pieces),
            left_out=set(part["left_out"]),
            dropped=Counter(part["dropped"]),
            blank=sum((Counter(piece["blank"]) for piece in pieces), Counter()),
            remarks=Counter(part["remarks"]),
            filtered=filtered,
            text=part["text"],
            fps=fps,
            clockless=len(pieces) if part["fps"] is None else 0,
        )

    def add(self, other: "Totals | Mapping") -> None:
        """Adds other episodes."""
        if isinstance(other, Mapping):
            counters = {name: Counter(other[name]) for name in _COUNTERS}
            other = Totals(**{**other, **counters, "left_out": set(other["left_out"])})
        self.episodes += other.episodes
        self.steps += other.steps
        self.left_out |= other.left_out
        self.dropped += other.dropped
        self.blank += other.blank
        self.remarks += other.remarks
        self.filtered += other.filtered
        self.text |= other.text
        self.clockless += other.clockless
        both = [*self.fps, *other.fps]
        self.fps = [min(both), max(both)] if both else []

    def to_json(self) -> dict:
        """As JSON; `add` takes it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"left_out": sorted(self.left_out), **{name: dict(values[name]) for name in _COUNTERS}}

    def common_fps(self) -> float | None:
        """The frame rate, where all episodes share it to 0.1 %."""
        if self.clockless or not self.fps or self.fps[1] > self.fps[0] * 1.001:
            return None
        return self.fps[0]
