"""Which episodes show the same task, and which of them serve as prompts for a sample."""

from collections.abc import Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.shards.step_shards import StepShards


def task_names(shards: StepShards) -> list[str]:
    """The task of each episode: "task" of its `.json`, else its instruction; "" where it has neither."""
    table = shards.table
    numbers = table.arrays["text"][shards.episodes.starts].tolist()
    instructions = [table.texts[number] if number >= 0 else "" for number in numbers]
    return [task or instruction for task, instruction in zip(shards.tasks(), instructions)]


def chosen_episodes(names: Sequence[str], held_out: Sequence[str], which: str, folder) -> np.ndarray:
    """bool[episodes]: those of the tasks that are used.

    Args:
      names: the task of each episode. held_out: names of tasks.
      which: "seen" for all others, "held_out" for these, "all". A name that does not occur is refused where the tasks
        are left out: a typing error would train on what is to be unseen.
      folder: for messages.
    """
    for name in held_out:
        if which == "seen" and name not in names:
            raise UserError(f"data.held_out_tasks: {folder} has no task '{name}'{did_you_mean(name, set(names))}")
    inside = np.isin(np.array(names, np.str_), np.array(held_out, np.str_))
    return {"seen": ~inside, "held_out": inside, "all": np.ones(len(names), bool)}[which]


def prompt_steps(used: np.ndarray, length: int, how: str, numbers: np.ndarray) -> np.ndarray:
    """Which steps of an episode serve as a prompt.

    Args:
      used: int64[...], steps of each episode. length: L, steps of a prompt. how: `data.prompt_steps`, "even" or
        "window".
      numbers: uint64[...], random; a window begins at this modulo the number of steps where one may begin. 0 is the
        episode's beginning.

    Returns:
      int64[..., L], in order; those of a shorter episode lie behind its end.
    """
    longer = np.maximum(used - length, 0)
    if how == "window":
        return (numbers % (longer + 1).astype(np.uint64)).astype(np.int64)[..., None] + np.arange(length)
    even = np.rint((used - 1)[..., None] * np.linspace(0, 1, length)).astype(np.int64)
    return np.where(longer[..., None] > 0, even, np.arange(length))


class Prompts:
    """Draws prompt episodes: others of the same task, as a pure function of (seed, sample).

    Args:
      task_of: int[episodes], the task of each episode.
      usable: bool[episodes], which may serve.
      count: P, prompts a sample. Where a task has fewer others, they come again.
      seed: of the draws.
    """

    def __init__(self, task_of: np.ndarray, usable: np.ndarray, count: int, seed: int):
        self.count, self.seed = count, seed
        self._task_of, self._usable = task_of, usable
        self._members = [np.flatnonzero(usable & (task_of == task)) for task in range(task_of.max(initial=-1) + 1)]

    def others(self, episode: int) -> int:
        """How many other episodes of its task an episode has."""
        return len(self._members[self._task_of[episode]]) - int(self._usable[episode])

    def draw(self, sample: int, episode: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[P] episodes, uint64[P] random numbers) for a sample of an episode; -1 where there is no other.

        The numbers are those of the bit generator itself, whose stream no version of numpy may change.
        """
        numbers = np.random.Philox(key=np.array([self.seed, sample], np.uint64)).random_raw(2 * self.count)
        members, others = self._members[self._task_of[episode]], self.others(episode)
        chosen, taken = np.full(self.count, -1, np.int64), []
        own_index = int(np.searchsorted(members, episode)) if self._usable[episode] else len(members)
        for k in range(self.count if others else 0):
            # All others have been drawn: they come again.
            taken = taken if len(taken) < others else []
            index = int(numbers[k] % np.uint64(others - len(taken)))
            # Draws without replacement: the index counts over those that are left, and skips each one taken before it.
            for earlier in sorted(taken):
                index += index >= earlier
            taken.append(index)
            # The episode itself is no prompt: indices from it on are one further.
            chosen[k] = members[index + (index >= own_index)]
        return chosen, numbers[self.count :]
