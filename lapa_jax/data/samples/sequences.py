"""Windows of an episode with other episodes of the same task as prompts: what in-context imitation learns from."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.samples.base import NOWHERE, FieldSource, Rows, StepOptions, whole_number
from lapa_jax.data.samples.tasks import Prompts, chosen_episodes, prompt_steps, task_names
from lapa_jax.data.shards.step_shards import StepShards

CHOICES = {
    "alone": ("refuse", "drop", "empty"),
    "tasks": ("seen", "held_out", "all"),
    "tasks_val": ("seen", "held_out", "all"),
    "prompt_steps": ("even", "window"),
}


@dataclasses.dataclass(frozen=True)
class Options(StepOptions):
    """The fields of `config.data` for sequences, besides those of `StepOptions`.

    Attributes:
      length: T, steps of a window. stride: windows begin at every so many steps of an episode, and at its last window.
      future: F; with more than 1 each step also has the F actions from it on.
      goal: samples hold the observation at the last step of the window's own episode, which acting is to lead to.
      prompts: P, prompt episodes a sample; 0 for none, and then episodes need no task.
      prompt_length: L, steps of a prompt.
      prompt_steps: of a longer prompt episode "even" takes L steps evenly spread from its first to its last, "window" L
        in a row from a drawn one on.
      alone: for an episode with no other of its task "refuse" it, "drop" it (counted), or leave its prompt "empty".
      held_out_tasks: names of tasks. tasks: train on the others ("seen"), on these ("held_out") or on "all".
      tasks_val: the same for evaluation.
      seed: of the draws of prompts.
    """

    fields: tuple[str, ...] = ("state", "action")
    length: int = 10
    stride: int = 1
    future: int = 1
    goal: bool = False
    prompts: int = 1
    prompt_length: int = 10
    prompt_steps: str = "even"
    alone: str = "refuse"
    held_out_tasks: tuple[str, ...] = ()
    tasks: str = "seen"
    tasks_val: str = "all"
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.held_out_tasks, str):
            object.__setattr__(self, "held_out_tasks", (self.held_out_tasks,))
        for name in ("length", "stride", "future", "prompt_length"):
            whole_number(name, getattr(self, name), 1)
        whole_number("prompts", self.prompts, 0)
        whole_number("seed", self.seed, 0)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"data.{name} '{getattr(self, name)}' does not exist"
                                f"{did_you_mean(getattr(self, name), choices)}")  # fmt: skip
        if "action" not in self.fields:
            raise UserError(f"data.fields {self.fields} must hold 'action': sequences are of actions")

    def open(self, shards: StepShards, statistics: Mapping | None = None) -> "Sequences":
        """The sequences of a split; `statistics` as for `StepSource`."""
        return Sequences(shards, self, statistics)


class Sequences(FieldSource):
    """Windows of T steps within the part of each episode that has actions. Arguments as of `FieldSource`.

    An episode ends here with its last action: the step behind it has nothing to learn. A shorter one gives one window,
    padded. The steps of a window whose fields are not all there are masked, not left out.

    Attributes:
      tasks: the names of the tasks in use, sorted; `task_id` of a sample counts in it.
    """

    def __init__(self, shards: StepShards, options: Options, statistics: Mapping | None = None):
        super().__init__(shards, options, statistics)
        available = self._available()
        self._actions = available["action"]
        everywhere = np.ones(len(shards), bool)
        self._has_instruction = available.pop("text", everywhere)
        self._observed = np.all([everywhere, *(available[n] for n in available if n != "action")], axis=0)
        self._used = self._steps_in_use()
        names = task_names(shards) if options.prompts or options.held_out_tasks else [""] * len(shards.episodes)
        chosen = chosen_episodes(names, options.held_out_tasks, options.tasks, shards.folder)
        self.tasks = sorted({name for name, used in zip(names, chosen) if used})
        numbers = {name: number for number, name in enumerate(self.tasks)}
        self._task_of = np.array([numbers.get(name, -1) for name in names], np.int64)
        self._prompts = Prompts(self._task_of, chosen & (self._used > 0), options.prompts, options.seed)
        self._counts = {"episodes": len(names), "episodes_of_other_tasks": int((~chosen).sum()),
                        "episodes_without_action": int((chosen & (self._used == 0)).sum())}  # fmt: skip
        chosen &= self._used > 0
        chosen &= self._may_stand_alone(chosen, names)
        self._choose(chosen)

    def _steps_in_use(self) -> np.ndarray:
        """int64[episodes]: steps up to the last one with an action."""
        steps, first, _ = self.every_step()
        # reduceat takes the maximum from each episode's start to the next one's.
        return np.maximum.reduceat(np.where(self._actions, steps - first + 1, 0), self._starts)

    def _may_stand_alone(self, chosen: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """bool[episodes]: those that have a prompt or need none; counts the others, or refuses them."""
        self._counts["episodes_alone"] = self._counts["episodes_with_repeated_prompts"] = 0
        if not self.options.prompts:
            return chosen
        numbers = np.flatnonzero(chosen)
        if len(numbers) and not any(names[i] for i in numbers):
            raise UserError(f"{self.shards.folder} names no tasks and has no instructions, and prompts are of the same "
                            "task: set data.prompts=0, or convert with instructions")  # fmt: skip
        others = np.array([self._prompts.others(i) for i in numbers], np.int64)
        alone = numbers[others == 0]
        self._counts["episodes_alone"] = len(alone)
        self._counts["episodes_with_repeated_prompts"] = int(((others > 0) & (others < self.options.prompts)).sum())
        if len(alone) and self.options.alone == "refuse":
            raise UserError(
                f"{len(alone)} of {len(numbers)} episodes of {self.shards.folder} ({self.shards.split}) are alone in "
                f"their task, as '{names[alone[0]]}': set data.alone=drop to leave them out, or data.alone=empty"
            )
        keep = chosen.copy()
        if self.options.alone == "drop":
            keep[alone] = False
        return keep

    def _choose(self, chosen: np.ndarray) -> None:
        steps, first, _ = self.every_step()
        episode = self._episode_of(steps)
        at, last = steps - first, np.maximum(self._used - self.options.length, 0)[episode]
        begins = chosen[episode] & (at <= last) & ((at % self.options.stride == 0) | (at == last))
        # before[i]: actions before step i. A window without a single action has nothing to learn.
        before = np.concatenate([[0], np.cumsum(self._actions)])
        acts = before[np.minimum(steps + self.options.length, first + self._used[episode])] > before[steps]
        self._begin_at(begins & acts & self._has_instruction)
        used = np.bincount(episode[self._first], minlength=len(self._starts)) > 0
        self._counts |= {"episodes_used": int(used.sum()), "windows": len(self),
                         "windows_without_text": int((begins & acts & ~self._has_instruction).sum()),
                         "windows_padded": int((self._used[episode[self._first]] < self.options.length).sum()),
                         "tasks": len(self.tasks)}  # fmt: skip
        if len(self) == 0:
            raise UserError(f"no sequence is left of {self.shards.folder} ({self.shards.split}): {self._counts}")

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """Several sequences, stacked.

        Returns:
          Of the window "action" f32[B, T, A], "state" f32[B, T, S], "image" uint8[B, T, (V,) H, W, 3], "latent"
          int32[B, T, N], "feature" f32[B, T, F] as asked for, "action_mask" and "step_mask" f32[B, T] (1 where there is
          an action; where the other fields are there); with F > 1 "future_action" f32[B, T, F, A] and "future_mask"
          f32[B, T, F]. Of the prompts the same with "prompt_" before the name and [B, P, L, ...] for [B, T, ...], and
          "prompt_episode_id" int32[B, P], -1 for an empty prompt. With a goal what is observed and "step_mask" of one
          step with "goal_" before the name, [B, 1, ...]. "text" (see `Texts.read`); "episode_id", "step",
          "task_id" int32[B]. Whatever a mask leaves out is 0. `into`: see `StepSource.batch`.
        """
        first = self._first_of(indices)
        where = self._where(first)
        episodes = where["episode_id"].astype(np.int64)
        steps = where["step"][:, None] + np.arange(self.options.length)
        batch = self._window(episodes[:, None], steps, into.get("image"))
        if "text" in self.fields:
            batch |= self._read("text", first)
        if self.options.future > 1:
            ahead = steps[..., None] + np.arange(self.options.future)
            batch["future_action"], batch["future_mask"] = self._act(episodes[:, None, None], ahead)
        if self.options.goal:
            last = (self._used[episodes] - 1)[:, None]
            goal = self._window(episodes[:, None], last, into.get("goal_image"))
            # what is done at that step is none of the policy's business
            batch |= {f"goal_{name}": values for name, values in goal.items() if not name.startswith("action")}
        if self.options.prompts:
            batch |= self._prompt(indices, episodes, into.get("prompt_image"))
        return {**batch, **where, "task_id": self._task_of[episodes].astype(np.int32)}

    def _act(self, episodes: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions f32[..., A] and their mask f32[...] at steps within episodes, int64[...]."""
        at, inside = self._clip(episodes, steps)
        mask = inside & self._actions[at]
        return self._columns["action"].take(at) * mask[..., None], mask.astype(np.float32)

    def _clip(self, episodes: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps of the split int64[...] that exist, and where they are the ones asked for, bool[...]."""
        used = self._used[episodes]
        return self._starts[episodes] + np.minimum(steps, used - 1), steps < used

    def _window(self, episodes: np.ndarray, steps: np.ndarray, rows) -> dict[str, np.ndarray]:
        at, inside = self._clip(episodes, steps)
        seen = inside & self._observed[at]
        action, action_mask = self._act(episodes, steps)
        window = {"action": action, "action_mask": action_mask, "step_mask": seen.astype(np.float32)}
        for name in self.fields:
            if name == "image":
                window |= self._read(name, at, rows=rows, mask=seen)
            elif name not in ("action", "text"):
                values = self._columns[name].take(at)
                window[name] = values * seen[..., None].astype(values.dtype)
        return window

    def _prompt(self, indices: Sequence[int], episodes: np.ndarray, rows) -> dict[str, np.ndarray]:
        shape = (len(episodes), self.options.prompts)
        drawn, numbers = np.empty(shape, np.int64), np.empty(shape, np.uint64)
        for row, (index, episode) in enumerate(zip(indices, episodes)):
            drawn[row], numbers[row] = self._prompts.draw(int(index), int(episode))
        # an empty prompt is the sample's own episode, asked for steps that lie behind its end
        source = np.where(drawn < 0, episodes[:, None], drawn)
        chosen = prompt_steps(self._used[source], self.options.prompt_length, self.options.prompt_steps, numbers)
        steps = np.where(drawn[..., None] < 0, 1 << 40, chosen)
        window = self._window(source[..., None], steps, rows)
        return {"prompt_episode_id": drawn.astype(np.int32), **{f"prompt_{name}": v for name, v in window.items()}}

    def summary(self) -> dict[str, int]:
        """Episodes, windows and tasks, and what gives no sample: of other tasks, without actions, alone in a task."""
        return dict(self._counts)
