"""`--filter`: what of a video is worth keeping. Settings, and the pieces that an episode falls into.

Downloaded videos are compilations: they cut from scene to scene, stand still, fade to black, and come twice. A pair of
frames across a cut teaches a latent action that is none. What is left out is counted and shown, never guessed.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.convert import scenes

CUT, STILL, BLANK, SHORT, SMALL, DUPLICATE = "cut", "still", "blank", "short", "small", "duplicate"
"""Why an episode is cut, or frames of it are left out."""


@dataclasses.dataclass(frozen=True)
class Filter:
    """What `--filter` does; None leaves a rule off.

    Attributes:
      cuts: split an episode where a transition between frames is so many times as large as those around it.
      still: leave out stretches in which nothing moves for so many seconds, but for their first and last frame.
      blank: leave out frames that are black or of one colour, to so many of 255 levels.
      short: leave out what is shorter than so many seconds then.
      small: leave out episodes whose images have a side of fewer pixels.
      duplicates: leave out what is like an earlier piece of the same length and instruction, to this distance (0 to 2)
        of perceptual hashes.
    """

    cuts: float | None = 2.0
    still: float | None = 2.0
    blank: float | None = 8.0
    short: float | None = 0.2
    small: float | None = 64.0
    duplicates: float | None = 0.02

    @classmethod
    def parse(cls, text: str | None) -> "Filter | None":
        """Of an option: "all", or rules with or without a value, "cuts,still=3"; None for None and "none".

        Raises:
          UserError: an unknown rule, or a value that is no positive number.
        """
        if text in (None, "none"):
            return None
        names = [field.name for field in dataclasses.fields(cls)]
        chosen: dict[str, float | None] = dict.fromkeys(names)
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name == "all" and not value:
                chosen = {key: chosen[key] or default for key, default in dataclasses.asdict(cls()).items()}
            elif name not in names:
                raise UserError(f"--filter has no rule '{name}'{did_you_mean(name, ['all', *names])}")
            else:
                chosen[name] = _number(name, value) if value else getattr(cls, name)
        if not any(chosen.values()):
            raise UserError(f"--filter '{text}' names no rule; give all, or some of {', '.join(names)}")
        return cls(**chosen)

    def __str__(self) -> str:
        """As `parse` takes it, in full: equal filters are equal texts."""
        return ",".join(f"{name}={value:g}" for name, value in dataclasses.asdict(self).items() if value is not None)

    def needs_clock(self) -> list[str]:
        """The rules in use whose values are seconds."""
        return [name for name in ("still", "short") if getattr(self, name) is not None]


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise UserError(f"--filter {name}={value}: a positive number is expected")
    return number


class Event(NamedTuple):
    """What the filter did: `kind` to the frames `first` to `end` - 1 of an episode; a cut comes before `first`."""

    kind: str
    first: int
    end: int


class Pieces(NamedTuple):
    """What is left of an episode: (first, end) of each piece; and why the rest is not."""

    kept: list[tuple[int, int]]
    events: list[Event]


def pieces(rules: Filter, frames: np.ndarray, size: tuple[int, int], fps: float | None) -> Pieces:
    """Applies the rules to an episode, all but that of duplicates.

    Args:
      rules: which. frames: small copies of all its frames, see `scenes.small`.
      size: height and width of its images, as the source has them. fps: frames per second.

    Raises:
      ValueError: a rule needs the frame rate, which the episode lacks.
    """
    count, events = len(frames), []
    if fps is None and rules.needs_clock():
        raise ValueError(f"it has no frame rate, which --filter {rules.needs_clock()[0]} needs: give --fps, or leave "
                         "out the rules still and short")  # fmt: skip
    if rules.small is not None and min(size) < rules.small:
        return Pieces([], [Event(SMALL, 0, count)])
    gone = np.zeros(count, bool)
    starts = scenes.cuts(frames, rules.cuts) if rules.cuts is not None else []
    if rules.blank is not None:
        for first, end in scenes.blank(frames, rules.blank):
            gone[first:end] = True
            events.append(Event(BLANK, first, end))
    starts = [i for i in starts if not (gone[i - 1] or gone[i])]  # from black or into it is no other scene
    events += [Event(CUT, i, i) for i in starts]
    if rules.still is not None:
        borders = {0, count, *starts, *(edge for event in events for edge in event[1:])}
        for first, end in scenes.still(frames, max(3, round(rules.still * fps)), _STILL_LEVEL):
            if not gone[first:end].all():
                # its first frame ends what moved before and its last begins what moves then, where there is something
                gone[first + (first not in borders) : end - (end not in borders)] = True
                events.append(Event(STILL, first, end))
    kept = []
    for first, end in scenes.runs(~gone):
        edges = [first, *(i for i in starts if first < i < end), end]
        kept += zip(edges[:-1], edges[1:])
    least = 2 if rules.short is None else max(2, round(rules.short * fps))
    for first, end in kept:
        if end - first < least:
            events.append(Event(SHORT, first, end))
    kept = [(first, end) for first, end in kept if end - first >= least]
    return Pieces(kept, sorted(events, key=lambda event: (event.first, event.end, event.kind)))


_STILL_LEVEL = 4.0
"""Of 255: how far the mean of a block may go in a still stretch; noise of sensors and compression stays below 2."""


def counts(events: list[Event]) -> dict[str, int]:
    """{what: how many} for the report: events by kind, and the frames that they took."""
    totals: dict[str, int] = {}
    for event in events:
        totals[event.kind] = totals.get(event.kind, 0) + 1
        if event.end > event.first:
            frames = f"frames of {event.kind}"
            totals[frames] = totals.get(frames, 0) + event.end - event.first
    return dict(sorted(totals.items()))


def described(rules: Filter, episodes: int, totals: Mapping[str, int]) -> dict:
    """The entry of the report: the rules, how many episodes the source has, and what was done to them."""
    return {"rules": str(rules), "episodes of the source": episodes, **dict(sorted(totals.items()))}
