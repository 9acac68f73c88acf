"""Controllers that learn nothing: the scripted expert, the ceiling of every table, and the baselines below it."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.sim.env import expert_of
from lapa_jax.sim.rollouts import Episode


class Expert:
    """The environment's scripted expert, without noise."""

    name, sees, images = "expert", False, False
    about: Mapping = {"name": name}

    def begin(self, episodes: Sequence[Episode]) -> None:
        self._experts = [expert_of(episode.env, episode.seed) for episode in episodes]

    def act(self, observations, instructions: list[str]) -> np.ndarray:
        return np.stack([np.asarray(expert.act(), np.float32) for expert in self._experts])


class Repeat:
    """Baseline: repeats the expert's first action for the whole episode."""

    name, sees, images = "repeat", False, False
    about: Mapping = {"name": name}

    def begin(self, episodes: Sequence[Episode]) -> None:
        experts = [expert_of(episode.env, episode.seed) for episode in episodes]
        self._actions = np.stack([np.asarray(expert.act(), np.float32) for expert in experts])

    def act(self, observations, instructions: list[str]) -> np.ndarray:
        return self._actions


class Random:
    """Baseline: actions drawn uniformly within the environment's bounds, from the episode's own seed."""

    name, sees, images = "random", False, False
    about: Mapping = {"name": name}

    def begin(self, episodes: Sequence[Episode]) -> None:
        self._rngs = [np.random.default_rng(episode.seed) for episode in episodes]
        self._bounds = [(episode.env.action_low, episode.env.action_high) for episode in episodes]

    def act(self, observations, instructions: list[str]) -> np.ndarray:
        actions = [rng.uniform(low, high) for rng, (low, high) in zip(self._rngs, self._bounds)]
        return np.stack(actions).astype(np.float32)


CONTROLS = {control.name: control for control in (Expert, Random, Repeat)}
EXPERT_CONTROLS = (Expert.name, Repeat.name)
"""Those that need the environment's expert."""
