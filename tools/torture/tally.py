"""What was tried, how it ended, and what was lost: of one kind of torture, and as a table of all."""

import collections
import dataclasses
from collections.abc import Callable, Iterable

from lapa_jax.core.escape import table


@dataclasses.dataclass
class Tally:
    """How attempts of one kind ended.

    Attributes:
      endings: {how: how often} of attempts that lost nothing. lost: what was lost, a line for each attempt that lost
      something. figures: what was measured besides.
    """

    endings: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lost: list[str] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.endings.total() + len(self.lost)

    def ended(self, how: str, wrong: Iterable[str] = (), times: int = 1) -> None:
        """Counts attempts that ended in the same way; with something wrong they are losses."""
        if wrong := [*wrong]:
            self.lost += [f"{how}: {'; '.join(wrong[:3])}"[:400]] * times
        else:
            self.endings[how] += times


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of torture.

    Attributes:
      run: (workshop, how many attempts, random.Random, Tally): makes the attempts and counts them.
      count: attempts at scale 1. seconds: what they take then, roughly, on two free cores.
    """

    run: Callable
    count: int
    seconds: float


def line(name: str, row: dict) -> str:
    """A row as it goes to the terminal."""
    ends = "; ".join(f"{how} {times}x" for how, times in row["endings"].items())
    about = "; ".join(filter(None, [ends, *row["figures"]]))
    return (f"{name}: tried {row['tried']}, survived {row['tried'] - len(row['lost'])}, lost {len(row['lost'])} "
            f"({row['seconds']:.0f} s): {about}")  # fmt: skip


def markdown(rows: dict[str, dict]) -> str:
    """{part/kind: row} as a table, and what was lost below it."""
    cells = []
    for name, row in rows.items():
        ends = [f"{how} {times}×" for how, times in row["endings"].items()]
        cells.append((name, str(row["tried"]), str(len(row["lost"])), "; ".join([*ends, *row["figures"]])))
    lines = table(("what", "tried", "lost", "how it ended"), cells)
    lost = [f"- {name}: {what}" for name, row in rows.items() for what in row["lost"]]
    return "\n".join([*lines, *(["", *lost] if lost else [])])
