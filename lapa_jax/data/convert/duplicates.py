"""Which pieces are near-duplicates of earlier ones, decided in the order of the plan, whoever finishes first."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lapa_jax.data.convert import scenes


class Duplicates:
    """Goes through the episodes in the order of the plan, over both splits, as far as their parts are there.

    The first of several like pieces is kept. Each new one is compared with all that are kept: a millisecond for every
    hundred thousand of them.

    Args:
      episodes: ids in the order of the plan.
      share: of the bits of a hash in which near-duplicates may differ; None: nothing is a duplicate.
      settled: {episode: [[piece, hash in hexadecimal], ...]} of what shards hold already; [] for failed ones.
      read: gives the summary of an episode's part, or None where it is not there yet.
    """

    def __init__(
        self, episodes: Sequence[str], share: float | None, settled: Mapping[str, Sequence], read: Callable
    ):
        self._episodes, self._share, self._settled, self._read = episodes, share, settled, read
        self._next, self._names = 0, []
        self._kept = np.empty((0, 0), np.uint8)
        self._decided: dict[str, dict[str, str]] = {}

    def of(self, episode: str, passed_over: Mapping[str, str]) -> dict[str, str] | None:
        """{piece of an episode: the earlier piece that it is like}; None where an earlier part is not there yet.

        passed_over: the episodes that have failed and may be left out, {id: reason}.
        """
        if self._share is None:
            return {}
        while episode not in self._decided and self._next < len(self._episodes):
            upcoming = self._episodes[self._next]
            if upcoming in self._settled:
                for name, bits in self._settled[upcoming]:
                    self._keep(name, bytes.fromhex(bits))
            elif upcoming not in passed_over:
                part = self._read(upcoming)
                if part is None:
                    return None
                self._decided[upcoming] = self._judge(part["pieces"])
            self._next += 1
        return self._decided.get(episode)

    def decided(self, episode: str) -> dict[str, str]:
        """The same as far as it is decided, {} where it is not."""
        return self._decided.get(episode, {})

    def _judge(self, pieces: Sequence[Mapping]) -> dict[str, str]:
        found = {}
        for piece in pieces:
            bits = bytes.fromhex(piece["signature"])
            if self._names:
                away = scenes.distances(np.frombuffer(bits, np.uint8), self._kept[: len(self._names)])
                nearest = int(away.argmin())
                if away[nearest] <= self._share:
                    found[piece["id"]] = self._names[nearest]
                    continue
            self._keep(piece["id"], bits)
        return found

    def _keep(self, name: str, bits: bytes) -> None:
        if len(self._names) == len(self._kept):
            grown = np.zeros((max(64, 2 * len(self._kept)), len(bits)), np.uint8)
            grown[: len(self._kept)] = self._kept.reshape(len(self._kept), -1)[:, : len(bits)]
            self._kept = grown
        self._kept[len(self._names)] = np.frombuffer(bits, np.uint8)
        self._names.append(name)
