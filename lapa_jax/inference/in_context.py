"""In-context policies at inference: demonstrations and observations in physical units to actions, step by step."""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.tasks import prompt_steps
from lapa_jax.inference import observations
from lapa_jax.inference.base import ColumnModel, finite

Demonstration = Mapping[str, np.ndarray]
"""{"action": f32[N, A], "state": f32[N, S], "image": uint8[N, (V,) H, W, 3]} in the units of the data, N steps."""


class InContextPolicy(ColumnModel):
    """A trained in-context policy: `reset` shows it demonstrations of a task, then `act` is called at each step.

    It computes on the first of its devices. Attributes as of `ColumnModel`.
    """

    COLUMNS = ("action",)

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._session: Session | None = None
        # The cache is carried from step to step on one device; the copies on others serve nothing here.
        self._local = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, self.variables)
        self._programs = {
            "start": jax.jit(functools.partial(model.apply, method="start")),
            "begin": jax.jit(functools.partial(model.apply, method="extend", begin=True)),
            # the caches of earlier steps are never asked for again; that of the prompts, which `begin` takes, is
            "later": jax.jit(functools.partial(model.apply, method="extend", begin=False), donate_argnums=(1, 2)),
        }

    def reset(self, prompt=None, *, goal: Mapping | None = None, dataset: str | None = None) -> None:
        """Forgets everything and begins an episode.

        Args:
          prompt: demonstrations of the task: a `Demonstration` of any length, a list of up to P of them, or none (None
            or an empty list). Each is reduced to L steps as in training (`data.prompt_steps`; of windows the first),
            images are brought to the model's size. With fewer than P the rest of the prompt is empty.
          goal: of a policy that was trained with goals: the observation that is to be reached, as `act` takes one.
          dataset: of a policy trained on several: whose units all numbers are in.

        Raises:
          UserError: too many demonstrations, or one that lacks a field or has another shape, another type or numbers
            that are not finite; no goal where one is needed, or one where none is.
        """
        self._session = self.start([prompt], goals=None if goal is None else [goal], dataset=dataset)

    def act(self, observation: Mapping, executed=None) -> np.ndarray:
        """What to do now.

        Args:
          observation: {"state": f32[S], "image": uint8[(V,) H, W, 3]}, of these what the policy was trained on; what
            else is in it is ignored.
          executed: f32[A], what was really done at the step before, where it was not what `act` gave.

        Returns:
          f32[A] in the units of the data.

        Raises:
          UserError: before `reset`, or as for a demonstration.
        """
        if self._session is None:
            raise UserError("the policy has not been told the task: call reset(prompt) before act, reset() for none")
        observation = {name: np.asarray(value)[None] for name, value in observation.items()}
        return self._session.act(observation, None if executed is None else np.asarray(executed)[None])[0]

    @property
    def chunk(self) -> np.ndarray | None:
        """f32[F, A]: the action that `act` gave last, and those that the policy expects after it; None before."""
        chunk = self._session and self._session.chunk
        return None if chunk is None else chunk[0]

    def start(self, prompts: Sequence, *, goals: Sequence | None = None, dataset: str | None = None) -> "Session":
        """Begins B episodes at once, each with its prompt and goal as `reset` takes them; they act in step."""
        if len(prompts) == 0:
            raise UserError("prompts is empty; give one entry for each episode, None for an episode without a prompt")
        if self.model.goal != (goals is not None) or len(prompts) != len(prompts if goals is None else goals):
            needed = f"a goal for each of the {len(prompts)} episodes" if self.model.goal else "no goals"
            given = "none is" if goals is None else f"{len(goals)} are"
            raise UserError(f"this policy was trained with model.goal={self.model.goal} and takes {needed}; "
                            f"{given} given")  # fmt: skip
        return Session(self, [self._demonstrations(prompt) for prompt in prompts], self.dataset(dataset), goals)

    def compute(self, program: str, *arguments):
        """The model's "start", "begin" or "later" on the first device."""
        return self._programs[program](self._local, *arguments)

    def _demonstrations(self, prompt) -> list[Demonstration]:
        prompt = [] if prompt is None else [prompt] if isinstance(prompt, Mapping) else list(prompt)
        most = self.model.prompts
        if len(prompt) > most:
            remedy = f"give {most} at most" if most else "reset() without one"
            raise UserError(f"{len(prompt)} demonstrations for a policy that was trained with {most}: {remedy}")
        return prompt

    def prepared(self, rows: Mapping, what: str, lead: tuple[int, ...], dataset: str | None) -> dict:
        """What the model observes, of `rows` in the units of the data, as it takes it.

        Args:
          rows: as they come. what: whose they are, for messages. lead: sizes of their first axes.
          dataset: whose units.

        Raises:
          UserError: see `reset`.
        """
        inputs = {}
        if self.model.state_dim:
            inputs["state"] = self.numbers(_field(rows, "state", what), f"{what} state", lead, dataset, "state")
        if self.model.cameras:
            image, model = _field(rows, "image", what), self.model
            about = (model.cameras, model.image_size, self, dataset)
            inputs["image"] = observations.model_images(image, f"{what} image", lead, *about)
        return inputs

    def numbers(self, rows, name: str, lead: tuple, dataset: str | None, column: str = "action") -> np.ndarray:
        """Finite rows [*lead, D] in the units of the data as the model takes them, f32; else a `UserError`."""
        rows = finite(self.check_rows(rows, name, (len(lead) + 1,), self.width_of(dataset, column)), name)
        observations.check_lead(rows, name, lead)
        return self.to_model(rows, dataset, column)


