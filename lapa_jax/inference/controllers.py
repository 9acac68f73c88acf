"""Trained policies as controllers of several episodes in lockstep (`lapa_jax.sim.rollouts.Controller`)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference import kinds
from lapa_jax.inference.ensemble import Ensemble
from lapa_jax.inference.in_context import Demonstration, InContextPolicy
from lapa_jax.inference.policies import Policy
from lapa_jax.sim.evaluation import Interface


class Chunks:
    """A stage-3 policy that executes the first `execute` actions of each chunk before it is queried again.

    Args:
      policy: the policy. execute: from 1, a new chunk each step, to the length of the chunks; None is that.
      dataset: of a policy trained on several: whose units the environment has. history: see `Policy.session`.
    """

    name, images = "policy", True

    def __init__(
        self, policy: Policy, execute: int | None = None, dataset: str | None = None, history: bool = False
    ):  # fmt: skip
        length = policy.model.chunk_length
        if execute is not None and not 1 <= execute <= length:
            raise UserError(f"--execute {execute}: the chunks of this policy have {length} actions, give 1 to {length}")
        self._session = lambda: policy.session(history)
        self._execute, self._dataset = execute or length, policy.dataset(dataset)
        self._ahead: list[np.ndarray] = []
        self.about: Mapping = {**about(policy, self._dataset), "execute": self._execute, **_told(history)}

    @property
    def sees(self) -> bool:
        return not self._ahead

    def begin(self, episodes: Sequence) -> None:
        self._ahead, self._policy = [], self._session()

    def act(self, observations: Mapping[str, np.ndarray] | None, instructions: list[str]) -> np.ndarray:
        if not self._ahead:
            chunks = self._policy.chunk(*_seen(observations, instructions), dataset=self._dataset)
            # All episodes are at the same step: one list of actions serves them all.
            self._ahead = [chunks[:, k] for k in range(self._execute)]
        return self._ahead.pop(0)


class Ensembled:
    """A stage-3 policy that is queried every step and executes the mean of its chunks, see `ensemble.Ensemble`."""

    name, sees, images = "policy", True, True

    def __init__(self, policy: Policy, decay: float, dataset: str | None = None, history: bool = False):
        self._new, self._dataset = lambda: Ensemble(policy.session(history), decay), policy.dataset(dataset)
        self.about: Mapping = {**about(policy, self._dataset), "ensemble": decay, **_told(history)}

    def begin(self, episodes: Sequence) -> None:
        self._ensemble = self._new()

    def act(self, observations: Mapping[str, np.ndarray], instructions: list[str]) -> np.ndarray:
        return self._ensemble.act(*_seen(observations, instructions), dataset=self._dataset)


class InContext:
    """An in-context policy that is shown demonstrations of each episode's task.

    Args:
      policy: the policy. demonstrations: of a task, as many as the policy takes; not asked for where it takes none.
      dataset: as of `Chunks`.
      prompt: what `demonstrations` are: "right" or "wrong", which only the results are named by; "none": not asked for.
    """

    name, sees = "policy", True

    def __init__(
        self, policy: InContextPolicy, demonstrations: Callable[[str], list[Demonstration]], dataset: str | None = None,
        prompt: str = "right",
    ):  # fmt: skip
        self._policy, self._demonstrations, self._dataset = policy, demonstrations, policy.dataset(dataset)
        self._prompt, self.images = prompt, policy.model.cameras > 0
        self.about: Mapping = {**about(policy, self._dataset), "prompts": policy.model.prompts,
                               **({} if prompt == "right" else {"prompt": prompt})}  # fmt: skip

    def begin(self, episodes: Sequence) -> None:
        shown = self._policy.model.prompts > 0 and self._prompt != "none"
        prompts = [self._demonstrations(episode.task) if shown else None for episode in episodes]
        self._session = self._policy.start(prompts, dataset=self._dataset)

    def act(self, observations: Mapping[str, np.ndarray], instructions: list[str]) -> np.ndarray:
        return self._session.act(observations)


def controller_of(
    policy: Policy | InContextPolicy, demonstrations: Callable[[str], list[Demonstration]], *,
    execute: int | None = None, ensemble: float | None = None, dataset: str | None = None, history: bool = False,
    prompt: str | None = None,
) -> Chunks | Ensembled | InContext:  # fmt: skip
    """The controller of a policy, by its kind. Arguments as of `Chunks`, `Ensembled` and `InContext`.

    Raises:
      UserError: ways of executing chunks for a policy that gives none, prompts for one that takes none.
    """
    make = kinds.resolve(policy.kind.controller)
    how = {"execute": execute, "ensemble": ensemble, "dataset": dataset, "history": history, "prompt": prompt}
    return make(policy, demonstrations, **how)


def of_chunks(policy, demonstrations, *, execute, ensemble, dataset, history, prompt) -> Chunks | Ensembled:
    """Chunks, or with `ensemble`, a decay, their weighted means."""
    if prompt is not None:
        raise UserError("--prompt is for in-context policies; this one is told what to do by an instruction")
    policy.session(history)  # a policy without history is refused now, before anything runs
    if ensemble is None:
        return Chunks(policy, execute, dataset, history)
    return Ensembled(policy, ensemble, dataset, history)


def in_context(policy, demonstrations, *, execute, ensemble, dataset, history, prompt) -> InContext:
    """Step by step, after demonstrations."""
    if execute is not None or ensemble is not None or history:
        raise UserError("--execute, --ensemble and --history are for chunks; an in-context policy acts step by step")
    if policy.model.goal:
        raise UserError("this policy was trained with model.goal=True, and a simulator knows no observation that is to "
                        "be reached; evaluate it on recorded episodes, or train with model.goal=False")  # fmt: skip
    if prompt is not None and not policy.model.prompts:
        raise UserError("--prompt is for policies that are shown demonstrations; this one was trained with none")
    return InContext(policy, demonstrations, dataset, prompt or "right")


def rate(policy, dataset: str | None = None) -> float | None:
    """How many actions a second the policy was trained to give; None if its data do not say."""
    return policy.datasets.get(policy.dataset(dataset), {}).get("fps")


def _told(history: bool) -> dict:
    return {"history": True} if history else {}  # only where it is: results without it keep their names


def about(policy, dataset: str | None) -> dict:
    """What decides a policy's actions."""
    return {"model": policy.fingerprint, "step": policy.step, "dataset": dataset}


def check_fits(policy, dataset: str | None, env: str, interface: Interface) -> None:
    """Refuses a policy that an environment cannot take.

    Args:
      policy: a `Policy` or `InContextPolicy`. dataset: whose units it acts in.
      env: the environment's name, for messages. interface: what it takes and gives.

    Raises:
      UserError: other actions, another state or another number of cameras.
    """
    dataset, model = policy.dataset(dataset), policy.model
    if (width := policy.width_of(dataset)) != interface.actions:
        takes = interface.actions
        raise UserError(f"this policy gives actions of {width} numbers, {env} takes {takes}; evaluate it elsewhere")
    if model.cameras and model.cameras != interface.cameras:
        gives = interface.cameras
        raise UserError(f"this policy sees {model.cameras} cameras, {env} has {gives} (data.camera chooses)")
    if model.state_dim and (width := policy.width_of(dataset, "state")) != interface.state:
        gives = interface.state
        raise UserError(f"this policy takes states of {width} numbers, {env} has {gives}; train it on data of {env}")


def _seen(observations: Mapping[str, np.ndarray], instructions: list[str]) -> tuple:
    return observations["image"], instructions, observations.get("state")
