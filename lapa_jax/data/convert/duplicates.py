"""Which pieces are near-duplicates of earlier ones, decided in the order of the plan, whoever finishes first."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.data.convert import scenes

_LENGTH = 0.02
"""Share by which the lengths of copies may differ."""


class Likeness(NamedTuple):
    """What near-duplicates have in common.

    Attributes:
      id: of the piece. hash: `scenes.signature` in hexadecimal. length: in seconds, or steps where there is no clock.
      text: its instruction: what shows the same and is told otherwise is no duplicate.
    """

    id: str
    hash: str
    length: float
    text: str


class Duplicates:
    """Goes through the episodes in the order of the plan, over both splits, as far as their parts are there.

    The first of several like pieces is kept. Each new one is compared with all that are kept: some ten milliseconds for
    every hundred thousand of them, whose hashes take 180 MB.

    Args:
      episodes: ids in the order of the plan.
      distance: of the hashes of near-duplicates, see `scenes.distances`; None: nothing is a duplicate.
      settled: {episode: the `Likeness` of the pieces} of what shards hold already; [] for failed ones.
      read: gives the summary of an episode's part, or None where it is not there yet.
    """

    def __init__(
        self, episodes: Sequence[str], distance: float | None, settled: Mapping[str, Sequence], read: Callable
    ):
        self._episodes, self._distance, self._settled, self._read = episodes, distance, settled, read
        self._next = 0
        self._names: list[str] = []
        self._texts: dict[str, int] = {}
        # of what is kept: hashes, and (length, number of the text)
        self._hashes, self._facts = np.empty((0, 0), np.float32), np.empty((0, 2))
        self._decided: dict[str, dict[str, str]] = {}

    def of(self, episode: str, passed_over: Mapping[str, str]) -> dict[str, str] | None:
        """{piece of an episode: the earlier piece that it is like}; None where an earlier part is not there yet.

        passed_over: the episodes that have failed and may be left out, {id: reason}.
        """
        if self._distance is None:
            return {}
        while episode not in self._decided and self._next < len(self._episodes):
            upcoming = self._episodes[self._next]
            if upcoming in self._settled:
                for values in self._settled[upcoming]:
                    self._keep(Likeness(*values))
            elif upcoming not in passed_over:
                part = self._read(upcoming)
                if part is None:
                    return None
                self._decided[upcoming] = self._judge(likenesses(part))
            self._next += 1
        return self._decided.get(episode)

    def decided(self, episode: str) -> dict[str, str]:
        """The same as far as it is decided, {} where it is not."""
        return self._decided.get(episode, {})

    def _judge(self, pieces: Sequence[Likeness]) -> dict[str, str]:
        originals = {}
        for piece in pieces:
            count = len(self._names)
            away = scenes.distances(scenes.directions(bytes.fromhex(piece.hash)), self._hashes[:count]) if count else []
            lengths, texts = self._facts[:count].T
            alike = (texts == self._texts.get(piece.text, -1)) & (np.abs(lengths - piece.length) <= _LENGTH * lengths)
            near = np.flatnonzero(alike & (np.asarray(away) <= self._distance))
            if len(near):
                originals[piece.id] = self._names[near[np.argmin(away[near])]]
            else:
                self._keep(piece)
        return originals

    def _keep(self, piece: Likeness) -> None:
        number = len(self._names)
        if number == len(self._hashes):
            more = 64 if not number else number
            width = len(bytes.fromhex(piece.hash))
            self._hashes = np.concatenate([self._hashes.reshape(number, width), np.zeros((more, width), np.float32)])
            self._facts = np.concatenate([self._facts, np.zeros((more, 2))])
        self._hashes[number] = scenes.directions(bytes.fromhex(piece.hash))
        self._facts[number] = piece.length, self._texts.setdefault(piece.text, len(self._texts))
        self._names.append(piece.id)


def likenesses(part: Mapping) -> list[Likeness]:
    """Of the pieces of a part, see `parts.read_part`."""
    rate = part["fps"] or 1.0
    return [Likeness(p["id"], p["signature"], p["steps"] / rate, p["instruction"]) for p in part["pieces"]]