class Session:
    """B episodes in step, each behind its prompt; made by `InContextPolicy.start`.

    The policy sees T steps. When they are full it forgets the older half, and what is left is encoded anew behind the
    prompts, whose keys and values are kept. So one program is compiled for the first step, one for the later ones, and
    one for encoding anew.

    Attributes:
      chunk: f32[B, F, A], what the last `act` gave and what is expected after it; None before.
    """

    def __init__(self, policy: InContextPolicy, prompts: Sequence[Sequence[Demonstration]], dataset: str | None,
                 goals: Sequence[Mapping] | None = None):  # fmt: skip
        self.chunk: np.ndarray | None = None
        self._policy, self._dataset, self._rows = policy, dataset, len(prompts)
        self._prompt = policy.compute("start", {**self._prompt_batch(prompts), **self._goal_batch(goals)})
        self._seen = None
        self._observations: list[dict] = []
        self._actions = np.zeros((self._rows, policy.model.context, policy.width), np.float32)

    def act(self, observations: Mapping, executed=None) -> np.ndarray:
        """What to do now in each episode; see `InContextPolicy.act`.

        Args:
          observations: {"state": f32[B, S], "image": uint8[B, (V,) H, W, 3]}.
          executed: f32[B, A], or None where all executed what `act` gave.

        Returns:
          f32[B, A].
        """
        policy, lead = self._policy, (self._rows,)
        observation = policy.prepared(observations, "the observation's", lead, self._dataset)
        if executed is not None and self.chunk is None:
            raise UserError("executed is what was done at the step before, and this is the first step; leave it out")
        if self.chunk is not None:
            done = self.chunk[:, 0] if executed is None else executed
            self._actions[:, len(self._observations) - 1] = policy.numbers(done, "executed", lead, self._dataset)
        action = self._forward(observation)
        self.chunk = policy.to_units(np.asarray(action), self._dataset)
        return self.chunk[:, 0].copy()

    def _forward(self, observation: dict):
        """The normalised actions f32 [B, F, A] at a new step, which enters the window."""
        if len(self._observations) == self._policy.model.context:
            self._forget()
        self._observations.append(observation)
        if self._seen is None:
            steps, program, seen = self._observations, "begin", self._prompt
        else:
            steps, program, seen = [observation], "later", self._seen
        together = {name: np.stack([step[name] for step in steps], 1) for name in observation}
        first = np.int32(len(self._observations) - len(steps))
        action, *self._seen = self._policy.compute(program, *seen, together, self._actions, first)
        return action

    def _forget(self) -> None:
        """Lets go of the older half of the window and of what has been computed from it."""
        context = self._policy.model.context
        # Half and not one step at a time: encoding anew costs a pass over the window, and is needed once in context //
        # 2 steps.
        old = context - context // 2
        self._observations = self._observations[old:]
        self._actions = np.pad(self._actions[:, old:], ((0, 0), (0, old), (0, 0)))
        self._seen = None

    def _prompt_batch(self, prompts: Sequence[Sequence[Demonstration]]) -> dict[str, np.ndarray]:
        """The demonstrations as the model's batches hold prompts, and masks for what is not there."""
        example = self._policy.model.example(self._rows)
        if not self._policy.model.prompts:
            return {"action": example["action"]}
        batch = {name: np.zeros_like(value) for name, value in example.items() if name.startswith("prompt_")}
        for row, prompt in enumerate(prompts):
            for number, demonstration in enumerate(prompt):
                where = f"demonstration {number}" if self._rows == 1 else f"demonstration {number} of prompt {row}"
                for name, values in self._reduced(demonstration, where).items():
                    batch[f"prompt_{name}"][row, number, : len(values)] = values
        return {"action": example["action"], **batch}

    def _goal_batch(self, goals: Sequence[Mapping] | None) -> dict[str, np.ndarray]:
        """The goals as the model's batches hold them, a step each; nothing without goals."""
        if goals is None:
            return {}
        policy, model = self._policy, self._policy.model
        names = [name for name, used in (("state", model.state_dim), ("image", model.cameras)) if used]
        rows = {name: np.stack([np.asarray(_field(goal, name, "the goal's")) for goal in goals])[:, None]
                for name in names}  # fmt: skip
        lead = (self._rows, 1)
        prepared = policy.prepared(rows, "the goal's", lead, self._dataset)
        return {"goal_step_mask": np.ones(lead, np.float32), **{f"goal_{name}": x for name, x in prepared.items()}}

    def _reduced(self, demonstration: Demonstration, where: str) -> dict[str, np.ndarray]:
        """The steps of a demonstration that the model sees, as it takes them, at most L."""
        policy, model = self._policy, self._policy.model
        if not isinstance(demonstration, Mapping):
            raise UserError(f"{where} is a {type(demonstration).__name__}; a dict with 'action' and what is observed "
                            "is expected")  # fmt: skip
        length = len(np.atleast_1d(_field(demonstration, "action", f"{where}'s")))
        how = policy.config.get("data", {}).get("prompt_steps") or "even"
        steps = prompt_steps(np.array(length), model.prompt_length, how, np.array(0, np.uint64))
        steps = steps[steps < length]
        chosen = {name: _taken(demonstration, name, steps, length, where) for name in ("action", "state", "image")}
        what, lead, ones = f"{where}'s", (len(steps),), np.ones(len(steps), np.float32)
        return {"action": policy.numbers(chosen["action"], f"{what} action", lead, self._dataset), "action_mask": ones,
                "step_mask": ones, **policy.prepared(chosen, what, lead, self._dataset)}  # fmt: skip


def _field(rows: Mapping, name: str, what: str):
    if rows.get(name) is None:
        raise UserError(f"{what} '{name}' is missing; the policy was trained with it (there is {sorted(rows)})")
    return rows[name]


def _taken(rows: Mapping, name: str, steps: np.ndarray, length: int, where: str):
    """A field at the steps; None where it is not there. As many steps as actions, or a `UserError`."""
    if rows.get(name) is None:
        return None
    values = np.asarray(rows[name])
    if values.ndim == 0 or len(values) != length:
        raise UserError(f"{where} has {length} actions and {name} {values.shape}; one for each step is expected")
    return values[steps]
