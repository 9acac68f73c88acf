"""Controllers that learn nothing: the scripted oracle, the ceiling of every table, and the controls below it."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.sim.rollouts import Episode


class Oracle:
    """The environment's scripted expert, without noise."""

    name, sees = "oracle", False
    about: Mapping = {"name": name}

    def begin(self, episodes: Sequence[Episode]) -> None:
        self._experts = [episode.env.oracle(episode.seed) for episode in episodes]

    def act(self, observations, instructions: list[str]) -> np.ndarray:
        return np.stack([np.asarray(expert.act(), np.float32) for expert in self._experts])


class Repeat:
    """Does for the whole episode what the oracle does first: what keeping on in a good direction is worth."""

    name, sees = "repeat", False
    about: Mapping = {"name": name}

    def begin(self, episodes: Sequence[Episode]) -> None:
        first = [np.asarray(episode.env.oracle(episode.seed).act(), np.float32) for episode in episodes]
        self._first = np.stack(first)

    def act(self, observations, instructions: list[str]) -> np.ndarray:
        return self._first


class Random:
    """Actions that are equally likely anywhere within the environment's limits, from the episode's own seed."""

    name, sees = "random", False
    about: Mapping = {"name": name}

    def begin(self, episodes: Sequence[Episode]) -> None:
        self._draws = [np.random.default_rng(episode.seed) for episode in episodes]
        self._limits = [episode.env.action_limit for episode in episodes]

    def act(self, observations, instructions: list[str]) -> np.ndarray:
        drawn = [rng.uniform(-limit, limit) for rng, limit in zip(self._draws, self._limits)]
        return np.stack(drawn).astype(np.float32)


CONTROLS = {control.name: control for control in (Oracle, Random, Repeat)}
