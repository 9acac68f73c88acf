"""Recorded episodes through a policy step by step: it is shown what was observed, and told what was really done."""

import bisect
from collections.abc import Mapping

import numpy as np

LONGEST = 400
"""Steps of an episode that are replayed at most."""


def replay(policy, source, episode: int, dataset: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """An episode with the prompt that its first window has.

    Args:
      policy: an `InContextPolicy`.
      source: sequences with a stride of 1, in the units of the data. episode: its number there.
      dataset: whose units these are.

    Returns:
      Recorded and predicted actions f32[N, A], of the steps up to the first that lacks something, 400 at most; None
      where the source has no window at the episode's beginning.
    """
    first = _index(source, episode, 0)
    if first == len(source) or source.locate(first) != (episode, 0):
        return None
    steps, there = _steps(source, first, _index(source, episode + 1, 0))
    count = min(LONGEST, int(np.argmin(np.append(there, False))))
    policy.reset(_prompt(source[first]), dataset=dataset)
    predicted = []
    for t in range(count):
        done = steps["action"][t - 1] if t else None
        predicted.append(policy.act({name: values[t] for name, values in steps.items()}, done))
    return (steps["action"][:count], np.stack(predicted)) if count else None


def _index(source, episode: int, step: int) -> int:
    """The first sample that begins at this step of the episode or later."""
    return bisect.bisect_left(range(len(source)), (episode, step), key=source.locate)


def _steps(source, first: int, end: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The steps of an episode, put together of its windows, samples `first` to `end` - 1: fields [N, ...], and which
    steps are whole, bool[N]."""
    length = len(source[first]["action"])
    chosen = [*range(first, end - 1, length), end - 1]
    chosen = chosen[: -(-LONGEST // length) + 1]
    samples = [source[i] for i in chosen]
    total = int(samples[-1]["step"]) + length
    steps = {name: np.zeros((total, *samples[0][name].shape[1:]), samples[0][name].dtype)
             for name in ("action", "state", "image") if name in samples[0]}  # fmt: skip
    there = np.zeros(total, bool)
    for sample in samples:
        place = slice(int(sample["step"]), int(sample["step"]) + length)
        for name, values in steps.items():
            values[place] = sample[name]
        there[place] = (sample["action_mask"] > 0) & (sample["step_mask"] > 0)
    return steps, there


def _prompt(sample: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The demonstrations of a sample, without those that are empty."""
    found = []
    for place in range(len(sample.get("prompt_action", ()))):
        rows = (sample["prompt_action_mask"][place] > 0) & (sample["prompt_step_mask"][place] > 0)
        if rows.any():
            found.append({name: sample[f"prompt_{name}"][place][rows] for name in ("action", "state", "image")
                          if f"prompt_{name}" in sample})  # fmt: skip
    return found
